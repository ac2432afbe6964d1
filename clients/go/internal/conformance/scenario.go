package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	ruvd "github.com/ruvd/ruvd/clients/go"
	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

var steps = []func(*ruvd.Client){
	sessions, stream, unicode, requestID, cuts, cancel, busy, faults, wrongFields, tooLarge, fork,
	longHistory, batch, deadline, models, nobody,
}

func sessions(client *ruvd.Client) {
	line("# sessions")
	printSession(create(client, &ruvdv1.CreateSessionRequest{
		SessionId: "alpha", SystemPrompt: "Be brief.", Labels: map[string]string{"team": "a"},
	}))
	complete(client, "one two three", ruvd.WithSession("alpha"))
	complete(client, "four", ruvd.WithSession("alpha"))
	response, err := client.GetSession(ctx, &ruvdv1.GetSessionRequest{
		SessionId: "alpha", View: ruvdv1.SessionView_SESSION_VIEW_FULL,
	})
	must(err)
	printSession(response.GetSession())
	for _, message := range response.GetSession().GetMessages() {
		role := strings.TrimPrefix(message.GetRole().String(), "ROLE_")
		line("message %s [%s]", role, message.GetContent())
	}
	for session, err := range client.ListSessions(ctx, nil) {
		must(err)
		line("listed %s", session.GetId())
	}
	end := &ruvdv1.EndSessionRequest{SessionId: "alpha"}
	_, err = client.EndSession(ctx, end)
	must(err)
	line("ended")
	get(client, "alpha")
	if _, err := client.EndSession(ctx, end); err != nil {
		printError(err)
	}
}

func stream(client *ruvd.Client) {
	line("# stream")
	printEvents(client.Complete("alpha beta gamma"))
}

func unicode(client *ruvd.Client) {
	line("# unicode")
	complete(client, "Grüße aus Köln")
	complete(client, "世界 👩‍🚀 ok")
	complete(client, "नमस्ते दुनिया")
	complete(client, "e\u0301 A\u030A")
}

func requestID(client *ruvd.Client) {
	line("# request id")
	for _, text := range []string{"once only", "once only", "other"} {
		complete(client, text, ruvd.WithSession("beta"), ruvd.WithRequestID("r-1"))
	}
	get(client, "beta")
}

func cuts(client *ruvd.Client) {
	line("# cut after the third event")
	third := connect("RUVD_CUT_THIRD")
	printEvents(third.Complete("a b c d e f", ruvd.WithSession("gamma")))
	get(third, "gamma")
	must(third.Close())

	line("# cut always")
	always := connect("RUVD_CUT_ALWAYS")
	complete(always, "a b c d e f g h", ruvd.WithSession("delta"))
	get(always, "delta")
	must(always.Close())

	line("# cut before the first event")
	first := connect("RUVD_CUT_FIRST")
	complete(first, "x y z", ruvd.WithSession("epsilon"))
	get(client, "epsilon")
	must(first.Close())
}

func cancel(client *ruvd.Client) {
	line("# cancel")
	create(client, &ruvdv1.CreateSessionRequest{SessionId: "zeta"})
	cancellable, cancel := context.WithCancel(ctx)
	defer cancel()
	texts := 0
	answer := client.Complete(words(200), ruvd.WithSession("zeta"))
	for text, err := range answer.Text(cancellable) {
		if texts == 3 && errors.Is(err, context.Canceled) {
			break
		}
		must(err)
		line("text [%s]", text)
		if texts++; texts == 3 {
			cancel()
		}
	}
	getWhenIdle(client, "zeta", "cancelled")
}

func busy(client *ruvd.Client) {
	line("# busy")
	create(client, &ruvdv1.CreateSessionRequest{SessionId: "eta"})
	next, stop := iter.Pull2(client.Complete(words(200), ruvd.WithSession("eta")).Text(ctx))
	defer stop()
	_, err, _ := next()
	must(err)
	reject := func(r *ruvdv1.CompleteRequest) { r.IfBusy = ruvdv1.IfBusy_IF_BUSY_REJECT }
	complete(client, "no", ruvd.WithSession("eta"), reject)
	interrupt := func(r *ruvdv1.CompleteRequest) { r.IfBusy = ruvdv1.IfBusy_IF_BUSY_INTERRUPT }
	complete(client, "mine", ruvd.WithSession("eta"), interrupt)
	for more := true; more && err == nil; {
		_, err, more = next()
	}
	printError(err)
	get(client, "eta")
}

func faults(client *ruvd.Client) {
	line("# errors")
	values := ruvdv1.ErrorReason(0).Descriptor().Values()
	for i := 1; i < values.Len(); i++ {
		reason := strings.TrimPrefix(string(values.Get(i).Name()), "ERROR_REASON_")
		line("fault %s", reason)
		complete(client, "!fault "+reason)
	}
	line("# error after text")
	complete(client, "!fault ENGINE_UNAVAILABLE one two", ruvd.WithSession("theta"))
	get(client, "theta")
}

func wrongFields(client *ruvd.Client) {
	line("# wrong fields")
	hot := func(r *ruvdv1.CompleteRequest) { r.Options.Temperature = proto.Float64(3) }
	complete(client, "hi", ruvd.WithSession("no spaces"), hot)
}

func tooLarge(client *ruvd.Client) {
	line("# too large")
	complete(client, strings.Repeat("x", 5<<20))
}

func longHistory(client *ruvd.Client) {
	line("# long history")
	request := &ruvdv1.CreateSessionRequest{SessionId: "mu"}
	for number := 1; number <= 1000; number++ {
		request.Messages = append(request.Messages, &ruvdv1.Message{
			Role: ruvdv1.Role_ROLE_USER, Content: fmt.Sprintf("m%d", number),
		})
	}
	create(client, request)
	complete(client, "end", ruvd.WithSession("mu"))
	response, err := client.GetSession(ctx, &ruvdv1.GetSessionRequest{
		SessionId: "mu", View: ruvdv1.SessionView_SESSION_VIEW_FULL,
	})
	must(err)
	printSession(response.GetSession())
	messages := response.GetSession().GetMessages()
	first, last := messages[0].GetContent(), messages[len(messages)-1].GetContent()
	line("history %d [%s] [%s]", len(messages), first, last)
}

func fork(client *ruvd.Client) {
	line("# fork")
	complete(client, "first", ruvd.WithSession("iota"))
	complete(client, "second", ruvd.WithSession("iota"))
	response, err := client.ForkSession(ctx, &ruvdv1.ForkSessionRequest{
		SessionId: "iota", ExchangeCount: proto.Int64(1), NewSessionId: "iota-fork",
	})
	must(err)
	printSession(response.GetSession())
	complete(client, "third", ruvd.WithSession("iota-fork"))
	get(client, "iota")
	get(client, "iota-fork")
}

func batch(client *ruvd.Client) {
	line("# batch")
	batch := client.Batch(
		0,
		ruvd.Request("b0"),
		ruvd.Request("!fault ENGINE_REJECTED"),
		ruvd.Request("b2", ruvd.WithSession("kappa")),
		ruvd.Request("b3", ruvd.WithSession("kappa")),
	)
	var outcomes []*ruvd.Outcome
	for outcome, err := range batch.Outcomes(ctx) {
		must(err)
		outcomes = append(outcomes, outcome)
	}
	printOutcomes(outcomes)
	line("summary succeeded=%d failed=%d", batch.Summary().GetSucceeded(), batch.Summary().GetFailed())
	get(client, "kappa")
}

func deadline(client *ruvd.Client) {
	line("# deadline")
	create(client, &ruvdv1.CreateSessionRequest{SessionId: "lambda"})
	limited, cancel := context.WithTimeout(ctx, 400*time.Millisecond)
	defer cancel()
	if _, err := client.Complete(words(200), ruvd.WithSession("lambda")).Message(limited); err != nil {
		line("error %s", codeOf(err))
	}
	getWhenIdle(client, "lambda", "over")
}

func models(client *ruvd.Client) {
	line("# models")
	models, err := client.ListModels(ctx, &ruvdv1.ListModelsRequest{})
	must(err)
	for _, name := range models.GetModels() {
		line("model %s", name)
	}
	line("default %s", models.GetDefaultModel())
}

func nobody(*ruvd.Client) {
	line("# nobody there")
	nobody := connect("RUVD_NOBODY")
	if _, err := nobody.ListModels(ctx, &ruvdv1.ListModelsRequest{}); err != nil {
		line("error %s %s", codeOf(err), reasonOf(err))
	}
	limited, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	if _, err := nobody.Complete("hi").Message(limited); err != nil {
		line("error %s %s", codeOf(err), reasonOf(err))
	}
	must(nobody.Close())
}
