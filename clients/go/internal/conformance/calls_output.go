package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	ruvd "github.com/ruvd/ruvd/clients/go"
	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

// printAnswer waits for the whole answer and prints it, or its error.
func printAnswer(answer *ruvd.Completion) {
	message, err := answer.Message(ctx)
	if err != nil {
		printError(err)
		return
	}
	finished := answer.Finished()
	line(
		"answer %s [%s] exchanges=%d", finishReason(finished), message.GetContent(),
		finished.GetExchangeCount(),
	)
	printCalls(message)
	printUsage(finished.GetUsage())
}

func printCalls(message *ruvdv1.Message) {
	for _, call := range message.GetToolCalls() {
		line("call %s %s %s", call.GetId(), call.GetName(), call.GetArguments())
	}
}

func printMessages(client *ruvd.Client, id string) {
	response, err := client.GetSession(ctx, &ruvdv1.GetSessionRequest{
		SessionId: id, View: ruvdv1.SessionView_SESSION_VIEW_FULL,
	})
	must(err)
	for _, message := range response.GetSession().GetMessages() {
		notes := ""
		if message.GetPinned() {
			notes = " pinned"
		}
		if of := message.GetToolCallId(); of != "" {
			notes += " of=" + of
		}
		role := strings.TrimPrefix(message.GetRole().String(), "ROLE_")
		line("message %s [%s]%s", role, message.GetContent(), notes)
		printCalls(message)
	}
}

func printSessionOr(err error, session *ruvdv1.Session) {
	if err != nil {
		printError(err)
		return
	}
	printSession(session)
}

func describeOr(err error, session *ruvdv1.Session) {
	if err != nil {
		printError(err)
		return
	}
	describe(session)
}

// describe prints all fields of a session but its messages.
func describe(session *ruvdv1.Session) {
	printSession(session)
	line("prompt [%s]", session.GetSystemPrompt())
	labels := session.GetLabels()
	pairs := []string{"labels"}
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		pairs = append(pairs, key+"="+labels[key])
	}
	line("%s", strings.Join(pairs, " "))
	window := session.GetContextWindow()
	line(
		"window keep=%s max=%s tokens=%s", optional(window.KeepExchanges),
		optional(window.MaxExchanges), optional(window.MaxTokens),
	)
	rendering := strings.TrimPrefix(window.GetRendering().String(), "RENDERING_")
	line("rendering %s first=%s", rendering, optional(window.KeepFirst))
	compaction := strings.TrimPrefix(window.GetCompaction().String(), "COMPACTION_")
	line("compaction %s at=%s", compaction, optional(window.CompactAt))
	line("instruction [%s]", session.GetCompactionInstruction())
	line("summary [%s] of=%d", session.GetSummary(), session.GetSummaryExchangeCount())
	line("compactions %d", session.GetCompactions())
	parent := session.GetParentId()
	if parent == "" {
		parent = "-"
	}
	line(
		"settings idle=%ds model=%s parent=%s", session.GetIdleTimeout().GetSeconds(),
		session.GetModel(), parent,
	)
	printUsage(session.GetUsage())
	line("create_time %s", word(session.GetCreateTime() != nil))
	line("last_used_time %s", word(session.GetLastUsedTime() != nil))
	line("expire_time %s", word(session.GetExpireTime() != nil))
}

func printUsage(usage *ruvdv1.Usage) {
	cached := "-"
	if usage != nil {
		cached = optional(usage.CachedTokens)
	}
	line(
		"usage prompt=%d cached=%s answer=%d", usage.GetPromptTokens(), cached,
		usage.GetCompletionTokens(),
	)
}

// optional returns the value, or - if it is not set.
func optional[T any](value *T) string {
	if value == nil {
		return "-"
	}
	return fmt.Sprint(*value)
}

func word(value bool) string {
	if value {
		return "yes"
	}
	return "no"
}
