package ruvd

import (
	"cmp"
	"crypto/rand"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

// Option sets fields of a completion's request. There are functions for the most common fields; a
// function literal can set any other field of CompleteRequest and of its CompletionOptions, which
// are never nil here.
type Option func(*ruvdv1.CompleteRequest)

// Request returns the request that Complete sends for text, as an item of a batch. It gets a random
// request id, unless WithRequestID sets one, so an item that is sent again is not generated twice.
func Request(text string, options ...Option) *ruvdv1.CompleteRequest {
	request := &ruvdv1.CompleteRequest{Options: &ruvdv1.CompletionOptions{}}
	for _, option := range options {
		option(request)
	}
	if text != "" {
		request.Messages = append(request.Messages, &ruvdv1.Message{
			Role: ruvdv1.Role_ROLE_USER, Content: text,
		})
	}
	request.RequestId = cmp.Or(request.RequestId, uuid())
	return request
}

// ToolResult returns the message with a tool call's result, for the next turn.
func ToolResult(call *ruvdv1.ToolCall, content string) *ruvdv1.Message {
	return &ruvdv1.Message{
		Role: ruvdv1.Role_ROLE_TOOL, ToolCallId: call.GetId(), Content: content,
	}
}

// WithSession sets the session, which is created if it does not exist.
func WithSession(sessionID string) Option {
	return func(r *ruvdv1.CompleteRequest) { r.SessionId = sessionID }
}

// WithRecreateIfGone creates the session anew if it was evicted or has expired. Without it, the
// completion fails with SESSION_EVICTED or SESSION_EXPIRED.
func WithRecreateIfGone() Option {
	return func(r *ruvdv1.CompleteRequest) { r.RecreateIfGone = true }
}

// WithMessages adds messages before the text.
func WithMessages(messages ...*ruvdv1.Message) Option {
	return func(r *ruvdv1.CompleteRequest) { r.Messages = append(r.Messages, messages...) }
}

// WithSystemPrompt sets the system prompt of a stateless completion or a new session.
func WithSystemPrompt(prompt string) Option {
	return func(r *ruvdv1.CompleteRequest) { r.SystemPrompt = prompt }
}

// WithMaxTokens limits the number of generated tokens.
func WithMaxTokens(tokens int32) Option {
	return func(r *ruvdv1.CompleteRequest) { r.Options.MaxTokens = proto.Int32(tokens) }
}

// WithTools adds functions that the model may call. Send the same ones with every turn of a session.
func WithTools(tools ...*ruvdv1.Tool) Option {
	return func(r *ruvdv1.CompleteRequest) { r.Options.Tools = append(r.Options.Tools, tools...) }
}

// WithRequestID replaces the random request id. An answer with the same id is never generated twice.
func WithRequestID(requestID string) Option {
	return func(r *ruvdv1.CompleteRequest) { r.RequestId = requestID }
}

// WithOnDisconnect sets the behaviour when the last reader has disconnected. With
// ON_DISCONNECT_CONTINUE a completion that its caller leaves continues and is committed.
func WithOnDisconnect(rule ruvdv1.OnDisconnect) Option {
	return func(r *ruvdv1.CompleteRequest) { r.OnDisconnect = rule }
}

// uuid returns a random UUID (version 4).
func uuid() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails since Go 1.24
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}
