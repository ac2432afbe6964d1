package ruvd_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	ruvd "github.com/ruvd/ruvd/clients/go"
	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

// The calls that resume and cancel a completion ask for a token of their own.
func TestEveryCallOfACompletionAsksForItsToken(t *testing.T) {
	asked := 0
	source := func(context.Context) (string, error) {
		asked++
		return fmt.Sprintf(" t%d\n", asked), nil
	}
	daemon, client := serveTo(t, []ruvd.ClientOption{ruvd.WithTokenSource(source)},
		call{events: events(started(1)), err: broken},
		call{events: events(delta(2, "one ")), staysOpen: true},
	)
	for range client.Complete("hello").Text(t.Context()) {
		break
	}
	if err := client.Close(); err != nil { // waits for the call that cancels
		t.Fatal(err)
	}
	for _, wanted := range []string{"Bearer t1", "Bearer t2", "Bearer t3"} {
		if token := <-daemon.tokens; token != wanted {
			t.Fatalf("the call has %q, not %q", token, wanted)
		}
	}
}

// The daemon is not called without a token, and nothing is tried again.
func TestErrorOfATokenSourceFailsTheCall(t *testing.T) {
	asked := 0
	source := func(context.Context) (string, error) {
		asked++
		return "", errors.New("the vault is sealed")
	}
	daemon, client := serveTo(t, []ruvd.ClientOption{ruvd.WithTokenSource(source)})
	_, failure := texts(t.Context(), client.Complete("hello"))
	if failure == nil || failure.Code != codes.Unauthenticated || failure.Reason != "" ||
		!strings.Contains(failure.Message, "the vault is sealed") {
		t.Fatalf("failed with %+v", failure)
	}
	if asked != 1 {
		t.Fatalf("asked for %d tokens", asked)
	}
	noFurtherRequest(t, daemon)
}

// A token that cannot be sent is not in the error's text.
func TestTextOfAnErrorDoesNotHaveTheToken(t *testing.T) {
	_, client := serveTo(t, []ruvd.ClientOption{
		ruvd.WithTokenSource(func(context.Context) (string, error) { return "geheimer schlüssel", nil }),
	})
	_, failure := texts(t.Context(), client.Complete("hello"))
	if failure == nil || strings.Contains(failure.Error(), "geheim") {
		t.Fatalf("failed with %v", failure)
	}
}

// The caller's own cancellation is not reported as a missing token.
func TestTokenSourceEndsWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	_, client := serveTo(t, []ruvd.ClientOption{
		ruvd.WithTokenSource(func(ctx context.Context) (string, error) {
			cancel()
			<-ctx.Done()
			return "", ctx.Err()
		}),
	})
	_, err := client.ListModels(ctx, &ruvdv1.ListModelsRequest{})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("failed with %v", err)
	}
}

func TestSessionThatIsGoneIsCreatedAnewOnlyIfWanted(t *testing.T) {
	daemon, client := serve(t, call{events: events(finished(1, "a"))}, call{events: events(finished(1, "b"))})
	texts(t.Context(), client.Complete("hello", ruvd.WithSession("s")))
	texts(t.Context(), client.Complete("hello", ruvd.WithSession("s"), ruvd.WithRecreateIfGone()))
	for _, wanted := range []bool{false, true} {
		if sent := request[*ruvdv1.CompleteRequest](t, daemon); sent.GetRecreateIfGone() != wanted {
			t.Fatalf("sent %v", sent)
		}
	}
}
