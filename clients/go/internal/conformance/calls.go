package main

import (
	"iter"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	ruvd "github.com/ruvd/ruvd/clients/go"
	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

const jsonSchema = `{"type": "object", "properties": {"name": {"type": "string"}}}`

// callSteps make every call of the service with all of its fields.
var callSteps = []func(*ruvd.Client){
	callCreate, callGet, callList, callUpdate, callAppend, callFork, callCompact, callComplete,
	callTools, callFormats, callResume, callCancel, callBatch, callEnd, callServer, callMetrics,
	callNobody,
}

func callComplete(client *ruvd.Client) {
	line("# complete")
	answer := client.Complete("four five six", ruvd.WithSession("alpha"))
	printAnswer(answer)
	started := answer.Started()
	line(
		"started created=%s trimmed=%s summarized=%s", word(started.GetSessionCreated()),
		word(started.GetContextTrimmed()), word(started.GetContextSummarized()),
	)
	line(
		"started session=%s model=%s sent=%d", started.GetSessionId(), started.GetModel(),
		started.GetContextMessages(),
	)
	body, err := structpb.NewStruct(map[string]any{"top_k": 40})
	must(err)
	printAnswer(client.Complete("one two three", func(r *ruvdv1.CompleteRequest) {
		r.Options = &ruvdv1.CompletionOptions{
			Model:            "echo",
			Temperature:      proto.Float64(0.5),
			TopP:             proto.Float64(0.9),
			MaxTokens:        proto.Int32(2),
			Stop:             []string{"never"},
			Seed:             proto.Int64(7),
			BypassCache:      true,
			FrequencyPenalty: proto.Float64(0.5),
			PresencePenalty:  proto.Float64(-0.5),
			LogitBias:        map[int32]float64{5: -1},
			ExtraBody:        body,
		}
	}))
	gamma := ruvd.WithSession("gamma")
	grace := func(r *ruvdv1.CompleteRequest) { r.DisconnectGrace = durationpb.New(time.Second) }
	printAnswer(client.Complete(
		"seven", gamma, ruvd.WithSystemPrompt("New."), ruvd.WithRecreateIfGone(), grace,
	))
	printAnswer(client.Complete("eight", gamma, ruvd.WithSystemPrompt("Other.")))
	existing := func(r *ruvdv1.CompleteRequest) { r.RequireExisting = true }
	printAnswer(client.Complete("nine", ruvd.WithSession("nobody"), existing))
}

func callTools(client *ruvd.Client) {
	line("# tools")
	weather := &ruvdv1.Tool{
		Name: "weather", Description: "The weather.", Parameters: `{"type": "object"}`,
		Strict: proto.Bool(false),
	}
	session, tools := ruvd.WithSession("delta"), func(r *ruvdv1.CompleteRequest) {
		r.Options.Tools = []*ruvdv1.Tool{weather}
		r.Options.ParallelToolCalls = proto.Bool(false)
	}
	answer := client.Complete("in Oslo", session, tools, func(r *ruvdv1.CompleteRequest) {
		r.Options.ToolChoice = &ruvdv1.ToolChoice{
			Choice: &ruvdv1.ToolChoice_Function{Function: "weather"},
		}
	})
	printAnswer(answer)
	var results []*ruvdv1.Message
	for _, call := range answer.Finished().GetMessage().GetToolCalls() {
		results = append(results, ruvd.ToolResult(call, "12 degrees"))
	}
	printAnswer(client.Complete("", session, tools, ruvd.WithMessages(results...)))
	printAnswer(client.Complete("weather", session, tools, func(r *ruvdv1.CompleteRequest) {
		r.Options.ToolChoice = &ruvdv1.ToolChoice{
			Choice: &ruvdv1.ToolChoice_Mode{Mode: ruvdv1.ToolChoiceMode_TOOL_CHOICE_MODE_NONE},
		}
	}))
	printMessages(client, "delta")
}

func callFormats(client *ruvd.Client) {
	line("# formats")
	for _, format := range []*ruvdv1.ResponseFormat{
		{JsonObject: true},
		{JsonSchema: jsonSchema, Name: "person", Strict: proto.Bool(true)},
	} {
		printAnswer(client.Complete("ada", func(r *ruvdv1.CompleteRequest) {
			r.Options.ResponseFormat = format
		}))
	}
}

func callResume(client *ruvd.Client) {
	line("# resume")
	answer := client.Complete(
		"one two three", ruvd.WithSession("epsilon"), ruvd.WithRequestID("resume-1"),
	)
	printAnswer(answer)
	id := answer.Started().GetCompletionId()
	for _, request := range []*ruvdv1.ResumeCompletionRequest{
		{CompletionId: id},
		{SessionId: "epsilon", RequestId: "resume-1"},
		{CompletionId: id, AfterSequence: answer.LastSequence() - 1},
		{CompletionId: "nobody"},
	} {
		printAnswer(client.ResumeCompletion(request))
	}
}

func callCancel(client *ruvd.Client) {
	line("# cancel")
	text, session := words(2000), ruvd.WithSession("zeta")
	answer := client.Complete(text, session, ruvd.WithRequestID("cancel-1"))
	err := cancelAfterText(client, answer, func() *ruvdv1.CancelCompletionRequest {
		return &ruvdv1.CancelCompletionRequest{
			SessionId: "zeta", RequestId: "cancel-1", KeepPartial: true,
		}
	})
	must(err)
	finished := answer.Finished()
	line("finished %s exchanges=%d", finishReason(finished), finished.GetExchangeCount())
	length := len(finished.GetMessage().GetContent())
	line("partial %s", word(0 < length && length < len(text)))

	answer = client.Complete(text, session)
	byID := func() *ruvdv1.CancelCompletionRequest {
		return &ruvdv1.CancelCompletionRequest{CompletionId: answer.Started().GetCompletionId()}
	}
	printError(cancelAfterText(client, answer, byID))
	_, err = client.CancelCompletion(ctx, byID())
	must(err)
	line("cancelled")
	get(client, "zeta")
	_, err = client.CancelCompletion(ctx, &ruvdv1.CancelCompletionRequest{CompletionId: "nobody"})
	printError(err)
}

// cancelAfterText reads the first text, cancels the completion and returns its error.
func cancelAfterText(
	client *ruvd.Client, answer *ruvd.Completion, request func() *ruvdv1.CancelCompletionRequest,
) error {
	next, stop := iter.Pull2(answer.Text(ctx))
	defer stop()
	_, err, more := next()
	must(err)
	_, err = client.CancelCompletion(ctx, request())
	must(err)
	for more && err == nil {
		_, err, more = next()
	}
	return err
}

func callBatch(client *ruvd.Client) {
	line("# batch")
	hot := func(r *ruvdv1.CompleteRequest) { r.Options.Temperature = proto.Float64(3) }
	batch := client.Batch(
		2,
		ruvd.Request("a"),
		ruvd.Request("!fault ENGINE_REJECTED"),
		ruvd.Request("b", ruvd.WithSession("eta")),
		ruvd.Request("c", ruvd.WithSession("eta")),
		ruvd.Request("too hot", hot),
	)
	printOutcomes(outcomes(batch))
	printSummary(batch)
	get(client, "eta")

	var items []*ruvdv1.CompleteRequest
	for range 5 {
		items = append(items, ruvd.Request(strings.Repeat("x", 1_000_000)))
	}
	batch = client.Batch(2, items...)
	for _, outcome := range outcomes(batch) {
		must(outcome.Err)
		content := outcome.Completion.GetFinished().GetMessage().GetContent()
		line("item %d bytes=%d", outcome.Index, len(content))
	}
	printSummary(batch)
	for _, err := range client.Batch(-1, ruvd.Request("a")).Outcomes(ctx) {
		printError(err)
	}
}

// outcomes returns the outcomes of a batch in the order of its items.
func outcomes(batch *ruvd.Batch) []*ruvd.Outcome {
	var all []*ruvd.Outcome
	for outcome, err := range batch.Outcomes(ctx) {
		must(err)
		all = append(all, outcome)
	}
	slices.SortFunc(all, func(a, b *ruvd.Outcome) int { return a.Index - b.Index })
	return all
}

func printSummary(batch *ruvd.Batch) {
	summary := batch.Summary()
	line(
		"summary succeeded=%d failed=%d prompt=%d answer=%d", summary.GetSucceeded(),
		summary.GetFailed(), summary.GetUsage().GetPromptTokens(),
		summary.GetUsage().GetCompletionTokens(),
	)
}

func callEnd(client *ruvd.Client) {
	line("# end")
	_, err := client.AppendMessages(ctx, &ruvdv1.AppendMessagesRequest{
		SessionId: "alpha", Messages: userMessage("bye"),
	})
	must(err)
	response, err := client.GetSession(ctx, &ruvdv1.GetSessionRequest{SessionId: "alpha"})
	describeOr(err, response.GetSession())
	for _, request := range []*ruvdv1.EndSessionRequest{
		{SessionId: "alpha"}, {SessionId: "alpha"}, {SessionId: "alpha", AllowMissing: true},
	} {
		if _, err := client.EndSession(ctx, request); err != nil {
			printError(err)
		} else {
			line("ended")
		}
	}
}

func callServer(client *ruvd.Client) {
	line("# server")
	models, err := client.ListModels(ctx, &ruvdv1.ListModelsRequest{})
	must(err)
	line("models %s default=%s", strings.Join(models.GetModels(), " "), models.GetDefaultModel())
	info, err := client.GetServerInfo(ctx, &ruvdv1.GetServerInfoRequest{})
	must(err)
	line("info version=%s instance=%s", word(info.GetVersion() != ""), word(info.GetInstanceId() != ""))
	for _, feature := range []string{
		"batch", "compaction", "resume", "sessions", "structured_output", "tools",
	} {
		line("feature %s %s", feature, word(slices.Contains(info.GetFeatures(), feature)))
	}
	limits := info.GetLimits()
	line("limit max_request_bytes %d", limits.GetMaxRequestBytes())
	line("limit max_message_bytes %d", limits.GetMaxMessageBytes())
	line("limit max_messages %d", limits.GetMaxMessages())
	line("limit max_session_bytes %d", limits.GetMaxSessionBytes())
	line("limit max_sessions %d", limits.GetMaxSessions())
	line("limit max_inflight %d", limits.GetMaxInflight())
	line("limit max_batch_items %d", limits.GetMaxBatchItems())
	line("limit max_answer_bytes %d", limits.GetMaxAnswerBytes())
	line("limit max_output_tokens %s", optional(limits.MaxOutputTokens))
	line("limit idle_timeout %ds", limits.GetIdleTimeout().GetSeconds())
	line("limit completion_retention %ds", limits.GetCompletionRetention().GetSeconds())
	for _, engine := range info.GetEngines() {
		line(
			"engine %s ready=%s default=%s models=%s tokens=%s slots=%s", engine.GetName(),
			word(engine.GetReady()), engine.GetDefaultModel(), strings.Join(engine.GetModels(), " "),
			optional(engine.WindowTokens), optional(engine.Slots),
		)
	}
	printHealth(client)
}

func callMetrics(client *ruvd.Client) {
	line("# metrics")
	response, err := client.GetSessionMetrics(ctx, &ruvdv1.GetSessionMetricsRequest{})
	must(err)
	found := response.GetMetrics()
	line("sessions total=%d active=%d", found.GetTotalSessions(), found.GetActiveSessions())
	line(
		"completions %d stateless=%d", found.GetSessionCompletions(), found.GetStatelessCompletions(),
	)
	line("messages average=%.2f", found.GetAvgMessagesPerSession())
	line("measured cache_hit_rate %s", word(found.CacheHitRate != nil))
	line("measured avg_session_latency %s", word(found.GetAvgSessionLatency() != nil))
	line("measured avg_stateless_latency %s", word(found.GetAvgStatelessLatency() != nil))
	line("measured avg_latency_reduction %s", word(found.AvgLatencyReduction != nil))
	line("measured avg_prefill_reduction %s", word(found.AvgPrefillReduction != nil))
}

func callNobody(*ruvd.Client) {
	nobody := connect("RUVD_NOBODY")
	printHealth(nobody)
	must(nobody.Close())
}

func printHealth(client *ruvd.Client) {
	ready, err := client.Health(ctx)
	must(err)
	line("health %s", word(ready))
}
