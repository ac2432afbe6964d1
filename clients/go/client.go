// Package ruvd is the Go client of ruvd, a sidecar daemon that keeps the conversation between a
// service and its LLM engine, so that the service sends only the new message.
//
// A [Client] is one connection, made at its first call and safe for concurrent use. It has the
// generated methods of ruvd.v1.SessionService, whose messages are in package ruvdv1. Its own methods
// [Client.Complete], [Client.ResumeCompletion], [Client.Batch], [Client.GetSession] and
// [Client.ListSessions] may make several calls. The error of every call is an [*Error].
package ruvd

import (
	"cmp"
	"context"
	_ "embed" // the service config
	"iter"
	"math"
	"os"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
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

// generated has the methods of the service.
type generated = ruvdv1.SessionServiceClient

// Client is a connection to the daemon. It has the methods of [ruvdv1.SessionServiceClient], except
// those that it replaces.
type Client struct {
	generated
	connection *grpc.ClientConn
	reconnect  time.Duration

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

// WithAddress sets the daemon's address: host:port or unix:PATH.
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
	chosen := settings{reconnect: grace, dial: []grpc.DialOption{
		grpc.WithNoProxy(),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithDisableServiceConfig(),      // no DNS query for a service config
		grpc.WithMaxHeaderListSize(64 << 10), // an error may name many invalid fields
		// The daemon limits the sizes, because its error says why a message was rejected.
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.MaxCallSendMsgSize(math.MaxInt32),
		),
		// The daemon is local, so the client reconnects soon after a restart.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstPause, Multiplier: 2, MaxDelay: longestPause},
			MinConnectTimeout: 2 * time.Second,
		}),
		grpc.WithChainUnaryInterceptor(unaryInterceptor),
		grpc.WithChainStreamInterceptor(streamInterceptor),
	}}
	for _, option := range options {
		option(&chosen)
	}
	target := cmp.Or(chosen.address, os.Getenv("RUVD_ADDRESS"), DefaultAddress)
	security, err := chosen.security(target)
	if err != nil {
		return nil, err
	}
	connection, err := grpc.NewClient(target, append(security, chosen.dial...)...)
	if err != nil {
		return nil, err
	}
	stub := ruvdv1.NewSessionServiceClient(connection)
	return &Client{
		generated: stub, connection: connection, reconnect: chosen.reconnect,
	}, nil
}

// Close waits up to 5 s for the cancel calls of completions that were just left, then closes the
// connection. Calls that are still running fail.
func (c *Client) Close() error {
	c.mutex.Lock()
	c.closed = true
	c.mutex.Unlock()
	c.pendingCancels.Wait()
	return c.connection.Close()
}

// GetSession returns a session. With SESSION_VIEW_FULL and no page size it follows the pages of a
// long history, and returns the session of the last page with the messages of all pages. If the
// session ends meanwhile, the error is SESSION_NOT_FOUND.
func (c *Client) GetSession(
	ctx context.Context, request *ruvdv1.GetSessionRequest, options ...grpc.CallOption,
) (*ruvdv1.GetSessionResponse, error) {
	if request.GetView() != ruvdv1.SessionView_SESSION_VIEW_FULL || request.GetPageSize() != 0 {
		return c.generated.GetSession(ctx, request, options...)
	}
	next := &ruvdv1.GetSessionRequest{
		SessionId: request.GetSessionId(), View: request.GetView(), PageSize: pageSize,
		PageToken: request.GetPageToken(), AllowMessageParts: true,
	}
	var messages []*ruvdv1.Message
	var parts messageParts
	for {
		page, err := c.generated.GetSession(ctx, next, options...)
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

// ListSessions yields all sessions that have these labels (nil for all), in the order of their
// creation. It ends after an error.
func (c *Client) ListSessions(
	ctx context.Context, labels map[string]string,
) iter.Seq2[*ruvdv1.Session, error] {
	return func(yield func(*ruvdv1.Session, error) bool) {
		request := &ruvdv1.ListSessionsRequest{LabelFilter: labels}
		for more := true; more; more = request.PageToken != "" {
			page, err := c.generated.ListSessions(ctx, request)
			if err != nil {
				yield(nil, err)
				return
			}
			for _, session := range page.GetSessions() {
				if !yield(session, nil) {
					return
				}
			}
			request.PageToken = page.GetNextPageToken()
		}
	}
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
