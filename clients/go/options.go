package ruvd

import (
	"cmp"
	"crypto/rand"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

// Option sets something of a completion's request. There are functions for what is used most; a
// function literal sets any other field of CompleteRequest and its CompletionOptions, which are
// never nil here.
type Option func(*ruvdv1.CompleteRequest)

// Request is what Complete sends for text: an item of a batch. It has a request id of its own
// unless WithRequestID gives it one, so an item that is sent again is not generated twice.
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

// ToolResult is what came of a tool call: a message of the next turn, as is that of every other
// call.
func ToolResult(call *ruvdv1.ToolCall, content string) *ruvdv1.Message {
	return &ruvdv1.Message{
		Role: ruvdv1.Role_ROLE_TOOL, ToolCallId: call.GetId(), Content: content,
	}
}

// WithSession says in which session; one that does not exist is created.
func WithSession(sessionID string) Option {
	return func(r *ruvdv1.CompleteRequest) { r.SessionId = sessionID }
}

// WithMessages adds messages that come before the text.
func WithMessages(messages ...*ruvdv1.Message) Option {
	return func(r *ruvdv1.CompleteRequest) { r.Messages = append(r.Messages, messages...) }
}

// WithSystemPrompt says what the model is told first, in a stateless completion or a new session.
func WithSystemPrompt(prompt string) Option {
	return func(r *ruvdv1.CompleteRequest) { r.SystemPrompt = prompt }
}

// WithMaxTokens limits the tokens that are generated.
func WithMaxTokens(tokens int32) Option {
	return func(r *ruvdv1.CompleteRequest) { r.Options.MaxTokens = proto.Int32(tokens) }
}

// WithTools says what the model may ask the caller to do. Send the same with every turn of a
// session.
func WithTools(tools ...*ruvdv1.Tool) Option {
	return func(r *ruvdv1.CompleteRequest) { r.Options.Tools = append(r.Options.Tools, tools...) }
}

// WithRequestID replaces the random request id: the same id is never generated twice.
func WithRequestID(requestID string) Option {
	return func(r *ruvdv1.CompleteRequest) { r.RequestId = requestID }
}

// WithOnDisconnect says what happens when the last reader has gone. With ON_DISCONNECT_CONTINUE a
// completion that is left goes on and is committed.
func WithOnDisconnect(rule ruvdv1.OnDisconnect) Option {
	return func(r *ruvdv1.CompleteRequest) { r.OnDisconnect = rule }
}

// uuid is a random one (version 4).
func uuid() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails since Go 1.24
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}
