// Conformance makes the calls of clients/CONFORMANCE.md with the client and prints the transcripts,
// which are the same in every language.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"

	ruvd "github.com/ruvd/ruvd/clients/go"
	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

var ctx = context.Background()

func main() {
	log.SetFlags(0)
	if len(os.Args) == 3 && os.Args[1] == "identity" {
		identity(os.Args[2])
		return
	}
	switch strings.Join(os.Args[1:], " ") {
	case "scenario":
		run(connect("RUVD_ADDRESS"), steps...)
	case "calls":
		run(connect("RUVD_ADDRESS"), callSteps...)
	case "restart":
		run(connect("RUVD_ADDRESS", ruvd.WithReconnect(time.Minute)), restart)
	case "failover":
		failover()
	default:
		log.Fatal("usage: conformance scenario|calls|restart|failover|identity WAY")
	}
}

func run(client *ruvd.Client, steps ...func(*ruvd.Client)) {
	for _, step := range steps {
		step(client)
	}
	must(client.Close())
}

func connect(variable string, options ...ruvd.ClientOption) *ruvd.Client {
	client, err := ruvd.New(append(options, ruvd.WithAddress(os.Getenv(variable)))...)
	must(err)
	return client
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func line(format string, values ...any) {
	_, err := fmt.Printf(format+"\n", values...)
	must(err)
}

// words returns w1 w2 ... wN.
func words(count int) string {
	list := make([]string, count)
	for i := range list {
		list[i] = fmt.Sprintf("w%d", i+1)
	}
	return strings.Join(list, " ")
}

// typed returns the client's error, which every error has to be.
func typed(err error) *ruvd.Error {
	var failure *ruvd.Error
	if !errors.As(err, &failure) {
		log.Fatalf("not a typed error: %v", err)
	}
	return failure
}

func codeOf(err error) string {
	return code.Code(typed(err).Code).String()
}

func reasonOf(err error) string {
	return cmp.Or(string(typed(err).Reason), "-")
}

func printError(err error) {
	retry := ""
	if after := typed(err).RetryAfter; after > 0 {
		retry = fmt.Sprintf(" retry=%dms", after.Milliseconds())
	}
	line("error %s %s%s", codeOf(err), reasonOf(err), retry)
	for _, violation := range typed(err).Violations {
		line("violation %s: %s", violation.Field, violation.Description)
	}
}

func printSession(session *ruvdv1.Session) {
	line(
		"session %s messages=%d exchanges=%d",
		session.GetId(), session.GetMessageCount(), session.GetExchangeCount(),
	)
}

func finishReason(finished *ruvdv1.Finished) string {
	return strings.TrimPrefix(finished.GetFinishReason().String(), "FINISH_REASON_")
}

// complete prints the texts of a completion, then its end.
func complete(client *ruvd.Client, text string, options ...ruvd.Option) {
	printTexts(client.Complete(text, options...))
}

func printTexts(answer *ruvd.Completion) {
	for text, err := range answer.Text(ctx) {
		if err != nil {
			printError(err)
			return
		}
		line("text [%s]", text)
	}
	line(
		"finished %s sequence=%d exchanges=%d",
		finishReason(answer.Finished()), answer.LastSequence(), answer.Finished().GetExchangeCount(),
	)
}

func printEvents(answer *ruvd.Completion) {
	for event, err := range answer.Events(ctx) {
		if err != nil {
			printError(err)
			return
		}
		switch {
		case event.GetStarted() != nil:
			line("event %d started", event.GetSequence())
		case event.GetDelta() != nil:
			line("event %d delta [%s]", event.GetSequence(), event.GetDelta().GetText())
		case event.GetFinished() != nil:
			line(
				"event %d finished %s [%s]", event.GetSequence(),
				finishReason(event.GetFinished()), event.GetFinished().GetMessage().GetContent(),
			)
		}
	}
}

func create(client *ruvd.Client, request *ruvdv1.CreateSessionRequest) *ruvdv1.Session {
	response, err := client.CreateSession(ctx, request)
	must(err)
	return response.GetSession()
}

// get prints a session or the error.
func get(client *ruvd.Client, id string) {
	response, err := client.GetSession(ctx, &ruvdv1.GetSessionRequest{SessionId: id})
	if err != nil {
		printError(err)
		return
	}
	printSession(response.GetSession())
}

// getWhenIdle waits until the session has no running completion, prints `idle`, then the session.
func getWhenIdle(client *ruvd.Client, id, idle string) {
	deadline := time.Now().Add(time.Minute)
	for {
		response, err := client.GetSession(ctx, &ruvdv1.GetSessionRequest{SessionId: id})
		must(err)
		session := response.GetSession()
		isIdle := session.GetRunningCompletionId() == ""
		if isIdle || time.Now().After(deadline) {
			if !isIdle {
				idle = "still running"
			}
			line("%s", idle)
			printSession(session)
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func restart(client *ruvd.Client) {
	answer := client.Complete(
		words(40), ruvd.WithSession("omega"),
		ruvd.WithOnDisconnect(ruvdv1.OnDisconnect_ON_DISCONNECT_CONTINUE),
	)
	answerText, failure := "", error(nil)
	for text, err := range answer.Text(ctx) {
		if failure = err; err != nil {
			break
		}
		if answerText == "" {
			line("ready")
		}
		answerText += text
	}
	if failure != nil {
		printError(failure)
	} else {
		line("text [%s]", answerText)
	}
	get(client, "omega")
}
