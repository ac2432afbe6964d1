package main

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	ruvd "github.com/ruvd/ruvd/clients/go"
	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

func callCreate(client *ruvd.Client) {
	line("# create")
	request := &ruvdv1.CreateSessionRequest{
		SessionId:    "alpha",
		SystemPrompt: "Be brief.",
		Messages: []*ruvdv1.Message{
			{Role: ruvdv1.Role_ROLE_USER, Content: "one", Pinned: true},
			{Role: ruvdv1.Role_ROLE_ASSISTANT, Content: "uno"},
			{Role: ruvdv1.Role_ROLE_USER, Content: "two"},
			{Role: ruvdv1.Role_ROLE_ASSISTANT, Content: "dos"},
		},
		Labels:                map[string]string{"user": "ada", "team": "a"},
		ContextWindow:         window(1, 4),
		IdleTimeout:           durationpb.New(10 * time.Minute),
		Model:                 "echo",
		RequestId:             "create-1",
		CompactionInstruction: "Keep numbers.",
		Summary:               "uno came first",
		SummaryExchangeCount:  proto.Int64(1),
	}
	describe(create(client, request))
	printSession(create(client, request))
	other := proto.CloneOf(request)
	other.Labels = nil
	_, err := client.CreateSession(ctx, other)
	printError(err)
	_, err = client.CreateSession(ctx, &ruvdv1.CreateSessionRequest{SessionId: "alpha"})
	printError(err)
	made := create(client, &ruvdv1.CreateSessionRequest{})
	line("made %s", word(made.GetId() != ""))
	_, err = client.EndSession(ctx, &ruvdv1.EndSessionRequest{SessionId: made.GetId()})
	must(err)
}

func callGet(client *ruvd.Client) {
	line("# get")
	printMessages(client, "alpha")
	response, err := client.GetSession(ctx, &ruvdv1.GetSessionRequest{SessionId: "alpha"})
	must(err)
	line("messages %d", len(response.GetSession().GetMessages()))
	get(client, "nobody")
}

func callList(client *ruvd.Client) {
	line("# list")
	for number := 1; number <= 105; number++ {
		create(client, &ruvdv1.CreateSessionRequest{
			SessionId: fmt.Sprintf("p%d", number), Labels: map[string]string{"page": "yes"},
		})
	}
	for _, labels := range []map[string]string{
		{"page": "yes"}, {"team": "a", "user": "ada"}, {"team": "none"},
	} {
		var found []string
		request := &ruvdv1.ListSessionsRequest{LabelFilter: labels}
		for session, err := range client.ListSessions(ctx, request) {
			must(err)
			found = append(found, session.GetId())
		}
		if len(found) == 0 {
			line("listed 0")
		} else {
			line("listed %d %s %s", len(found), found[0], found[len(found)-1])
		}
	}
}

func callUpdate(client *ruvd.Client) {
	line("# update")
	for _, request := range []*ruvdv1.UpdateSessionRequest{
		{
			SessionId:             "alpha",
			Labels:                map[string]string{"team": "b"},
			IdleTimeout:           durationpb.New(5 * time.Minute),
			ContextWindow:         window(2, 6),
			CompactionInstruction: "Keep names.",
		},
		{
			SessionId: "alpha",
			UpdateMask: &fieldmaskpb.FieldMask{
				Paths: []string{"idle_timeout", "compaction_instruction"},
			},
		},
		{SessionId: "nobody", Labels: map[string]string{"a": "b"}},
	} {
		response, err := client.UpdateSession(ctx, request)
		describeOr(err, response.GetSession())
	}
}

func callAppend(client *ruvd.Client) {
	line("# append")
	for _, text := range []string{"three", "three", "other"} {
		response, err := client.AppendMessages(ctx, &ruvdv1.AppendMessagesRequest{
			SessionId: "alpha", Messages: userMessage(text), RequestId: "append-1",
		})
		printSessionOr(err, response.GetSession())
	}
	response, err := client.AppendMessages(ctx, &ruvdv1.AppendMessagesRequest{
		SessionId:            "alpha",
		Messages:             []*ruvdv1.Message{{Role: ruvdv1.Role_ROLE_ASSISTANT, Content: "tres"}},
		Summary:              "uno, then dos",
		SummaryExchangeCount: proto.Int64(2),
	})
	describeOr(err, response.GetSession())
	_, err = client.AppendMessages(ctx, &ruvdv1.AppendMessagesRequest{
		SessionId: "nobody", Messages: userMessage("hi"),
	})
	printError(err)
}

func callFork(client *ruvd.Client) {
	line("# fork")
	request := &ruvdv1.ForkSessionRequest{
		SessionId: "alpha", ExchangeCount: proto.Int64(1), NewSessionId: "alpha-fork",
		RequestId: "fork-1",
	}
	response, err := client.ForkSession(ctx, request)
	describeOr(err, response.GetSession())
	for _, request := range []*ruvdv1.ForkSessionRequest{
		request,
		{SessionId: "alpha", NewSessionId: "alpha"},
		{SessionId: "alpha", ExchangeCount: proto.Int64(99)},
		{SessionId: "nobody"},
	} {
		response, err := client.ForkSession(ctx, request)
		printSessionOr(err, response.GetSession())
	}
}

func callCompact(client *ruvd.Client) {
	line("# compact")
	request := &ruvdv1.CreateSessionRequest{
		SessionId: "beta",
		ContextWindow: &ruvdv1.ContextWindow{
			KeepExchanges: proto.Int32(1), MaxExchanges: proto.Int32(10),
		},
	}
	for number := 1; number <= 3; number++ {
		question, answer := fmt.Sprintf("question %d", number), fmt.Sprintf("answer %d", number)
		request.Messages = append(
			request.Messages,
			&ruvdv1.Message{Role: ruvdv1.Role_ROLE_USER, Content: question},
			&ruvdv1.Message{Role: ruvdv1.Role_ROLE_ASSISTANT, Content: answer},
		)
	}
	create(client, request)
	for _, dryRun := range []bool{true, false} {
		done, err := client.CompactSession(
			ctx, &ruvdv1.CompactSessionRequest{SessionId: "beta", DryRun: dryRun},
		)
		must(err)
		line(
			"compaction exchanges=%d kept=%d before=%d after=%s", done.GetSummarizedExchanges(),
			done.GetKeptExchanges(), done.GetBytesBefore(), word(done.BytesAfter != nil),
		)
		session := done.GetSession()
		line("summary %s of=%d", word(session.GetSummary() != ""), session.GetSummaryExchangeCount())
		line("compactions %d usage=%s", session.GetCompactions(), word(done.GetUsage() != nil))
	}
	again, err := client.CompactSession(ctx, &ruvdv1.CompactSessionRequest{SessionId: "beta"})
	must(err)
	line("again exchanges=%d", again.GetSummarizedExchanges())
	_, err = client.CompactSession(ctx, &ruvdv1.CompactSessionRequest{SessionId: "nobody"})
	printError(err)
}

func window(keep, maximum int32) *ruvdv1.ContextWindow {
	return &ruvdv1.ContextWindow{
		KeepExchanges: proto.Int32(keep),
		MaxExchanges:  proto.Int32(maximum),
		MaxTokens:     proto.Int32(100),
		Rendering:     ruvdv1.Rendering_RENDERING_MESSAGES,
		Compaction:    ruvdv1.Compaction_COMPACTION_NONE,
		KeepFirst:     proto.Int32(1),
		CompactAt:     proto.Float64(0.5),
	}
}

func userMessage(text string) []*ruvdv1.Message {
	return []*ruvdv1.Message{{Role: ruvdv1.Role_ROLE_USER, Content: text}}
}
