// Package ruvd is the Go client of ruvd, a sidecar daemon that keeps the conversation between a
// service and its LLM engine, so that the service sends only the new message.
//
// A [Client] connects at its first call and is safe for concurrent use. It has a method for each call
// of ruvd.v1.SessionService, whose messages are in package ruvdv1. [Client.Complete],
// [Client.ResumeCompletion], [Client.Batch], [Client.GetSession], [Client.ListSessions] and
// [Client.Health] may make several calls. The error of every call is an [*Error].
package ruvd

import (
	"cmp"
	"context"
	_ "embed" // the service config
	"errors"
	"iter"
	"os"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

// DefaultAddress is the daemon's address if neither WithAddress nor RUVD_ADDRESS is set.
const DefaultAddress = "127.0.0.1:50051"

const (
	cancelTimeout = 5 * time.Second
	pageSize      = 1000 // the most messages that the daemon returns at once
)

//go:embed service_config.json
var serviceConfig string

// Client is a connection to a daemon, or to one of several.
type Client struct {
	service     ruvdv1.SessionServiceClient
	connections *connections
	reconnect   time.Duration

	mutex          sync.Mutex
	closed         bool
	pendingCancels sync.WaitGroup // grows only while not closed
}

// ClientOption is an option of New.
type ClientOption func(*settings)

type settings struct {
	address   string
	reconnect time.Duration
	dial      []grpc.DialOption

	hasToken    bool // false: the environment decides
	token       string
	tokenSource TokenSource
	tls         *TLSConfig // nil: the environment decides
}

// WithAddress sets the daemon's address: host:port or unix:PATH. It may be a list of several with
// commas, or a DNS name with several records. The client uses one of them, and goes on to the next
// when that cannot be reached or its daemon shuts down.
func WithAddress(address string) ClientOption {
	return func(s *settings) { s.address = address }
}

// WithReconnect sets how long the client tries to resume a broken stream. The default of 10 s is
// also how long the daemon keeps the completion running.
func WithReconnect(duration time.Duration) ClientOption {
	return func(s *settings) { s.reconnect = duration }
}

// WithDialOptions adds gRPC options, such as a stats handler, after those of this package.
func WithDialOptions(options ...grpc.DialOption) ClientOption {
	return func(s *settings) { s.dial = append(s.dial, options...) }
}

// New creates a client of the daemon at WithAddress, or at RUVD_ADDRESS, or at DefaultAddress. It
// does not connect, so it fails only if an option or its variable is invalid.
func New(options ...ClientOption) (*Client, error) {
	chosen := settings{reconnect: grace}
	for _, option := range options {
		option(&chosen)
	}
	addresses, err := splitAddresses(
		cmp.Or(chosen.address, os.Getenv("RUVD_ADDRESS"), DefaultAddress),
	)
	if err != nil {
		return nil, err
	}
	security, err := chosen.security(addresses)
	if err != nil {
		return nil, err
	}
	all, err := connect(addresses, security, chosen.dial)
	if err != nil {
		return nil, err
	}
	return &Client{
		service:     ruvdv1.NewSessionServiceClient(all),
		connections: all, reconnect: chosen.reconnect,
	}, nil
}

// Close waits up to 5 s for the cancel calls of completions that were just left, then closes the
// connection. Calls that are still running fail.
func (c *Client) Close() error {
	c.mutex.Lock()
	c.closed = true
	c.mutex.Unlock()
	c.pendingCancels.Wait()
	return c.connections.Close()
}

// GetSession returns a session. With SESSION_VIEW_FULL and no page size it follows the pages of a
// long history, and returns the session of the last page with the messages of all pages. If the
// session ends meanwhile, the error is SESSION_NOT_FOUND.
func (c *Client) GetSession(
	ctx context.Context, request *ruvdv1.GetSessionRequest, options ...grpc.CallOption,
) (*ruvdv1.GetSessionResponse, error) {
	if request.GetView() != ruvdv1.SessionView_SESSION_VIEW_FULL || request.GetPageSize() != 0 {
		return c.service.GetSession(ctx, request, options...)
	}
	next := &ruvdv1.GetSessionRequest{
		SessionId: request.GetSessionId(), View: request.GetView(), PageSize: pageSize,
		PageToken: request.GetPageToken(), AllowMessageParts: true,
	}
	var messages []*ruvdv1.Message
	var parts messageParts
	for {
		page, err := c.service.GetSession(ctx, next, options...)
		if err != nil {
			return nil, err
		}
		messages = append(messages, page.GetSession().GetMessages()...)
		if part := page.GetMessagePart(); part != nil {
			if err := parts.add(part); err != nil {
				return nil, err
			}
			if parts.isWhole() {
				message, err := parts.take()
				if err != nil {
					return nil, err
				}
				messages = append(messages, message)
			}
		}
		if next.PageToken = page.GetNextPageToken(); next.PageToken == "" {
			if page.Session != nil {
				page.Session.Messages = messages
			}
			page.MessagePart = nil
			return page, nil
		}
	}
}

// ListSessions yields all sessions that have the request's labels (nil for all), in the order of their
// creation, from its page token on. It follows the pages, and ends after an error.
func (c *Client) ListSessions(
	ctx context.Context, request *ruvdv1.ListSessionsRequest, options ...grpc.CallOption,
) iter.Seq2[*ruvdv1.Session, error] {
	return func(yield func(*ruvdv1.Session, error) bool) {
		next := &ruvdv1.ListSessionsRequest{
			PageSize: request.GetPageSize(), PageToken: request.GetPageToken(),
			LabelFilter: request.GetLabelFilter(),
		}
		for more := true; more; more = next.PageToken != "" {
			page, err := c.service.ListSessions(ctx, next, options...)
			if err != nil {
				yield(nil, err)
				return
			}
			for _, session := range page.GetSessions() {
				if !yield(session, nil) {
					return
				}
			}
			next.PageToken = page.GetNextPageToken()
		}
	}
}

// Health reports whether a daemon is ready for turns: one of those at the client's addresses. A daemon
// that cannot be reached is not. The error is that of ctx, or of a daemon that does not answer this
// question.
func (c *Client) Health(ctx context.Context) (ready bool, err error) {
	at := c.connections.now()
	for _, one := range append([]*entry{at}, c.connections.others(at)...) {
		used := c.connections.open(one)
		var answer *grpc_health_v1.HealthCheckResponse
		answer, err = grpc_health_v1.NewHealthClient(used).Check(
			ctx, &grpc_health_v1.HealthCheckRequest{Service: "readiness"},
		)
		c.connections.close(used)
		if answer.GetStatus() == grpc_health_v1.HealthCheckResponse_SERVING {
			return true, nil
		}
		if failure := (*Error)(nil); errors.As(err, &failure) && failure.Code == codes.Unavailable {
			err = nil
		}
		if err != nil {
			break
		}
	}
	return false, err
}

// cancelInBackground does not wait for the call, because the caller's deadline may have passed.
func (c *Client) cancelInBackground(ctx context.Context, request *ruvdv1.CancelCompletionRequest) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.closed {
		return
	}
	c.pendingCancels.Add(1)
	go func() {
		defer c.pendingCancels.Done()
		ctx, done := context.WithTimeout(context.WithoutCancel(ctx), cancelTimeout)
		defer done()
		_, _ = c.CancelCompletion(ctx, request) // if it fails, the completion ends after its grace
	}()
}

// unaryInterceptor adds the trace context to every call and converts its error.
func unaryInterceptor(
	ctx context.Context, method string, request, response any, connection *grpc.ClientConn,
	invoke grpc.UnaryInvoker, options ...grpc.CallOption,
) error {
	return toError(invoke(withTrace(ctx), method, request, response, connection, options...))
}

// streamInterceptor does the same for streams.
func streamInterceptor(
	ctx context.Context, description *grpc.StreamDesc, connection *grpc.ClientConn, method string,
	open grpc.Streamer, options ...grpc.CallOption,
) (grpc.ClientStream, error) {
	stream, err := open(withTrace(ctx), description, connection, method, options...)
	return errorStream{stream}, toError(err)
}

type errorStream struct{ grpc.ClientStream }

// RecvMsg converts errors to *Error.
func (s errorStream) RecvMsg(message any) error {
	return toError(s.ClientStream.RecvMsg(message))
}

// withTrace adds the trace context of ctx by OpenTelemetry's global propagator, if one is set.
func withTrace(ctx context.Context) context.Context {
	carrier := propagation.MapCarrier{}
	otel.GetTextMapPropagator().Inject(ctx, carrier)
	for key, value := range carrier {
		ctx = metadata.AppendToOutgoingContext(ctx, key, value)
	}
	return ctx
}
