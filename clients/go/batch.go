package ruvd

import (
	"context"
	"io"
	"iter"

	"google.golang.org/grpc/status"

	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

// Batch is a batch of completions, made when it is read. Range over its Outcomes, once.
type Batch struct {
	client  *Client
	request *ruvdv1.BatchCompleteRequest
	summary *ruvdv1.BatchSummary
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
// 0 is the daemon's default. It is one call, limited by the daemon's defaults to 10,000 items and
// 4 MiB. After a failure, a batch of the same items runs only the unfinished ones.
func (c *Client) Batch(maxConcurrency int, items ...*ruvdv1.CompleteRequest) *Batch {
	request := &ruvdv1.BatchCompleteRequest{Items: items, MaxConcurrency: int32(maxConcurrency)}
	return &Batch{client: c, request: request}
}

// Summary returns the totals. It is nil until the end.
func (b *Batch) Summary() *ruvdv1.BatchSummary { return b.summary }

// Outcomes yields the outcome of each item as soon as it is available. An error is that of the whole
// call and ends it. Leaving the loop, or the end of ctx, cancels the unfinished items.
func (b *Batch) Outcomes(ctx context.Context) iter.Seq2[*Outcome, error] {
	return func(yield func(*Outcome, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		var parts messageParts
		stream, err := b.client.BatchComplete(ctx, b.request)
		for err == nil {
			var response *ruvdv1.BatchCompleteResponse
			if response, err = stream.Recv(); err != nil {
				break
			}
			b.summary = response.GetSummary() // nil except in the last response
			if part := response.GetMessagePart(); part != nil {
				err = parts.add(part)
			} else if finished := response.GetResult().GetCompletion().GetFinished(); finished != nil {
				err = parts.join(finished)
			}
			if err != nil {
				break
			}
			if result := response.GetResult(); result != nil && !yield(outcomeOf(result), nil) {
				return
			}
		}
		if err != io.EOF {
			yield(nil, err)
		}
	}
}

func outcomeOf(result *ruvdv1.BatchResult) *Outcome {
	outcome := &Outcome{Index: int(result.GetIndex()), Completion: result.GetCompletion()}
	if outcome.Completion == nil {
		outcome.Err = fromStatus(status.FromProto(result.GetError()))
	}
	return outcome
}
