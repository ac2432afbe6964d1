package ruvd

import (
	"context"
	"errors"
	"io"
	"iter"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

const (
	maxCallBytes      = 3 << 20 // below the daemon's default max_request_bytes of 4 MiB
	maxCallItems      = 10_000
	itemBytes         = 8 // the most that an item adds to a call beside its own size
	batchReconnect    = time.Minute
	longestBatchPause = 2 * time.Second
)

var errShutDown = &Error{
	Code: codes.Unavailable, Reason: ReasonShuttingDown,
	Message: "the daemon shut down before every item had an outcome",
	status:  status.New(codes.Unavailable, "the daemon shut down before every item had an outcome"),
}

// Batch is a batch of completions, made when it is read. Range over its Outcomes, once.
type Batch struct {
	client         *Client
	items          []*ruvdv1.CompleteRequest
	maxConcurrency int32
	started        time.Time
	summary        *ruvdv1.BatchSummary

	answered bool      // whether any daemon has answered
	brokenAt time.Time // zero while outcomes come
	failed   int       // calls since then
}

// Outcome is the result of one item of a batch.
type Outcome struct {
	// Index is the position of the item, starting at 0.
	Index int
	// Completion is the answer; nil if Err is set.
	Completion *ruvdv1.Completion
	// Err is the *Error with which Complete would have failed for this item.
	Err error
}

// Batch returns a batch of items, made by Request. At most maxConcurrency of them run concurrently;
// 0 is the daemon's default. There may be any number of items: they are split into calls of a size
// that the daemon accepts. When its connection breaks, the unfinished items are sent again, for up to
// a minute without an outcome.
func (c *Client) Batch(maxConcurrency int, items ...*ruvdv1.CompleteRequest) *Batch {
	batch := &Batch{client: c, maxConcurrency: int32(maxConcurrency)}
	for _, item := range items {
		if item.GetRequestId() == "" {
			item = proto.CloneOf(item)
			item.RequestId = uuid()
		}
		batch.items = append(batch.items, item)
	}
	return batch
}

// Summary returns the totals of the outcomes so far. It is nil before the first.
func (b *Batch) Summary() *ruvdv1.BatchSummary { return b.summary }

// Outcomes yields the outcome of each item as soon as it is available. An error is that of the whole
// batch and ends it. Leaving the loop, or the end of ctx, cancels the unfinished items.
func (b *Batch) Outcomes(ctx context.Context) iter.Seq2[*Outcome, error] {
	return func(yield func(*Outcome, error) bool) {
		b.started = time.Now()
		if err := b.run(ctx, yield); err != nil && err != errAbandoned {
			yield(nil, err)
		}
	}
}

// run makes the calls one after the other, and repeats those that end early.
func (b *Batch) run(ctx context.Context, yield func(*Outcome, error) bool) error {
	all := b.client.connections
	pending := b.split()
	for len(pending) > 0 {
		used := all.open(all.now())
		left, err := b.call(ctx, used, pending[0], yield)
		if len(left) > 0 && b.isLost(err) {
			b.failed++
			all.leave(used, reasonOf(err) != "")
		}
		all.close(used)
		pending = pending[1:]
		switch {
		case err == errAbandoned:
			return err
		case len(left) == 0:
		case ctx.Err() != nil:
			return toError(ctx.Err())
		case b.isLost(err):
			if b.brokenAt.IsZero() {
				b.brokenAt = time.Now()
			}
			isNobodyThere := !b.answered && b.failed == all.roundLength()
			if isNobodyThere || time.Since(b.brokenAt) >= batchReconnect {
				return err
			}
			pending = slices.Insert(pending, 0, left)
			b.wait(ctx)
		case !isAboutItems(err):
			return err
		case len(left) > 1: // until the item that the daemon rejects is alone
			half := len(left) / 2
			pending = slices.Insert(pending, 0, left[:half], left[half:])
		default:
			if !b.deliver(&Outcome{Index: left[0], Err: err}, yield) {
				return errAbandoned
			}
		}
	}
	return nil
}

// split returns the numbers of the items of each call.
func (b *Batch) split() (calls [][]int) {
	size := 0
	for number, item := range b.items {
		bytes := proto.Size(item) + itemBytes
		if last := len(calls) - 1; last >= 0 && size+bytes <= maxCallBytes &&
			len(calls[last]) < maxCallItems {
			calls[last] = append(calls[last], number)
			size += bytes
			continue
		}
		calls, size = append(calls, []int{number}), bytes
	}
	return calls
}

// call makes one call and returns the numbers of the items without an outcome.
func (b *Batch) call(
	ctx context.Context, used *link, numbers []int, yield func(*Outcome, error) bool,
) (left []int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	request := &ruvdv1.BatchCompleteRequest{MaxConcurrency: b.maxConcurrency}
	for _, number := range numbers {
		request.Items = append(request.Items, b.items[number])
	}
	left = slices.Clone(numbers)
	stream, err := ruvdv1.NewSessionServiceClient(used).BatchComplete(ctx, request)
	if err != nil {
		return left, err
	}
	var parts messageParts
	for {
		response, err := stream.Recv()
		switch {
		case err == io.EOF && len(left) > 0:
			return left, errShutDown
		case err == io.EOF:
			return nil, nil
		case err != nil:
			return left, err
		}
		b.answered = true
		result := response.GetResult()
		if part := response.GetMessagePart(); part != nil {
			err = parts.add(part)
		} else if finished := result.GetCompletion().GetFinished(); finished != nil {
			err = parts.join(finished)
		}
		if err != nil {
			return left, err
		}
		if result == nil || b.isRepeated(result) {
			continue
		}
		outcome := outcomeOf(result, numbers[result.GetIndex()])
		left = slices.DeleteFunc(left, func(number int) bool { return number == outcome.Index })
		b.brokenAt, b.failed = time.Time{}, 0
		if !b.deliver(outcome, yield) {
			return left, errAbandoned
		}
	}
}

// isRepeated reports whether an item has no outcome yet, because its daemon has given it up.
func (b *Batch) isRepeated(result *ruvdv1.BatchResult) bool {
	if result.GetCompletion() != nil {
		return false
	}
	reason := fromStatus(status.FromProto(result.GetError())).Reason
	return reason == ReasonShuttingDown || isLeft(reason) && b.client.connections.several
}

// isLost reports whether the unfinished items of a call are sent again.
func (b *Batch) isLost(err error) bool {
	var failure *Error
	return err == errShutDown || b.client.connections.several && failsOver(err, false) ||
		errors.As(err, &failure) && failure.Code == codes.Unavailable && b.answered
}

// isAboutItems reports whether a call was rejected for one of its items, or for its size.
func isAboutItems(err error) bool {
	var failure *Error
	if !errors.As(err, &failure) {
		return false
	}
	for _, violation := range failure.Violations {
		if violation.GetField() == "max_concurrency" {
			return false
		}
	}
	return failure.Reason == ReasonInvalidRequest || failure.Reason == ReasonRequestTooLarge
}

// wait pauses before a call is repeated, after each address has been tried.
func (b *Batch) wait(ctx context.Context) {
	all := b.client.connections
	if all.several && b.failed%all.roundLength() != 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(min(longestBatchPause, firstPause<<min(b.failed, 10))):
	}
}

// deliver counts an outcome and yields it.
func (b *Batch) deliver(outcome *Outcome, yield func(*Outcome, error) bool) bool {
	if b.summary == nil {
		b.summary = &ruvdv1.BatchSummary{
			Usage: &ruvdv1.Usage{}, TotalLatency: durationpb.New(0),
		}
	}
	total := b.summary
	total.WallTime = durationpb.New(time.Since(b.started))
	if outcome.Err != nil {
		total.Failed++
		return yield(outcome, nil)
	}
	total.Succeeded++
	finished := outcome.Completion.GetFinished()
	latency := finished.GetTimings().GetTotal().AsDuration()
	total.TotalLatency = durationpb.New(total.TotalLatency.AsDuration() + latency)
	usage := finished.GetUsage()
	total.Usage.PromptTokens += usage.GetPromptTokens()
	total.Usage.CompletionTokens += usage.GetCompletionTokens()
	if usage != nil && usage.CachedTokens != nil {
		total.Usage.CachedTokens = proto.Int64(total.Usage.GetCachedTokens() + usage.GetCachedTokens())
	}
	return yield(outcome, nil)
}

func outcomeOf(result *ruvdv1.BatchResult, number int) *Outcome {
	outcome := &Outcome{Index: number, Completion: result.GetCompletion()}
	if outcome.Completion == nil {
		outcome.Err = fromStatus(status.FromProto(result.GetError()))
	}
	return outcome
}
