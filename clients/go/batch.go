package ruvd

import (
	"context"
	"io"
	"iter"

	"google.golang.org/grpc/status"

	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

// Batch is many answers on their way. Range over its Outcomes, once.
type Batch struct {
	// Summary is set at the end.
	Summary *ruvdv1.BatchSummary

	client  *Client
	ctx     context.Context
	request *ruvdv1.BatchCompleteRequest
}

// Outcome is what came of one item of a batch.
type Outcome struct {
	// Index says which item, from 0 on.
	Index int
	// Completion is its answer; nil with Err.
	Completion *ruvdv1.Completion
	// Err is the *Error that its own Complete would have failed with.
	Err error
}

// Batch answers the items, which Request makes, at most maxConcurrency side by side; 0 is the
// daemon's default. They go in one call, of 10,000 items and 4 MiB at most by the daemon's defaults.
// After a failure, a batch of the same items runs only those that were not finished.
func (c *Client) Batch(
	ctx context.Context, maxConcurrency int, items ...*ruvdv1.CompleteRequest,
) *Batch {
	request := &ruvdv1.BatchCompleteRequest{Items: items, MaxConcurrency: int32(maxConcurrency)}
	return &Batch{client: c, ctx: ctx, request: request}
}

// Outcomes gives what came of each item as soon as it is there. An error is the call's own and ends
// it. Leaving the loop, or the end of ctx, cancels what has no outcome yet.
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
			b.Summary = response.GetSummary() // which comes last
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
		outcome.Err = errorOf(status.FromProto(result.GetError()))
	}
	return outcome
}
