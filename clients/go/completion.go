package ruvd

import (
	"cmp"
	"context"
	"errors"
	"io"
	"iter"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

const (
	grace        = 10 * time.Second // of the daemon for a lost reader, and how long this one tries
	firstPause   = 50 * time.Millisecond
	longestPause = time.Second
)

var (
	// breaks are what a connection that is lost, or not there, ends a call with.
	breaks = []codes.Code{codes.Unavailable, codes.Internal, codes.Unknown, codes.Canceled}
	// errLeft is what a completion failed with whose caller has left the loop.
	errLeft = errorOf(status.New(codes.Canceled, "left before the end"))
	errLoss = errorOf(status.New(codes.DataLoss, "the answer is not what came of it"))
	errEnds = errorOf(status.New(codes.Unavailable, "the stream ended before the answer"))
)

// Completion is one answer on its way. Range over its Text, or over its Events, or wait for its
// Message; it can be read once, by one goroutine.
//
// A stream that breaks is resumed, so what comes is whole: a restart of the daemon shows as a
// pause, or as COMPLETION_NOT_FOUND when text had come and the answer was not committed. Leaving
// the loop, or the end of ctx, cancels the completion; its session stays as it was.
type Completion struct {
	// Started is set once the turn has the engine.
	Started *ruvdv1.Started
	// Finished is set once the answer is complete and committed.
	Finished *ruvdv1.Finished
	// LastSequence is the number of the last event that has come, to resume after.
	LastSequence int64

	client   *Client
	ctx      context.Context
	complete *ruvdv1.CompleteRequest         // nil for a completion that is only resumed
	resume   *ruvdv1.ResumeCompletionRequest // names the completion; nil before Started
	midway   bool                            // resumed by the caller after some event
	begun    bool
	err      error

	text      strings.Builder // delivered so far
	rest      string          // what Finished has beyond it
	delivered bool            // text, reasoning or a tool call
}

// Complete answers text, which is one message of the user, in the session of WithSession or, without
// it, stateless; an empty text adds no message to those of WithMessages. Nothing is sent before the
// answer is ranged over or waited for. It is cancelled when ctx ends.
func (c *Client) Complete(ctx context.Context, text string, options ...Option) *Completion {
	request := Request(text, options...)
	if request.DisconnectGrace == nil {
		request.DisconnectGrace = durationpb.New(grace)
	}
	return &Completion{client: c, ctx: ctx, complete: request}
}

// ResumeCompletion reads a completion on, after the event with the number after_sequence. The
// request names it by its id, or by the session and the request id that it began with. Leaving it
// cancels the completion, as leaving that of Complete does.
func (c *Client) ResumeCompletion(
	ctx context.Context, request *ruvdv1.ResumeCompletionRequest,
) *Completion {
	own := proto.CloneOf(request)
	after := own.GetAfterSequence()
	return &Completion{client: c, ctx: ctx, resume: own, midway: after > 0, LastSequence: after}
}

// Text gives the answer's text as it comes. An error ends it.
func (c *Completion) Text() iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for event, err := range c.Events() {
			text := event.GetDelta().GetText()
			if event.GetFinished() != nil {
				text = c.rest
			}
			if (text != "" || err != nil) && !yield(text, err) {
				return
			}
		}
	}
}

// Events gives the numbered events instead of their text. An error ends it. After a restart of the
// daemon Finished may come without deltas; its message is the whole answer.
func (c *Completion) Events() iter.Seq2[*ruvdv1.CompletionEvent, error] {
	return func(yield func(*ruvdv1.CompletionEvent, error) bool) {
		if !c.begun {
			c.begun = true
			if c.run(yield); c.err == errLeft {
				return
			}
		}
		if c.err != nil {
			yield(nil, c.err)
		}
	}
}

// Message waits for the end: the whole answer, with its tool calls and its reasoning.
func (c *Completion) Message() (*ruvdv1.Message, error) {
	for _, err := range c.Events() {
		if err != nil {
			return nil, err
		}
	}
	return c.Finished.GetMessage(), nil
}

// run reads to the end, and stops the completion if the caller does not want it any longer.
func (c *Completion) run(yield func(*ruvdv1.CompletionEvent, error) bool) {
	c.err = errLeft // also where yield panics
	defer func() {
		if c.err == errLeft || c.err != nil && c.ctx.Err() == context.Canceled {
			c.stop()
		}
	}()
	c.err = c.read(yield)
}

// read yields the events of as many calls as it takes.
func (c *Completion) read(yield func(*ruvdv1.CompletionEvent, error) bool) error {
	var brokenAt time.Time
	pause := firstPause
	for {
		resumed, last := c.resume != nil, c.LastSequence
		err := typed(c.readCall(yield))
		if err == io.EOF {
			err = errEnds
		}
		if brokenAt.IsZero() || c.LastSequence != last {
			brokenAt, pause = time.Now(), firstPause
		}
		left := c.client.reconnect - time.Since(brokenAt)
		switch {
		case c.Finished != nil:
			return nil
		case err == errLeft:
			return err
		case c.ctx.Err() != nil:
			return typed(c.ctx.Err())
		case !c.repeats(err, resumed) || left <= 0:
			return err
		}
		select {
		case <-c.ctx.Done():
		case <-time.After(min(pause, left)):
		}
		pause = min(2*pause, longestPause)
	}
}

// repeats says whether another call may bring the rest.
func (c *Completion) repeats(err error, resumed bool) bool {
	var failure *Error
	if !errors.As(err, &failure) {
		return false
	}
	forgotten := resumed && failure.Reason == "COMPLETION_NOT_FOUND"
	if forgotten && c.complete != nil && !c.delivered {
		// The daemon has restarted. Nothing was delivered, so another answer is as good.
		c.resume, c.Started, c.LastSequence = nil, nil, 0
		return true
	}
	return failure.Reason == "" && slices.Contains(breaks, failure.Code)
}

// readCall yields the events of one call until Finished, and says why there is none.
func (c *Completion) readCall(yield func(*ruvdv1.CompletionEvent, error) bool) error {
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	receive, err := c.call(ctx)
	if err != nil {
		return err
	}
	for {
		event, err := receive()
		if err = cmp.Or(err, c.ctx.Err()); err != nil { // nothing is delivered after the latter
			return err
		}
		if err := c.take(event); err != nil {
			return err
		}
		if !yield(event, nil) {
			return errLeft
		}
		if c.Finished != nil {
			_, _ = receive() // so that the call ends by itself rather than cancelled
			return nil
		}
	}
}

// call begins the completion, or resumes it after the last event; the function gives its events.
func (c *Completion) call(
	ctx context.Context,
) (func() (*ruvdv1.CompletionEvent, error), error) {
	if c.resume == nil {
		stream, err := c.client.SessionServiceClient.Complete(ctx, c.complete)
		return func() (*ruvdv1.CompletionEvent, error) {
			response, err := stream.Recv()
			return response.GetEvent(), err
		}, err
	}
	c.resume.AfterSequence = c.LastSequence
	stream, err := c.client.SessionServiceClient.ResumeCompletion(ctx, c.resume)
	return func() (*ruvdv1.CompletionEvent, error) {
		response, err := stream.Recv()
		return response.GetEvent(), err
	}, err
}

// take keeps what an event says. It fails if the answer is not what was delivered of it.
func (c *Completion) take(event *ruvdv1.CompletionEvent) error {
	c.LastSequence = event.GetSequence()
	switch event := event.GetEvent().(type) {
	case *ruvdv1.CompletionEvent_Started:
		c.Started = event.Started
		c.resume = &ruvdv1.ResumeCompletionRequest{CompletionId: event.Started.GetCompletionId()}
	case *ruvdv1.CompletionEvent_Delta:
		c.delivered = true
		c.text.WriteString(event.Delta.GetText())
	case *ruvdv1.CompletionEvent_Finished:
		rest, ok := strings.CutPrefix(event.Finished.GetMessage().GetContent(), c.text.String())
		if !c.midway { // of which nobody here knows the beginning
			if !ok {
				return errLoss
			}
			c.rest = rest
		}
		c.Finished = event.Finished
	}
	return nil
}

// stop cancels the completion: to the daemon, a stream that ends is a connection that may come back.
func (c *Completion) stop() {
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
	c.client.cancelSoon(c.ctx, request)
}
