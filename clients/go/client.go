// Package ruvd is the Go client of ruvd, a sidecar daemon that keeps the conversation between a
// service and its LLM engine: send only the new message.
//
// A [Client] is one connection, made when the first call needs it and safe for concurrent use. It
// has the generated calls of ruvd.v1.SessionService, which take and give the messages of package
// ruvdv1, and what is more than one call: [Client.Complete], [Client.ResumeCompletion],
// [Client.Batch] and [Client.ListSessions]. Every call fails with an [*Error].
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
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

// DefaultAddress is where the daemon is looked for when neither WithAddress nor RUVD_ADDRESS says.
const DefaultAddress = "127.0.0.1:50051"

const cancelTimeout = 5 * time.Second

//go:embed service_config.json
var serviceConfig string

// Client is a connection to the daemon, with the generated calls of the service.
type Client struct {
	ruvdv1.SessionServiceClient
	connection *grpc.ClientConn
	reconnect  time.Duration

	mutex      sync.Mutex
	closed     bool
	cancelling sync.WaitGroup // grows only while not closed
}

// ClientOption is something that New takes.
type ClientOption func(*settings)

type settings struct {
	address   string
	reconnect time.Duration
	dial      []grpc.DialOption
}

// WithAddress says where the daemon is: host:port or unix:PATH.
func WithAddress(address string) ClientOption {
	return func(s *settings) { s.address = address }
}

// WithReconnect says how long after a break an answer is looked for again; 10 s by default, which
// is how long the daemon keeps it going.
func WithReconnect(duration time.Duration) ClientOption {
	return func(s *settings) { s.reconnect = duration }
}

// WithDialOptions adds options of gRPC's, such as a stats handler, after those of this package.
func WithDialOptions(options ...grpc.DialOption) ClientOption {
	return func(s *settings) { s.dial = append(s.dial, options...) }
}

// New makes a client of the daemon at WithAddress, else at RUVD_ADDRESS, else at DefaultAddress.
// It does not connect, so it fails only for options that are wrong.
func New(options ...ClientOption) (*Client, error) {
	chosen := settings{reconnect: grace, dial: []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithDisableServiceConfig(),      // of DNS, which would be asked for one
		grpc.WithMaxHeaderListSize(64 << 10), // an error may name many wrong fields
		// Sizes are the daemon's to limit: its refusal says why.
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.MaxCallSendMsgSize(math.MaxInt32),
		),
		// The daemon is on this machine: a restart is noticed soon.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstPause, Multiplier: 2, MaxDelay: longestPause},
			MinConnectTimeout: 2 * time.Second,
		}),
		grpc.WithChainUnaryInterceptor(unary),
		grpc.WithChainStreamInterceptor(streaming),
	}}
	for _, option := range options {
		option(&chosen)
	}
	target := cmp.Or(chosen.address, os.Getenv("RUVD_ADDRESS"), DefaultAddress)
	connection, err := grpc.NewClient(target, chosen.dial...)
	if err != nil {
		return nil, err
	}
	stub := ruvdv1.NewSessionServiceClient(connection)
	return &Client{
		SessionServiceClient: stub, connection: connection, reconnect: chosen.reconnect,
	}, nil
}

// Close waits until the daemon knows of completions that were just cancelled, 5 s at most, and
// closes the connection. What still runs on it fails.
func (c *Client) Close() error {
	c.mutex.Lock()
	c.closed = true
	c.mutex.Unlock()
	c.cancelling.Wait()
	return c.connection.Close()
}

// ListSessions gives all sessions that have these labels (nil for all), page by page, in the order
// of their creation. An error ends it.
func (c *Client) ListSessions(
	ctx context.Context, labels map[string]string,
) iter.Seq2[*ruvdv1.Session, error] {
	return func(yield func(*ruvdv1.Session, error) bool) {
		request := &ruvdv1.ListSessionsRequest{LabelFilter: labels}
		for more := true; more; more = request.PageToken != "" {
			page, err := c.SessionServiceClient.ListSessions(ctx, request)
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

// cancelSoon does not wait, as the caller's time may be over.
func (c *Client) cancelSoon(ctx context.Context, request *ruvdv1.CancelCompletionRequest) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.closed {
		return
	}
	c.cancelling.Add(1)
	go func() {
		defer c.cancelling.Done()
		ctx, done := context.WithTimeout(context.WithoutCancel(ctx), cancelTimeout)
		defer done()
		_, _ = c.CancelCompletion(ctx, request) // if it fails, the grace ends it
	}()
}

// unary gives every call its trace and every failure its type.
func unary(
	ctx context.Context, method string, request, response any, connection *grpc.ClientConn,
	invoke grpc.UnaryInvoker, options ...grpc.CallOption,
) error {
	return typed(invoke(traced(ctx), method, request, response, connection, options...))
}

// streaming does so for streams.
func streaming(
	ctx context.Context, description *grpc.StreamDesc, connection *grpc.ClientConn, method string,
	begin grpc.Streamer, options ...grpc.CallOption,
) (grpc.ClientStream, error) {
	stream, err := begin(traced(ctx), description, connection, method, options...)
	return typedStream{stream}, typed(err)
}

type typedStream struct{ grpc.ClientStream }

// RecvMsg fails with an *Error.
func (s typedStream) RecvMsg(message any) error {
	return typed(s.ClientStream.RecvMsg(message))
}

// traced adds what OpenTelemetry's global propagator says of the trace in ctx; nothing, where the
// service has set none.
func traced(ctx context.Context) context.Context {
	carrier := propagation.MapCarrier{}
	otel.GetTextMapPropagator().Inject(ctx, carrier)
	for key, value := range carrier {
		ctx = metadata.AppendToOutgoingContext(ctx, key, value)
	}
	return ctx
}
