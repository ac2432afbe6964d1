// Package ruvd is the Go client of ruvd, a sidecar daemon that keeps the conversation between a
// service and its LLM engine: send only the new message.
//
// A [Client] is one connection, made when the first call needs it and safe for concurrent use.
// Its calls have the names of ruvd.v1.SessionService; what they take and give are the generated
// messages of package ruvdv1, except for answers, which are iterators: see [Client.Complete] and
// [Client.Batch]. Every call fails with an [*Error].
package ruvd

import (
	"cmp"
	"context"
	_ "embed" // the service config
	"iter"
	"math"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

// DefaultAddress is where the daemon is looked for when neither WithAddress nor RUVD_ADDRESS says.
const DefaultAddress = "127.0.0.1:50051"

const (
	maxHeaderBytes       = 64 << 10 // an error may name many wrong fields
	defaultReconnectTime = 10 * time.Second
	cancelTimeout        = 5 * time.Second
)

//go:embed service_config.json
var serviceConfig string

// Client is a connection to the daemon.
type Client struct {
	connection *grpc.ClientConn
	stub       ruvdv1.SessionServiceClient
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
	chosen := settings{reconnect: defaultReconnectTime}
	for _, option := range options {
		option(&chosen)
	}
	target := cmp.Or(chosen.address, os.Getenv("RUVD_ADDRESS"), DefaultAddress)
	if !strings.HasPrefix(target, "unix:") {
		target = "passthrough:///" + target // gRPC's own resolver would ask DNS for a service config
	}
	dial := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithMaxHeaderListSize(maxHeaderBytes),
		// Sizes are the daemon's to limit: its refusal says why.
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.MaxCallSendMsgSize(math.MaxInt32),
		),
		// The daemon is on this machine: a restart is noticed soon.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second,
			},
			MinConnectTimeout: 2 * time.Second,
		}),
		grpc.WithChainUnaryInterceptor(unary),
		grpc.WithChainStreamInterceptor(streaming),
	}
	connection, err := grpc.NewClient(target, append(dial, chosen.dial...)...)
	if err != nil {
		return nil, err
	}
	return &Client{
		connection: connection,
		stub:       ruvdv1.NewSessionServiceClient(connection),
		reconnect:  chosen.reconnect,
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

// CreateSession makes a session before its first turn.
func (c *Client) CreateSession(
	ctx context.Context, request *ruvdv1.CreateSessionRequest,
) (*ruvdv1.Session, error) {
	response, err := c.stub.CreateSession(ctx, request)
	return response.GetSession(), err
}

// GetSession reads one session, without its messages.
func (c *Client) GetSession(ctx context.Context, sessionID string) (*ruvdv1.Session, error) {
	return c.get(ctx, sessionID, ruvdv1.SessionView_SESSION_VIEW_BASIC)
}

// GetSessionWithMessages reads one session and its history.
func (c *Client) GetSessionWithMessages(
	ctx context.Context, sessionID string,
) (*ruvdv1.Session, error) {
	return c.get(ctx, sessionID, ruvdv1.SessionView_SESSION_VIEW_FULL)
}

func (c *Client) get(
	ctx context.Context, sessionID string, view ruvdv1.SessionView,
) (*ruvdv1.Session, error) {
	request := &ruvdv1.GetSessionRequest{SessionId: sessionID, View: view}
	response, err := c.stub.GetSession(ctx, request)
	return response.GetSession(), err
}

// ListSessions gives all sessions that have these labels (nil for all), page by page, in the order
// of their creation. An error ends it.
func (c *Client) ListSessions(
	ctx context.Context, labels map[string]string,
) iter.Seq2[*ruvdv1.Session, error] {
	return func(yield func(*ruvdv1.Session, error) bool) {
		request := &ruvdv1.ListSessionsRequest{LabelFilter: labels}
		for {
			page, err := c.stub.ListSessions(ctx, request)
			if err != nil {
				yield(nil, err)
				return
			}
			for _, session := range page.GetSessions() {
				if !yield(session, nil) {
					return
				}
			}
			if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
				return
			}
		}
	}
}

// UpdateSession changes what is in the request's update_mask, or without one what is set, once the
// turns before it are done.
func (c *Client) UpdateSession(
	ctx context.Context, request *ruvdv1.UpdateSessionRequest,
) (*ruvdv1.Session, error) {
	response, err := c.stub.UpdateSession(ctx, request)
	return response.GetSession(), err
}

// AppendMessages commits messages without generating, once the turns before it are done.
func (c *Client) AppendMessages(
	ctx context.Context, request *ruvdv1.AppendMessagesRequest,
) (*ruvdv1.Session, error) {
	response, err := c.stub.AppendMessages(ctx, request)
	return response.GetSession(), err
}

// ForkSession makes a session that begins with the first exchanges of another one, or with all.
func (c *Client) ForkSession(
	ctx context.Context, request *ruvdv1.ForkSessionRequest,
) (*ruvdv1.Session, error) {
	response, err := c.stub.ForkSession(ctx, request)
	return response.GetSession(), err
}

// EndSession deletes a session with its messages.
func (c *Client) EndSession(ctx context.Context, sessionID string) error {
	_, err := c.stub.EndSession(ctx, &ruvdv1.EndSessionRequest{SessionId: sessionID})
	return err
}

// ListModels says which models the engine offers, and which one answers where a call names none.
func (c *Client) ListModels(ctx context.Context) (*ruvdv1.ListModelsResponse, error) {
	return c.stub.ListModels(ctx, &ruvdv1.ListModelsRequest{})
}

// GetSessionMetrics reports what the daemon has measured since it started.
func (c *Client) GetSessionMetrics(ctx context.Context) (*ruvdv1.SessionMetrics, error) {
	response, err := c.stub.GetSessionMetrics(ctx, &ruvdv1.GetSessionMetricsRequest{})
	return response.GetMetrics(), err
}

// Complete answers text, which is one message of the user, in the session of WithSession or, without
// it, stateless; an empty text adds no message to those of WithMessages. Nothing is sent before the
// answer is ranged over or waited for. It is cancelled when ctx ends.
func (c *Client) Complete(ctx context.Context, text string, options ...Option) *Completion {
	request := Request(text, options...)
	if request.DisconnectGrace == nil {
		request.DisconnectGrace = defaultGrace()
	}
	return &Completion{client: c, ctx: ctx, complete: request}
}

// ResumeCompletion reads a completion on, after the event with the number after_sequence. The
// request names it by its id, or by the session and the request id that it began with. Leaving it
// does not stop the completion for others: CancelCompletion does.
func (c *Client) ResumeCompletion(
	ctx context.Context, request *ruvdv1.ResumeCompletionRequest,
) *Completion {
	own := proto.CloneOf(request)
	after := own.GetAfterSequence()
	return &Completion{client: c, ctx: ctx, resume: own, midway: after > 0, LastSequence: after}
}

// CancelCompletion stops a completion, whoever began it, and returns when it has ended.
func (c *Client) CancelCompletion(
	ctx context.Context, request *ruvdv1.CancelCompletionRequest,
) error {
	_, err := c.stub.CancelCompletion(ctx, request)
	return err
}

// stop cancels a completion that its caller does not want any longer: to the daemon, a stream that
// ends is a connection that may come back. It does not wait, as the caller's time may be over.
func (c *Client) stop(
	ctx context.Context, request *ruvdv1.CompleteRequest, started *ruvdv1.Started,
) {
	if request == nil || request.GetOnDisconnect() == ruvdv1.OnDisconnect_ON_DISCONNECT_CONTINUE {
		return
	}
	cancel := &ruvdv1.CancelCompletionRequest{CompletionId: started.GetCompletionId()}
	if started == nil {
		cancel.SessionId, cancel.RequestId = request.GetSessionId(), request.GetRequestId()
	}
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
		_, _ = c.stub.CancelCompletion(ctx, cancel) // if it fails, the grace ends it
	}()
}
