package ruvd

import (
	"context"

	"google.golang.org/grpc"

	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

// CreateSession creates a session before its first turn, for example to give it a system prompt,
// labels or a history.
func (c *Client) CreateSession(
	ctx context.Context, request *ruvdv1.CreateSessionRequest, options ...grpc.CallOption,
) (*ruvdv1.CreateSessionResponse, error) {
	return c.service.CreateSession(ctx, request, options...)
}

// UpdateSession changes the fields of a session that are set, or those of the update mask, after the
// turns before it. A field of the mask that is not set gets the daemon's default.
func (c *Client) UpdateSession(
	ctx context.Context, request *ruvdv1.UpdateSessionRequest, options ...grpc.CallOption,
) (*ruvdv1.UpdateSessionResponse, error) {
	return c.service.UpdateSession(ctx, request, options...)
}

// AppendMessages commits messages without generating an answer, after the turns before it.
func (c *Client) AppendMessages(
	ctx context.Context, request *ruvdv1.AppendMessagesRequest, options ...grpc.CallOption,
) (*ruvdv1.AppendMessagesResponse, error) {
	return c.service.AppendMessages(ctx, request, options...)
}

// ForkSession creates a session that starts with the first exchanges of another one.
func (c *Client) ForkSession(
	ctx context.Context, request *ruvdv1.ForkSessionRequest, options ...grpc.CallOption,
) (*ruvdv1.ForkSessionResponse, error) {
	return c.service.ForkSession(ctx, request, options...)
}

// CompactSession summarises the exchanges before the last ones, which later prompts no longer have.
func (c *Client) CompactSession(
	ctx context.Context, request *ruvdv1.CompactSessionRequest, options ...grpc.CallOption,
) (*ruvdv1.CompactSessionResponse, error) {
	return c.service.CompactSession(ctx, request, options...)
}

// EndSession deletes a session and its messages.
func (c *Client) EndSession(
	ctx context.Context, request *ruvdv1.EndSessionRequest, options ...grpc.CallOption,
) (*ruvdv1.EndSessionResponse, error) {
	return c.service.EndSession(ctx, request, options...)
}

// CancelCompletion stops any client's completion and returns when it has ended. With keep_partial, the
// part of the answer that was generated so far is committed.
func (c *Client) CancelCompletion(
	ctx context.Context, request *ruvdv1.CancelCompletionRequest, options ...grpc.CallOption,
) (*ruvdv1.CancelCompletionResponse, error) {
	return c.service.CancelCompletion(ctx, request, options...)
}

// ListModels returns the models that the engine offers, and the default model.
func (c *Client) ListModels(
	ctx context.Context, request *ruvdv1.ListModelsRequest, options ...grpc.CallOption,
) (*ruvdv1.ListModelsResponse, error) {
	return c.service.ListModels(ctx, request, options...)
}

// GetServerInfo returns the daemon's version, features, limits and engine.
func (c *Client) GetServerInfo(
	ctx context.Context, request *ruvdv1.GetServerInfoRequest, options ...grpc.CallOption,
) (*ruvdv1.GetServerInfoResponse, error) {
	return c.service.GetServerInfo(ctx, request, options...)
}

// GetSessionMetrics returns the daemon's measurements since it started.
func (c *Client) GetSessionMetrics(
	ctx context.Context, request *ruvdv1.GetSessionMetricsRequest, options ...grpc.CallOption,
) (*ruvdv1.GetSessionMetricsResponse, error) {
	return c.service.GetSessionMetrics(ctx, request, options...)
}
