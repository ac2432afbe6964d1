package ruvd

import (
	"context"
	"io"
	"iter"

	"google.golang.org/grpc/status"

	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

// Batch is a running batch of completions. Range over its Outcomes, once.
type Batch struct {
	// Summary is set at the end.
	Summary *ruvdv1.BatchSummary

	client  *Client
	ctx     context.Context
	request *ruvdv1.BatchCompleteRequest
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
func (c *Client) Batch(
	ctx context.Context, maxConcurrency int, items ...*ruvdv1.CompleteRequest,
) *Batch {
	request := &ruvdv1.BatchCompleteRequest{Items: items, MaxConcurrency: int32(maxConcurrency)}
	return &Batch{client: c, ctx: ctx, request: request}
}

// Outcomes yields the outcome of each item as soon as it is available. An error is that of the whole
// call and ends it. Leaving the loop, or the end of ctx, cancels the unfinished items.
func (b *Batch) Outcomes() iter.Seq2[*Outcome, error] {
	return func(yield func(*Outcome, error) bool) {
		ctx, cancel := context.WithCancel(b.ctx)
		defer cancel()
		stream, err := b.client.BatchComplete(ctx, b.request)
		for err == nil {
			var response *ruvdv1.BatchCompleteResponse
			if response, err = stream.Recv(); err != nil {
				break
			}
			b.Summary = response.GetSummary() // nil except in the last response
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
