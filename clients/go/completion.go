package ruvd

import (
	"context"
	"errors"
	"iter"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

const (
	firstPause   = 50 * time.Millisecond
	longestPause = time.Second
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
	resume   *ruvdv1.ResumeCompletionRequest // nil until there is something to resume
	midway   bool                            // resumed by the caller after some event
	resumed  bool                            // the last call was a resume
	begun    bool
	err      error

	text      strings.Builder // delivered so far
	rest      string          // what Finished has beyond it
	delivered bool            // text, reasoning or a tool call
	brokenAt  time.Time       // zero while the stream is whole
	pause     time.Duration
}

// errLeft is what a completion failed with whose caller has left the loop.
var errLeft = errorFrom(status.Error(codes.Canceled, "left before the end"))

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
		left := false
		if !c.begun {
			c.begun = true
			c.run(func(event *ruvdv1.CompletionEvent) bool {
				left = !yield(event, nil)
				return !left
			})
		}
		if c.err != nil && !left {
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
func (c *Completion) run(deliver func(*ruvdv1.CompletionEvent) bool) {
	c.err = errLeft // also where deliver panics
	defer func() {
		if c.Finished == nil && (c.err == errLeft || c.ctx.Err() != nil) {
			c.client.stop(c.ctx, c.complete, c.Started)
		}
	}()
	c.err = c.read(deliver)
}

// read delivers the events of as many calls as it takes.
func (c *Completion) read(deliver func(*ruvdv1.CompletionEvent) bool) error {
	for {
		ended, err := c.readCall(deliver)
		if ended {
			return err
		}
		if err := c.ctx.Err(); err != nil {
			return errorFrom(err)
		}
		if !c.repeats(err) {
			return err
		}
		if c.brokenAt.IsZero() {
			c.brokenAt, c.pause = time.Now(), firstPause
		}
		left := c.client.reconnect - time.Since(c.brokenAt)
		if left <= 0 {
			return err
		}
		select {
		case <-c.ctx.Done():
			return errorFrom(c.ctx.Err())
		case <-time.After(min(c.pause, left)):
		}
		c.pause = min(2*c.pause, longestPause)
	}
}

// repeats says whether another call may bring the rest, and prepares it.
func (c *Completion) repeats(err error) bool {
	var failure *Error
	if !errors.As(err, &failure) || failure.Reason == "" {
		return true
	}
	// The daemon has restarted and knows nothing of it. Nobody has seen any of it either, so it
	// may be generated anew.
	anew := failure.Reason == "COMPLETION_NOT_FOUND" &&
		c.resumed && c.complete != nil && !c.delivered
	if anew {
		c.resume, c.Started, c.LastSequence = nil, nil, 0
	}
	return anew
}

// readCall delivers the events of one call, and says whether the completion has ended with it.
func (c *Completion) readCall(deliver func(*ruvdv1.CompletionEvent) bool) (ended bool, err error) {
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	receive := c.call(ctx)
	for {
		event, err := receive()
		if err == nil {
			err = c.ctx.Err() // nothing is delivered after it
		}
		if err != nil {
			return false, errorFrom(err)
		}
		if err := c.take(event); err != nil {
			return true, err
		}
		wanted := deliver(event)
		if c.Finished != nil {
			_, _ = receive() // so that the call ends by itself rather than cancelled
			return true, nil
		}
		if !wanted {
			return true, errLeft
		}
	}
}

// call begins the completion, or resumes it after the last event; the function gives its events.
func (c *Completion) call(ctx context.Context) func() (*ruvdv1.CompletionEvent, error) {
	if c.resumed = c.resume != nil; !c.resumed {
		stream, err := c.client.stub.Complete(ctx, c.complete)
		return eventsOf(stream, err)
	}
	c.resume.AfterSequence = c.LastSequence
	stream, err := c.client.stub.ResumeCompletion(ctx, c.resume)
	return eventsOf(stream, err)
}

func eventsOf[Response interface {
	GetEvent() *ruvdv1.CompletionEvent
}](
	stream interface{ Recv() (Response, error) }, failed error,
) func() (*ruvdv1.CompletionEvent, error) {
	return func() (*ruvdv1.CompletionEvent, error) {
		if failed != nil {
			return nil, failed
		}
		response, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		return response.GetEvent(), nil
	}
}

// take keeps what an event says. It fails if the answer is not what was delivered of it.
func (c *Completion) take(event *ruvdv1.CompletionEvent) error {
	c.brokenAt = time.Time{}
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
		switch {
		case c.midway: // what came before is known to nobody here
		case ok:
			c.rest = rest
		default:
			return errorFrom(status.Error(codes.DataLoss, "the answer is not what came of it"))
		}
		c.Finished = event.Finished
	}
	return nil
}
