package ruvd_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	ruvd "github.com/ruvd/ruvd/clients/go"
	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

func (d *scriptedDaemon) CreateSession(
	ctx context.Context, request *ruvdv1.CreateSessionRequest,
) (*ruvdv1.CreateSessionResponse, error) {
	err := d.answer(ctx, request, nil)
	return &ruvdv1.CreateSessionResponse{}, err
}

func (d *scriptedDaemon) EndSession(
	ctx context.Context, request *ruvdv1.EndSessionRequest,
) (*ruvdv1.EndSessionResponse, error) {
	err := d.answer(ctx, request, nil)
	return &ruvdv1.EndSessionResponse{}, err
}

// BatchComplete answers the first item, and all others as the next call of the script says.
func (d *scriptedDaemon) BatchComplete(
	request *ruvdv1.BatchCompleteRequest, stream grpc.ServerStreamingServer[ruvdv1.BatchCompleteResponse],
) error {
	answered := func(index int) error {
		finished := &ruvdv1.Finished{Message: request.GetItems()[index].GetMessages()[0]}
		return stream.Send(&ruvdv1.BatchCompleteResponse{Event: &ruvdv1.BatchCompleteResponse_Result{
			Result: &ruvdv1.BatchResult{Index: int32(index), Outcome: &ruvdv1.BatchResult_Completion{
				Completion: &ruvdv1.Completion{Finished: finished},
			}},
		}})
	}
	if err := answered(0); err != nil {
		return err
	}
	if err := d.answer(stream.Context(), request, nil); err != nil {
		return err
	}
	for index := 1; index < len(request.GetItems()); index++ {
		if err := answered(index); err != nil {
			return err
		}
	}
	return nil
}

var (
	drained  = ruvdError(codes.Unavailable, "SHUTTING_DOWN")
	notFound = ruvdError(codes.NotFound, "COMPLETION_NOT_FOUND")
)

// pair starts two daemons, and returns first that which a client of both has begun with.
func pair(t *testing.T) (current, next *scriptedDaemon, client *ruvd.Client) {
	t.Helper()
	current, first := listen(t)
	next, second := listen(t)
	client = newClient(t, first+" , "+second)
	_, _ = client.GetSession(t.Context(), &ruvdv1.GetSessionRequest{}) // is answered by an error
	if len(next.requests) > 0 {
		current, next = next, current
	}
	request[metadata.MD](t, current)
	noFurtherRequest(t, next)
	return current, next, client
}

// received returns the kinds of the requests that a daemon has received.
func received(daemon *scriptedDaemon) (kinds []string) {
	for {
		select {
		case one := <-daemon.requests:
			switch one.(type) {
			case *ruvdv1.CompleteRequest:
				kinds = append(kinds, "complete")
			case *ruvdv1.ResumeCompletionRequest:
				kinds = append(kinds, "resume")
			default:
				kinds = append(kinds, "other")
			}
		default:
			return kinds
		}
	}
}

func TestAWrongEntryOfAListIsNamed(t *testing.T) {
	for list, wanted := range map[string]string{
		"127.0.0.1:1,":                `entry 2 of the addresses, "", is empty`,
		"a:1, ,b:1":                   `entry 2 of the addresses, "", is empty`,
		"a:1,b":                       `entry 2 of the addresses, "b", is neither`,
		"a:1,b:0":                     `"b:0", is neither`,
		"a:70000,b:1":                 `entry 1 of the addresses, "a:70000", is neither`,
		"a:1,:7":                      `":7", is neither`,
		"a:1,two words:1":             `has a space inside`,
		"a:1,unix:":                   `has no path`,
		"a:1,unix://":                 `has no path`,
		"a:1,nothing://b:1":           `has an unknown scheme`,
		"a:1,b:http,unix:/run/c.sock": `"b:http", is neither`,
	} {
		client, err := ruvd.New(ruvd.WithAddress(list))
		if err == nil || !strings.Contains(err.Error(), wanted) {
			t.Errorf("%q gives %v", list, err)
		}
		if err == nil {
			_ = client.Close()
		}
	}
}

func TestAListHasAllFormsOfAddresses(t *testing.T) {
	newClient(t, " a:7000,b.example.org:7000 , [::1]:7000,127.0.0.1:1,unix:/run/a.sock,unix:///b,dns:///c:1 ")
}

func TestATokenIsForEachEntry(t *testing.T) {
	for list, local := range map[string]bool{
		"127.0.0.1:1,unix:/a,localhost:1": true,
		"127.0.0.1:1,192.0.2.1:1":         false,
		"192.0.2.1:1,unix:/a":             false,
	} {
		_, err := ruvd.New(ruvd.WithAddress(list), ruvd.WithToken("secret"))
		if (err == nil) != local || err != nil && !strings.Contains(err.Error(), "192.0.2.1:1") {
			t.Errorf("%q gives %v", list, err)
		}
		if _, err := ruvd.New(
			ruvd.WithAddress(list), ruvd.WithToken("secret"), ruvd.WithTLS(ruvd.TLSConfig{}),
		); err != nil {
			t.Errorf("%q with TLS gives %v", list, err)
		}
	}
}

// A turn that a draining daemon refuses is made at the other one, and so are all later ones.
func TestATurnThatADrainingDaemonRefusesIsMadeElsewhere(t *testing.T) {
	draining, other, client := pair(t)
	draining.calls = []call{{err: drained}}
	other.calls = []call{
		{events: events(started(1), delta(2, "one"), finished(3, "one"))},
		{events: events(started(1), delta(2, "two"), finished(3, "two"))},
	}
	for _, wanted := range []string{"one", "two"} {
		pieces, failure := texts(t.Context(), client.Complete("hi", ruvd.WithRequestID("r")))
		if failure != nil {
			t.Fatal(failure)
		}
		expect(t, pieces, []string{wanted})
	}
	for _, daemon := range []*scriptedDaemon{draining, other, other} {
		if sent := request[*ruvdv1.CompleteRequest](t, daemon); sent.GetRequestId() != "r" {
			t.Fatalf("sent %v", sent)
		}
	}
	noFurtherRequest(t, draining)
}

func TestAnAddressWithoutADaemonIsPassedOver(t *testing.T) {
	for range 4 { // the client begins with either
		_, address := listen(t,
			call{events: events(started(1), delta(2, "one"), finished(3, "one"))}, call{},
		)
		client := newClient(t, "unix:/nowhere/ruvd.sock,"+address)
		pieces, failure := texts(t.Context(), client.Complete("hi"))
		if failure != nil {
			t.Fatal(failure)
		}
		expect(t, pieces, []string{"one"})
		if _, err := client.CreateSession(t.Context(), &ruvdv1.CreateSessionRequest{}); err != nil {
			t.Fatal(err)
		}
	}
}

// A stream that broke is resumed at the same daemon first, and then at the other one.
func TestABrokenStreamIsResumedAtTheSameDaemonFirst(t *testing.T) {
	current, next, client := pair(t)
	current.calls = []call{{events: events(started(1), delta(2, "one")), err: broken}, {err: broken}}
	next.calls = []call{{events: events(delta(3, " two"), finished(4, "one two"))}}
	pieces, failure := texts(t.Context(), client.Complete("hi"))
	if failure != nil {
		t.Fatal(failure)
	}
	expect(t, pieces, []string{"one", " two"})
	expect(t, received(current), []string{"complete", "resume"})
	expect(t, received(next), []string{"resume"})
}

// Text was delivered, and no daemon has the completion: it is not generated again.
func TestDeliveredTextIsNotContinuedByAnotherGeneration(t *testing.T) {
	current, next, client := pair(t)
	current.calls = []call{
		{events: events(started(1), delta(2, "one")), err: broken}, {err: broken}, {err: notFound},
	}
	next.calls = []call{{err: notFound}}
	pieces, failure := texts(t.Context(), client.Complete("hi"))
	expect(t, pieces, []string{"one"})
	if failure == nil || failure.Reason != ruvd.ReasonCompletionNotFound {
		t.Fatalf("ended with %v", failure)
	}
	expect(t, received(current), []string{"complete", "resume", "resume"})
	expect(t, received(next), []string{"resume"})
}

// A daemon that gives a completion up after its text has been delivered ends it.
func TestDeliveredTextAndAReasonAreFinal(t *testing.T) {
	for _, reason := range []string{"SHUTTING_DOWN", "OWNERSHIP_LOST"} {
		current, next, client := pair(t)
		err := ruvdError(codes.Aborted, reason)
		current.calls = []call{{events: events(started(1), delta(2, "one")), err: err}}
		pieces, failure := texts(t.Context(), client.Complete("hi"))
		expect(t, pieces, []string{"one"})
		if failure == nil || string(failure.Reason) != reason {
			t.Fatalf("ended with %v", failure)
		}
		noFurtherRequest(t, next)
	}
}

// Without delivered text the completion begins again, also for a caller that waits for the whole answer.
func TestAnAnswerThatNobodyHasSeenBeginsAgain(t *testing.T) {
	_, client := serve(t,
		call{events: events(started(1), delta(2, "one")), err: broken},
		call{err: notFound},
		call{events: events(started(1), delta(2, "uno"), finished(3, "uno"))},
	)
	message, err := client.Complete("hi").Message(t.Context())
	if err != nil || message.GetContent() != "uno" {
		t.Fatalf("received %v and %v", message, err)
	}
}

func TestACompletionBeginsAgainThreeTimesAtMost(t *testing.T) {
	one, two, client := pair(t)
	for range 4 {
		one.calls = append(one.calls, call{events: events(started(1)), err: drained})
	}
	two.calls = slices.Clone(one.calls)
	_, failure := texts(t.Context(), client.Complete("hi"))
	if failure == nil || failure.Reason != ruvd.ReasonShuttingDown {
		t.Fatalf("ended with %v", failure)
	}
	expect(t, received(one), []string{"complete", "complete"})
	expect(t, received(two), []string{"complete", "complete"})
}

// A daemon that shuts down is the end for a client that has no other address.
func TestAnOnlyDaemonThatShutsDownIsFinal(t *testing.T) {
	daemon, client := serve(t, call{err: drained}, call{err: drained})
	_, failure := texts(t.Context(), client.Complete("hi"))
	if failure == nil || failure.Reason != ruvd.ReasonShuttingDown {
		t.Fatalf("ended with %v", failure)
	}
	_, err := client.CreateSession(t.Context(), &ruvdv1.CreateSessionRequest{})
	if err == nil || len(received(daemon)) != 2 {
		t.Fatalf("ended with %v", err)
	}
}

// A session is created with one request id, however often the call is repeated.
func TestARepeatedCallHasTheSameRequestID(t *testing.T) {
	current, next, client := pair(t)
	current.calls = []call{{err: drained}}
	next.calls = []call{{}}
	if _, err := client.CreateSession(t.Context(), &ruvdv1.CreateSessionRequest{}); err != nil {
		t.Fatal(err)
	}
	id := request[*ruvdv1.CreateSessionRequest](t, current).GetRequestId()
	if again := request[*ruvdv1.CreateSessionRequest](t, next).GetRequestId(); id == "" || again != id {
		t.Fatalf("request ids %q and %q", id, again)
	}
}

// A session that is not found after the answer of an attempt was lost has been ended by that attempt.
func TestASessionThatALostCallHasEndedIsEnded(t *testing.T) {
	gone := ruvdError(codes.NotFound, "SESSION_NOT_FOUND")
	current, next, client := pair(t)
	current.calls = []call{{err: broken}}
	next.calls = []call{{err: gone}, {err: gone}}
	if _, err := client.EndSession(t.Context(), &ruvdv1.EndSessionRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.EndSession(t.Context(), &ruvdv1.EndSessionRequest{}); err == nil {
		t.Fatal("a session that was not there is ended")
	}
}

// A call is tried at each address in four rounds, and ends with the error of the last attempt.
func TestACallIsTriedInFourRounds(t *testing.T) {
	current, next, client := pair(t)
	current.calls = slices.Repeat([]call{{err: broken}}, 5)
	next.calls = slices.Clone(current.calls)
	_, err := client.CreateSession(t.Context(), &ruvdv1.CreateSessionRequest{})
	if status.Code(err) != codes.Unavailable || len(current.calls) != 1 || len(next.calls) != 1 {
		t.Fatalf("ended with %v", err)
	}
}

// Another daemon may have the completion that is to be cancelled.
func TestACompletionIsCancelledWhereItIs(t *testing.T) {
	current, next, client := pair(t)
	current.cancels = notFound
	request := &ruvdv1.CancelCompletionRequest{CompletionId: "c-1"}
	if _, err := client.CancelCompletion(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	expect(t, received(next), []string{"other"})
	next.cancels = notFound
	_, err := client.CancelCompletion(t.Context(), request)
	if status.Code(err) != codes.NotFound {
		t.Fatalf("ended with %v", err)
	}
	expect(t, received(current), []string{"other", "other"}) // the client has not moved
}

// The items that a daemon has not answered are sent to the other one.
func TestUnfinishedItemsOfABatchAreSentElsewhere(t *testing.T) {
	current, next, client := pair(t)
	current.calls, next.calls = []call{{err: broken}}, []call{{}}
	batch := client.Batch(0, ruvd.Request("a"), ruvd.Request("b"), ruvd.Request("c"))
	var answers []string
	for outcome, err := range batch.Outcomes(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		answers = append(answers, outcome.Completion.GetFinished().GetMessage().GetContent())
	}
	expect(t, answers, []string{"a", "b", "c"})
	if batch.Summary().GetSucceeded() != 3 {
		t.Fatalf("summary %v", batch.Summary())
	}
	sent := request[*ruvdv1.BatchCompleteRequest](t, next)
	if len(sent.GetItems()) != 2 || sent.GetItems()[0].GetRequestId() == "" {
		t.Fatalf("sent %v", sent)
	}
}

// A caller that gives its call up says nothing about the daemon.
func TestACancelledCallDoesNotMoveTheClient(t *testing.T) {
	current, next, client := pair(t)
	current.calls = []call{{staysOpen: true}}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan *ruvd.Error)
	go func() {
		_, failure := texts(ctx, client.Complete("hi"))
		ended <- failure
	}()
	request[*ruvdv1.CompleteRequest](t, current)
	cancel()
	if failure := <-ended; failure == nil || failure.Code != codes.Canceled {
		t.Fatalf("ended with %v", failure)
	}
	request[*ruvdv1.CancelCompletionRequest](t, current)
	if _, err := client.CreateSession(t.Context(), &ruvdv1.CreateSessionRequest{}); err == nil {
		t.Fatal("the script has no further call")
	}
	request[*ruvdv1.CreateSessionRequest](t, current)
	request[*ruvdv1.CreateSessionRequest](t, next)
}

// A batch of more than one call's size is split.
func TestALargeBatchIsSplit(t *testing.T) {
	daemon, client := serve(t, call{}, call{})
	long := strings.Repeat("x", 2<<20)
	count := 0
	for outcome, err := range client.Batch(0, ruvd.Request(long), ruvd.Request(long)).Outcomes(t.Context()) {
		if err != nil || outcome.Index != count {
			t.Fatal(outcome, err)
		}
		count++
	}
	if count != 2 || len(received(daemon)) != 2 {
		t.Fatalf("%d outcomes", count)
	}
}

// Calls of a session carry its id, and those that the client makes by itself do, too.
func TestCallsOfASessionCarryItsID(t *testing.T) {
	daemon, client := serve(t,
		call{events: events(started(1)), err: broken},
		call{events: events(delta(2, "one ")), staysOpen: true},
	)
	daemon.headers = make(chan []string, 10)
	for range client.Complete("hello", ruvd.WithSession("ada")).Text(t.Context()) {
		break
	}
	if err := client.Close(); err != nil { // waits for the call that cancels
		t.Fatal(err)
	}
	for range 3 {
		select {
		case sent := <-daemon.headers:
			if !slices.Equal(sent, []string{"ada"}) {
				t.Fatalf("sent %v", sent)
			}
		case <-time.After(time.Minute):
			t.Fatal("no further call")
		}
	}
}

// The caller's own header is not doubled, and an id that is no valid one is left to the daemon.
func TestTheSessionHeaderIsSentOnce(t *testing.T) {
	daemon, client := serve(t)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-ruvd-session-id", "own")
	for _, one := range []struct {
		ctx    context.Context
		id     string
		wanted []string
	}{{t.Context(), "ada", []string{"ada"}}, {ctx, "ada", []string{"own"}}, {t.Context(), "schön", nil}} {
		_, _ = client.GetSession(one.ctx, &ruvdv1.GetSessionRequest{SessionId: one.id})
		sent := request[metadata.MD](t, daemon).Get("x-ruvd-session-id")
		if !slices.Equal(sent, one.wanted) {
			t.Errorf("%q is sent as %v", one.id, sent)
		}
	}
}
