package ruvd_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	ruvd "github.com/ruvd/ruvd/clients/go"
	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

// call is the script of one streaming call: its events, then its status.
type call struct {
	events    []*ruvdv1.CompletionEvent
	err       error
	staysOpen bool // until the client closes the call
}

// scriptedDaemon reproduces failures that a real daemon shows only if it is killed at a certain moment.
type scriptedDaemon struct {
	ruvdv1.UnimplementedSessionServiceServer
	calls    []call
	cancels  error // of CancelCompletion
	requests chan any
	tokens   chan string   // the authorization of the calls of completions, empty for none
	headers  chan []string // the session headers of the same calls; nil if the test does not read them
}

func (d *scriptedDaemon) record(ctx context.Context, request any) {
	received, _ := metadata.FromIncomingContext(ctx)
	d.tokens <- strings.Join(received.Get("authorization"), ", ")
	if d.headers != nil {
		d.headers <- received.Get("x-ruvd-session-id")
	}
	d.requests <- request
}

func (d *scriptedDaemon) answer(
	ctx context.Context, request any, send func(*ruvdv1.CompletionEvent) error,
) error {
	d.record(ctx, request)
	if len(d.calls) == 0 {
		return status.Error(codes.Unavailable, "nothing more in the script")
	}
	next := d.calls[0]
	d.calls = d.calls[1:]
	for _, event := range next.events {
		if err := send(event); err != nil {
			return err
		}
	}
	if next.staysOpen {
		<-ctx.Done()
	}
	return next.err
}

func (d *scriptedDaemon) Complete(
	request *ruvdv1.CompleteRequest, stream grpc.ServerStreamingServer[ruvdv1.CompleteResponse],
) error {
	return d.answer(stream.Context(), request, func(event *ruvdv1.CompletionEvent) error {
		return stream.Send(&ruvdv1.CompleteResponse{Event: event})
	})
}

func (d *scriptedDaemon) ResumeCompletion(
	request *ruvdv1.ResumeCompletionRequest,
	stream grpc.ServerStreamingServer[ruvdv1.ResumeCompletionResponse],
) error {
	return d.answer(stream.Context(), request, func(event *ruvdv1.CompletionEvent) error {
		return stream.Send(&ruvdv1.ResumeCompletionResponse{Event: event})
	})
}

func (d *scriptedDaemon) CancelCompletion(
	ctx context.Context, request *ruvdv1.CancelCompletionRequest,
) (*ruvdv1.CancelCompletionResponse, error) {
	d.record(ctx, request)
	return &ruvdv1.CancelCompletionResponse{}, d.cancels
}

func (d *scriptedDaemon) GetSession(
	ctx context.Context, _ *ruvdv1.GetSessionRequest,
) (*ruvdv1.GetSessionResponse, error) {
	received, _ := metadata.FromIncomingContext(ctx)
	d.requests <- received
	return nil, ruvdError(codes.InvalidArgument, "INVALID_REQUEST",
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
			{Field: "session_id", Description: "is invalid"}, {Field: "view", Description: "is unknown"},
		}},
		&errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)},
	)
}

// request returns the next request that the daemon received, which has to be of this kind.
func request[Kind any](t *testing.T, daemon *scriptedDaemon) Kind {
	t.Helper()
	select {
	case request := <-daemon.requests:
		kind, ok := request.(Kind)
		if !ok {
			t.Fatalf("the next request is %T %v", request, request)
		}
		return kind
	case <-time.After(time.Minute):
		t.Fatal("no further request")
		panic("not reached")
	}
}

func noFurtherRequest(t *testing.T, daemon *scriptedDaemon) {
	t.Helper()
	select {
	case request := <-daemon.requests:
		t.Fatalf("a further request: %T %v", request, request)
	default:
	}
}

func serve(t *testing.T, calls ...call) (*scriptedDaemon, *ruvd.Client) {
	t.Helper()
	return serveTo(t, nil, calls...)
}

// serveTo serves a client that has these options.
func serveTo(
	t *testing.T, options []ruvd.ClientOption, calls ...call,
) (*scriptedDaemon, *ruvd.Client) {
	t.Helper()
	daemon, address := listen(t, calls...)
	return daemon, newClient(t, address, options...)
}

// listen starts a daemon and returns its address.
func listen(t *testing.T, calls ...call) (*scriptedDaemon, string) {
	t.Helper()
	daemon := &scriptedDaemon{
		calls: calls, requests: make(chan any, 100), tokens: make(chan string, 100),
	}
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	ruvdv1.RegisterSessionServiceServer(server, daemon)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return daemon, "unix:" + path
}

func newClient(t *testing.T, address string, options ...ruvd.ClientOption) *ruvd.Client {
	t.Helper()
	client, err := ruvd.New(append([]ruvd.ClientOption{
		ruvd.WithAddress(address), ruvd.WithReconnect(time.Minute),
	}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func ruvdError(code codes.Code, reason string, details ...protoadapt.MessageV1) error {
	info := &errdetails.ErrorInfo{Domain: "ruvd", Reason: reason}
	withDetails, err := status.New(code, "rejected").WithDetails(
		append([]protoadapt.MessageV1{info}, details...)...,
	)
	if err != nil {
		panic(err)
	}
	return withDetails.Err()
}

var broken = status.Error(codes.Unavailable, "connection reset")

func started(sequence int64) *ruvdv1.CompletionEvent {
	return &ruvdv1.CompletionEvent{Sequence: sequence, Event: &ruvdv1.CompletionEvent_Started{
		Started: &ruvdv1.Started{CompletionId: "c-1"},
	}}
}

func delta(sequence int64, text string) *ruvdv1.CompletionEvent {
	return &ruvdv1.CompletionEvent{Sequence: sequence, Event: &ruvdv1.CompletionEvent_Delta{
		Delta: &ruvdv1.Delta{Part: &ruvdv1.Delta_Text{Text: text}},
	}}
}

func finished(sequence int64, content string) *ruvdv1.CompletionEvent {
	return &ruvdv1.CompletionEvent{Sequence: sequence, Event: &ruvdv1.CompletionEvent_Finished{
		Finished: &ruvdv1.Finished{Message: &ruvdv1.Message{Content: content}},
	}}
}

func events(list ...*ruvdv1.CompletionEvent) []*ruvdv1.CompletionEvent { return list }

func texts(
	ctx context.Context, answer *ruvd.Completion,
) (received []string, failure *ruvd.Error) {
	for text, err := range answer.Text(ctx) {
		if err != nil {
			errors.As(err, &failure)
			return received, failure
		}
		received = append(received, text)
	}
	return received, nil
}

func expect(t *testing.T, received, wanted []string) {
	t.Helper()
	if !slices.Equal(received, wanted) {
		t.Fatalf("received texts %q, not %q", received, wanted)
	}
}

// After a restart only Finished arrives. The part of its text that no delta had is delivered.
func TestTextThatOnlyFinishedHasIsDelivered(t *testing.T) {
	daemon, client := serve(t,
		call{events: events(started(1), delta(2, "one")), err: broken},
		call{events: events(finished(5, "one two three"))},
	)
	answer := client.Complete("hi")
	received, failure := texts(t.Context(), answer)
	if failure != nil {
		t.Fatal(failure)
	}
	expect(t, received, []string{"one", " two three"})
	request[*ruvdv1.CompleteRequest](t, daemon)
	resumed := request[*ruvdv1.ResumeCompletionRequest](t, daemon)
	if resumed.GetCompletionId() != "c-1" || resumed.GetAfterSequence() != 2 {
		t.Fatalf("resumed by %v", resumed)
	}
	if answer.LastSequence() != 5 || answer.Finished() == nil {
		t.Fatalf("ended at %d with %v", answer.LastSequence(), answer.Finished())
	}
	noFurtherRequest(t, daemon)
}

// A final answer that contradicts the text delivered before is DATA_LOSS, and no call is repeated.
func TestAnswerThatContradictsDeliveredTextIsDataLoss(t *testing.T) {
	daemon, client := serve(t,
		call{events: events(started(1), delta(2, "one")), err: broken},
		call{events: events(finished(5, "uno dos"))},
	)
	received, failure := texts(t.Context(), client.Complete("hi"))
	expect(t, received, []string{"one"})
	if failure == nil || failure.Code != codes.DataLoss {
		t.Fatalf("ended with %v", failure)
	}
	request[*ruvdv1.CompleteRequest](t, daemon)
	request[*ruvdv1.ResumeCompletionRequest](t, daemon)
	noFurtherRequest(t, daemon)
}

// A completion that a restarted daemon has lost is generated again with the same request id, if no
// text was delivered.
func TestLostCompletionWithoutTextIsGeneratedAgain(t *testing.T) {
	daemon, client := serve(t,
		call{events: events(started(1)), err: broken},
		call{err: ruvdError(codes.NotFound, "COMPLETION_NOT_FOUND")},
		call{events: events(started(1), delta(2, "one"), finished(3, "one"))},
	)
	received, failure := texts(t.Context(), client.Complete("hi"))
	if failure != nil {
		t.Fatal(failure)
	}
	expect(t, received, []string{"one"})
	first := request[*ruvdv1.CompleteRequest](t, daemon)
	request[*ruvdv1.ResumeCompletionRequest](t, daemon)
	again := request[*ruvdv1.CompleteRequest](t, daemon)
	if first.GetRequestId() == "" || again.GetRequestId() != first.GetRequestId() {
		t.Fatalf("request ids %q and %q", first.GetRequestId(), again.GetRequestId())
	}
}

// Delivered text is never followed by the text of another generation.
func TestLostCompletionWithTextIsNotGeneratedAgain(t *testing.T) {
	daemon, client := serve(t,
		call{events: events(started(1), delta(2, "one")), err: broken},
		call{err: ruvdError(codes.NotFound, "COMPLETION_NOT_FOUND")},
	)
	received, failure := texts(t.Context(), client.Complete("hi"))
	expect(t, received, []string{"one"})
	if failure == nil || failure.Reason != ruvd.ReasonCompletionNotFound {
		t.Fatalf("ended with %v", failure)
	}
	request[*ruvdv1.CompleteRequest](t, daemon)
	request[*ruvdv1.ResumeCompletionRequest](t, daemon)
	noFurtherRequest(t, daemon)
}

// A status code that no lost connection causes is final, and so is an error of ruvd's.
func TestOtherFailuresAreFinal(t *testing.T) {
	for _, err := range []error{
		status.Error(codes.Unimplemented, "not here"),
		status.Error(codes.ResourceExhausted, "too large"),
		ruvdError(codes.Unavailable, "ENGINE_UNAVAILABLE"),
	} {
		daemon, client := serve(t, call{events: events(started(1)), err: err})
		_, failure := texts(t.Context(), client.Complete("hi"))
		if failure == nil || failure.Code != status.Code(err) {
			t.Fatalf("ended with %v", failure)
		}
		request[*ruvdv1.CompleteRequest](t, daemon)
		noFurtherRequest(t, daemon)
	}
}

// If the daemon does not return, the answer ends with the error of the last attempt.
func TestReconnectingStopsAfterItsTimeLimit(t *testing.T) {
	_, client := serveTo(t, []ruvd.ClientOption{ruvd.WithReconnect(300 * time.Millisecond)},
		call{events: events(started(1)), err: broken},
	)
	start := time.Now()
	_, failure := texts(t.Context(), client.Complete("hi"))
	if failure == nil || failure.Code != codes.Unavailable ||
		failure.Message != "nothing more in the script" {
		t.Fatalf("ended with %v", failure)
	}
	if elapsed := time.Since(start); elapsed < 300*time.Millisecond {
		t.Fatalf("gave up after %v", elapsed)
	}
}

// Leaving the loop cancels the completion by its id, and waiting for it is an error afterwards.
func TestLeavingTheLoopCancels(t *testing.T) {
	daemon, client := serve(t, call{events: events(started(1), delta(2, "one")), staysOpen: true})
	answer := client.Complete("hi")
	for range answer.Text(t.Context()) {
		break
	}
	request[*ruvdv1.CompleteRequest](t, daemon)
	if by := request[*ruvdv1.CancelCompletionRequest](t, daemon); by.GetCompletionId() != "c-1" {
		t.Fatalf("cancelled by %v", by)
	}
	if _, err := answer.Message(t.Context()); !errors.Is(err, context.Canceled) {
		t.Fatalf("waiting gave %v", err)
	}
}

// Leaving the loop after ending the context cancels the completion, too, and yields nothing more.
func TestLeavingTheLoopWithAnEndedContextCancels(t *testing.T) {
	daemon, client := serve(t, call{events: events(started(1), delta(2, "one")), staysOpen: true})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range client.Complete("hi").Text(ctx) {
		cancel()
		break
	}
	request[*ruvdv1.CompleteRequest](t, daemon)
	request[*ruvdv1.CancelCompletionRequest](t, daemon)
}

// Leaving a resumed completion cancels it by the ids with which it was resumed.
func TestLeavingAResumedCompletionCancels(t *testing.T) {
	daemon, client := serve(t, call{events: events(delta(4, "one")), staysOpen: true})
	answer := client.ResumeCompletion(&ruvdv1.ResumeCompletionRequest{
		SessionId: "s", RequestId: "r", AfterSequence: 3,
	})
	for range answer.Text(t.Context()) {
		break
	}
	request[*ruvdv1.ResumeCompletionRequest](t, daemon)
	by := request[*ruvdv1.CancelCompletionRequest](t, daemon)
	if by.GetSessionId() != "s" || by.GetRequestId() != "r" {
		t.Fatalf("cancelled by %v", by)
	}
}

// Before Started a completion is cancelled by its session and request id.
func TestEndOfTheContextCancelsBeforeStarted(t *testing.T) {
	daemon, client := serve(t, call{staysOpen: true})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan *ruvd.Error)
	go func() {
		_, failure := texts(ctx, client.Complete("hi", ruvd.WithSession("s"), ruvd.WithRequestID("r")))
		ended <- failure
	}()
	request[*ruvdv1.CompleteRequest](t, daemon)
	cancel()
	if failure := <-ended; failure == nil || !errors.Is(failure, context.Canceled) {
		t.Fatalf("ended with %v", failure)
	}
	by := request[*ruvdv1.CancelCompletionRequest](t, daemon)
	if by.GetSessionId() != "s" || by.GetRequestId() != "r" {
		t.Fatalf("cancelled by %v", by)
	}
}

// A completion that continues without readers is not cancelled.
func TestCompletionThatContinuesIsNotCancelled(t *testing.T) {
	daemon, client := serve(t, call{events: events(started(1), delta(2, "one")), staysOpen: true})
	rule := ruvd.WithOnDisconnect(ruvdv1.OnDisconnect_ON_DISCONNECT_CONTINUE)
	for range client.Complete("hi", rule).Text(t.Context()) {
		break
	}
	_ = client.Close() // waits for pending cancel calls
	request[*ruvdv1.CompleteRequest](t, daemon)
	noFurtherRequest(t, daemon)
}

// An error has the contents of its details, and calls carry the trace context.
func TestErrorsHaveDetailsAndCallsHaveTraces(t *testing.T) {
	otel.SetTextMapPropagator(propagation.TraceContext{})
	t.Cleanup(func() {
		otel.SetTextMapPropagator(propagation.NewCompositeTextMapPropagator())
	})
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	ctx := propagation.TraceContext{}.Extract(
		t.Context(), propagation.MapCarrier{"traceparent": trace},
	)
	daemon, client := serve(t)
	_, err := client.GetSession(ctx, &ruvdv1.GetSessionRequest{SessionId: "s"})
	var failure *ruvd.Error
	if !errors.As(err, &failure) {
		t.Fatalf("failed with %v", err)
	}
	var violations []string
	for _, violation := range failure.Violations {
		violations = append(violations, violation.GetField()+" "+violation.GetDescription())
	}
	wanted := []string{"session_id is invalid", "view is unknown"}
	if failure.Code != codes.InvalidArgument || failure.Reason != ruvd.ReasonInvalidRequest ||
		failure.RetryAfter != time.Second || !slices.Equal(violations, wanted) {
		t.Fatalf("failed with %+v", failure)
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Fatalf("its gRPC status is %v", status.Code(err))
	}
	if md := request[metadata.MD](t, daemon); !slices.Equal(md.Get("traceparent"), []string{trace}) {
		t.Fatalf("metadata %v", md)
	}
}

func part(data []byte, offset, total int) *ruvdv1.CompletionEvent {
	return &ruvdv1.CompletionEvent{Sequence: 2, Event: &ruvdv1.CompletionEvent_MessagePart{
		MessagePart: &ruvdv1.MessagePart{
			Data: data[offset:min(offset+4, total)], Offset: int64(offset), TotalBytes: int64(total),
		},
	}}
}

func finishedInParts() *ruvdv1.CompletionEvent {
	return &ruvdv1.CompletionEvent{Sequence: 3, Event: &ruvdv1.CompletionEvent_Finished{
		Finished: &ruvdv1.Finished{MessageInParts: true},
	}}
}

// The parts of a large message are put into Finished, also if the stream breaks among them.
func TestPartsOfALargeMessageAreJoined(t *testing.T) {
	message := &ruvdv1.Message{Content: "Zürich", Reasoning: "why"}
	data, err := proto.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	whole := events()
	for offset := 0; offset < len(data); offset += 4 {
		whole = append(whole, part(data, offset, len(data)))
	}
	_, client := serve(t,
		call{events: append(events(started(1), delta(2, "Zür")), whole[:2]...), err: broken},
		call{events: append(whole, finishedInParts())},
	)
	answer := client.Complete("hi")
	received, failure := texts(t.Context(), answer)
	if failure != nil || !slices.Equal(received, []string{"Zür", "ich"}) {
		t.Error(received, failure)
	}
	if !proto.Equal(answer.Finished().GetMessage(), message) {
		t.Error(answer.Finished())
	}
}

func TestAMissingPartOfALargeMessageIsDataLoss(t *testing.T) {
	data := []byte("0123456789")
	_, client := serve(t,
		call{events: events(started(1), part(data, 0, 10), part(data, 8, 10), finishedInParts())},
	)
	_, failure := texts(t.Context(), client.Complete("hi"))
	if failure == nil || failure.Code != codes.DataLoss {
		t.Error(failure)
	}
}
