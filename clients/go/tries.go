package ruvd

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

const (
	grace        = 10 * time.Second // the default disconnect grace and reconnect time
	firstPause   = 50 * time.Millisecond
	longestPause = time.Second
	maxRestarts  = 3 // of a completion, as its request may be what ends the daemons
)

// tries is the state of a completion between its calls: where the next one is made, and when.
type tries struct {
	connections *connections
	at          *entry // of the next call
	brokenAt    time.Time
	pause       time.Duration // the next one
	failed      int           // calls without an event since brokenAt
	restarts    int

	missing error    // COMPLETION_NOT_FOUND while the other addresses are asked, otherwise nil
	others  []*entry // still to be asked
}

// failure is what the end of a call means for the completion.
type failure int

const (
	final     failure = iota
	lost              // the connection broke
	left              // the daemon has given the completion up, and it begins again elsewhere
	forgotten         // the daemon does not know the completion, which begins again
	missing           // the daemon does not know the completion, of which something was delivered
)

// read yields the events, over as many calls as are needed.
func (c *Completion) read(
	ctx context.Context, yield func(*ruvdv1.CompletionEvent, error) bool,
) error {
	all := c.client.connections
	t := &tries{connections: all, at: all.now()}
	for {
		resumed, last := c.resume != nil, c.lastSequence
		used := all.open(t.at)
		err := toError(c.readCall(ctx, used, yield))
		if err == io.EOF {
			err = errIncomplete
		}
		// The end of a call that its caller has left says nothing about the daemon.
		hasLeft := err == errAbandoned || ctx.Err() != nil
		kind, pause, end := final, time.Duration(0), error(nil)
		if c.finished == nil && !hasLeft {
			kind = c.kindOf(err, resumed, t)
			pause, end = t.after(kind, used, err, c.lastSequence != last)
		}
		all.close(used)
		remaining := c.client.reconnect - time.Since(t.brokenAt)
		switch {
		case c.finished != nil:
			return nil
		case err == errAbandoned:
			return err
		case ctx.Err() != nil:
			return toError(ctx.Err())
		case end != nil:
			return end
		case remaining <= 0:
			return err
		}
		if kind == left || kind == forgotten {
			c.restart(t)
		}
		if pause > 0 {
			select {
			case <-ctx.Done():
			case <-time.After(min(pause, remaining)):
			}
		}
	}
}

// kindOf returns what the end of a call means.
func (c *Completion) kindOf(err error, resumed bool, t *tries) failure {
	var failed *Error
	if !errors.As(err, &failed) {
		return final
	}
	canRestart := c.complete != nil && !c.delivered && t.restarts < maxRestarts
	switch {
	case isConnectionError(failed):
		return lost
	case isLeft(failed.Reason) && t.connections.several && canRestart:
		return left
	case failed.Reason == ReasonCompletionNotFound && resumed && canRestart:
		return forgotten
	case failed.Reason == ReasonCompletionNotFound && resumed:
		return missing
	default:
		return final
	}
}

// restart forgets the events so far, none of which was delivered, to make the same request again.
func (c *Completion) restart(t *tries) {
	if c.started != nil {
		t.restarts++
	}
	c.resume, c.started, c.lastSequence = nil, nil, 0
	c.text.Reset()
}

// after decides where the next call is made. It returns the pause before it, or the error that ends
// the completion.
func (t *tries) after(
	kind failure, used *link, err error, hadEvent bool,
) (pause time.Duration, end error) {
	if t.brokenAt.IsZero() || hadEvent {
		t.brokenAt, t.pause, t.failed = time.Now(), firstPause, 0
		t.missing, t.others = nil, nil
	}
	switch {
	case kind == final:
		return 0, err
	case !t.connections.several:
		if kind == missing {
			return 0, err
		}
		return t.nextPause(), nil
	case kind == missing && t.missing == nil:
		t.missing, t.others = err, t.connections.others(t.at)
		return t.askNext()
	case t.missing != nil:
		return t.askNext()
	case kind == forgotten, kind == lost && hadEvent:
		return 0, nil // the daemon may run, and then has the completion
	}
	t.failed++
	t.connections.leave(used, kind == left)
	t.at = t.connections.now()
	if t.failed%t.connections.roundLength() == 0 {
		return t.nextPause(), nil
	}
	return 0, nil
}

// askNext goes on to the next address that may have the completion, without moving the client.
func (t *tries) askNext() (pause time.Duration, end error) {
	if len(t.others) == 0 {
		return 0, t.missing
	}
	t.at, t.others = t.others[0], t.others[1:]
	return 0, nil
}

func (t *tries) nextPause() time.Duration {
	pause := t.pause
	t.pause = min(2*t.pause, longestPause)
	return pause
}
