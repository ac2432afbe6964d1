package ruvd

import (
	"cmp"
	"context"
	"iter"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

var (
	// connectionErrors are the codes of calls whose connection was lost or could not be made.
	connectionErrors = []codes.Code{codes.Unavailable, codes.Internal, codes.Unknown, codes.Canceled}
	// errAbandoned is the error of a completion whose caller has left the loop.
	errAbandoned  = fromStatus(status.New(codes.Canceled, "the caller left before the end"))
	errDataLoss   = fromStatus(status.New(codes.DataLoss, "the answer contradicts the text received before"))
	errIncomplete = fromStatus(status.New(codes.Unavailable, "the stream ended without Finished"))
)

// Completion is a completion that is made when it is read. Range over its Text or its Events, or wait
// for its Message. It can be read once, by one goroutine.
//
// A broken stream is resumed: after a restart of the daemon, or at another one, the answer continues, or
// it ends with COMPLETION_NOT_FOUND if text was received and the answer was not committed. Leaving the loop, or
// the end of the context with which it is read, cancels the completion and leaves its session
// unchanged.
type Completion struct {
	client       *Client
	started      *ruvdv1.Started
	finished     *ruvdv1.Finished
	lastSequence int64

	complete      *ruvdv1.CompleteRequest         // nil if made by ResumeCompletion
	resume        *ruvdv1.ResumeCompletionRequest // identifies the completion; nil before Started
	resumedMidway bool                            // the first events are unknown here
	consumed      bool
	collects      bool // whether the caller gets nothing but the whole message
	err           error

	text        strings.Builder // received so far
	missingText string          // the text of Finished beyond it
	delivered   bool            // whether text, reasoning or a tool call was delivered
	parts       messageParts    // of the whole message, if it is large
}

// Complete returns a completion of text, which is one user message, in the session of WithSession.
// Without WithSession it is stateless. An empty text adds no message to those of WithMessages. The
// call is made when the completion is read.
func (c *Client) Complete(text string, options ...Option) *Completion {
	request := Request(text, options...)
	if request.DisconnectGrace == nil {
		request.DisconnectGrace = durationpb.New(grace)
	}
	return &Completion{client: c, complete: request}
}

// ResumeCompletion reads a completion from the event after after_sequence on. The request identifies
// it by its id, or by the session and the request id with which it was started. Leaving it early
// cancels it, as with Complete.
func (c *Client) ResumeCompletion(request *ruvdv1.ResumeCompletionRequest) *Completion {
	clone := proto.CloneOf(request)
	sequence := clone.GetAfterSequence()
	return &Completion{client: c, resume: clone, resumedMidway: sequence > 0, lastSequence: sequence}
}

// Started returns the first event. It is nil until the engine is available to the turn.
func (c *Completion) Started() *ruvdv1.Started { return c.started }

// Finished returns the last event. It is nil until the answer is complete and committed.
func (c *Completion) Finished() *ruvdv1.Finished { return c.finished }

// LastSequence returns the sequence number of the last event received, after which to resume.
func (c *Completion) LastSequence() int64 { return c.lastSequence }

// Text yields the pieces of the answer's text. It ends after an error.
func (c *Completion) Text(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for event, err := range c.Events(ctx) {
			text := event.GetDelta().GetText()
			if event.GetFinished() != nil {
				text = c.missingText
			}
			if (text != "" || err != nil) && !yield(text, err) {
				return
			}
		}
	}
}

// Events yields the numbered events. It ends after an error. After a restart of the daemon, Finished
// may come without deltas; its message is the whole answer.
func (c *Completion) Events(ctx context.Context) iter.Seq2[*ruvdv1.CompletionEvent, error] {
	return func(yield func(*ruvdv1.CompletionEvent, error) bool) {
		if !c.consumed {
			c.consumed = true
			if c.readAndCancel(ctx, yield); c.err == errAbandoned {
				return
			}
		}
		if c.err != nil {
			yield(nil, c.err)
		}
	}
}

// Message waits for the end and returns the whole answer with its tool calls and reasoning.
func (c *Completion) Message(ctx context.Context) (*ruvdv1.Message, error) {
	c.collects = !c.consumed
	for _, err := range c.Events(ctx) {
		if err != nil {
			return nil, err
		}
	}
	return c.finished.GetMessage(), nil
}

// readAndCancel reads to the end, and cancels the completion if the caller leaves early.
func (c *Completion) readAndCancel(
	ctx context.Context, yield func(*ruvdv1.CompletionEvent, error) bool,
) {
	c.err = errAbandoned // also if yield panics
	defer func() {
		if c.err == errAbandoned || c.err != nil && ctx.Err() == context.Canceled {
			c.cancel(ctx)
		}
	}()
	c.err = c.read(ctx, yield)
}

// readCall yields the events of one call. It returns an error unless they include Finished.
func (c *Completion) readCall(
	ctx context.Context, used *link, yield func(*ruvdv1.CompletionEvent, error) bool,
) error {
	call, cancel := context.WithCancel(withSession(ctx, c.sessionID()))
	defer cancel()
	receive, err := c.call(call, ruvdv1.NewSessionServiceClient(used))
	if err != nil {
		return err
	}
	for {
		event, err := receive()
		if err = cmp.Or(err, ctx.Err()); err != nil { // no event is delivered after ctx has ended
			return err
		}
		if part := event.GetMessagePart(); part != nil {
			if err := c.parts.add(part); err != nil {
				return err
			}
			continue
		}
		if err := c.handleEvent(event); err != nil {
			return err
		}
		if !yield(event, nil) {
			return errAbandoned
		}
		if c.finished != nil {
			_, _ = receive() // lets the call end normally, not cancelled
			return nil
		}
	}
}

// call starts the completion or resumes it after the last event. It returns a receive function.
func (c *Completion) call(
	ctx context.Context, daemon ruvdv1.SessionServiceClient,
) (func() (*ruvdv1.CompletionEvent, error), error) {
	if c.resume == nil {
		stream, err := daemon.Complete(ctx, c.complete)
		return func() (*ruvdv1.CompletionEvent, error) {
			response, err := stream.Recv()
			return response.GetEvent(), err
		}, err
	}
	c.resume.AfterSequence = c.lastSequence
	stream, err := daemon.ResumeCompletion(ctx, c.resume)
	return func() (*ruvdv1.CompletionEvent, error) {
		response, err := stream.Recv()
		return response.GetEvent(), err
	}, err
}

// handleEvent records an event. It fails if the answer contradicts the text received before.
func (c *Completion) handleEvent(event *ruvdv1.CompletionEvent) error {
	c.lastSequence = event.GetSequence()
	switch event := event.GetEvent().(type) {
	case *ruvdv1.CompletionEvent_Started:
		c.started = event.Started
		c.resume = &ruvdv1.ResumeCompletionRequest{CompletionId: event.Started.GetCompletionId()}
	case *ruvdv1.CompletionEvent_Delta:
		c.delivered = !c.collects
		c.text.WriteString(event.Delta.GetText())
	case *ruvdv1.CompletionEvent_Finished:
		if err := c.parts.join(event.Finished); err != nil {
			return err
		}
		missing, ok := strings.CutPrefix(event.Finished.GetMessage().GetContent(), c.text.String())
		if !c.resumedMidway { // otherwise the beginning of the text is unknown here
			if !ok {
				return errDataLoss
			}
			c.missingText = missing
		}
		c.finished = event.Finished
	}
	return nil
}

// cancel sends CancelCompletion, because the daemon would wait for the reader of a closed stream.
func (c *Completion) cancel(ctx context.Context) {
	if c.complete.GetOnDisconnect() == ruvdv1.OnDisconnect_ON_DISCONNECT_CONTINUE {
		return
	}
	request := &ruvdv1.CancelCompletionRequest{
		SessionId: c.complete.GetSessionId(), RequestId: c.complete.GetRequestId(),
	}
	if c.resume != nil {
		request.CompletionId = c.resume.GetCompletionId()
		request.SessionId, request.RequestId = c.resume.GetSessionId(), c.resume.GetRequestId()
	}
	c.client.cancelInBackground(withSession(ctx, c.sessionID()), request)
}

// sessionID returns the completion's session; empty if there is none or it is not known.
func (c *Completion) sessionID() string {
	return cmp.Or(c.started.GetSessionId(), c.complete.GetSessionId(), c.resume.GetSessionId())
}
