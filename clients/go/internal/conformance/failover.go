package main

import (
	"bufio"
	"os"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	ruvd "github.com/ruvd/ruvd/clients/go"
	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

// failover makes one call for each line of standard input and prints its result.
func failover() {
	client, err := ruvd.New()
	if err != nil {
		line("refused %s", strings.ReplaceAll(err.Error(), "\n", " "))
		return
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		verb, rest, _ := strings.Cut(lines.Text(), " ")
		if err := failoverCall(client, verb, rest); err != nil {
			printError(err)
		}
	}
	must(client.Close())
}

func failoverCall(client *ruvd.Client, verb, rest string) error {
	first, second, _ := strings.Cut(rest, " ")
	first = strings.TrimPrefix(first, "-")
	switch verb {
	case "complete", "collect":
		id, text, _ := strings.Cut(second, " ")
		options := []ruvd.Option{ruvd.WithSession(first), ruvd.WithRequestID(id)}
		if verb == "collect" {
			message, err := client.Complete(text, options...).Message(ctx)
			return printed(err, "collected [%s]", message.GetContent())
		}
		return failoverStream(client.Complete(text, options...))
	case "batch":
		return failoverBatch(client, strings.Fields(rest))
	case "create":
		made, err := client.CreateSession(ctx, &ruvdv1.CreateSessionRequest{SessionId: first})
		return printed(err, "created %s", made.GetSession().GetId())
	case "append":
		made, err := client.AppendMessages(ctx, &ruvdv1.AppendMessagesRequest{
			SessionId: first,
			Messages:  []*ruvdv1.Message{{Role: ruvdv1.Role_ROLE_USER, Content: second}},
		})
		return printed(err, "appended messages=%d", made.GetSession().GetMessageCount())
	case "update":
		_, err := client.UpdateSession(ctx, &ruvdv1.UpdateSessionRequest{
			SessionId: first, Labels: map[string]string{"value": second},
			UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels"}},
		})
		return printed(err, "updated")
	case "fork":
		made, err := client.ForkSession(ctx, &ruvdv1.ForkSessionRequest{
			SessionId: first, NewSessionId: second,
		})
		return printed(err, "forked exchanges=%d", made.GetSession().GetExchangeCount())
	case "get":
		found, err := client.GetSession(ctx, &ruvdv1.GetSessionRequest{SessionId: first})
		if err == nil {
			printSession(found.GetSession())
		}
		return err
	case "end":
		_, err := client.EndSession(ctx, &ruvdv1.EndSessionRequest{SessionId: first})
		return printed(err, "ended")
	case "models":
		_, err := client.ListModels(ctx, &ruvdv1.ListModelsRequest{})
		return printed(err, "models ok")
	case "cancel":
		_, err := client.CancelCompletion(
			ctx, &ruvdv1.CancelCompletionRequest{SessionId: first, RequestId: second},
		)
		return printed(err, "cancelled")
	}
	line("unknown call %s", verb)
	return nil
}

// printed prints a line unless the call has failed, and returns its error.
func printed(err error, format string, values ...any) error {
	if err == nil {
		line(format, values...)
	}
	return err
}

func failoverStream(answer *ruvd.Completion) error {
	for text, err := range answer.Text(ctx) {
		if err != nil {
			return err
		}
		line("text [%s]", text)
	}
	end := answer.Finished()
	line("finished %s exchanges=%d", finishReason(end), end.GetExchangeCount())
	return nil
}

func failoverBatch(client *ruvd.Client, words []string) error {
	var items []*ruvdv1.CompleteRequest
	for _, word := range words {
		items = append(items, ruvd.Request(word))
	}
	var outcomes []*ruvd.Outcome
	for outcome, err := range client.Batch(0, items...).Outcomes(ctx) {
		if err != nil {
			return err
		}
		outcomes = append(outcomes, outcome)
	}
	printOutcomes(outcomes)
	return nil
}

func printOutcomes(outcomes []*ruvd.Outcome) {
	slices.SortFunc(outcomes, func(a, b *ruvd.Outcome) int { return a.Index - b.Index })
	for _, outcome := range outcomes {
		if err := outcome.Err; err != nil {
			line("item %d error %s %s", outcome.Index, codeOf(err), reasonOf(err))
			continue
		}
		line("item %d [%s]", outcome.Index, outcome.Completion.GetFinished().GetMessage().GetContent())
	}
}
