package ruvd

import (
	"context"
	"maps"
	"slices"

	"go.opentelemetry.io/otel"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// unary gives every call its trace and every failure its type.
func unary(
	ctx context.Context, method string, request, response any, connection *grpc.ClientConn,
	invoke grpc.UnaryInvoker, options ...grpc.CallOption,
) error {
	return errorFrom(invoke(traced(ctx), method, request, response, connection, options...))
}

// streaming gives every stream its trace.
func streaming(
	ctx context.Context, description *grpc.StreamDesc, connection *grpc.ClientConn, method string,
	stream grpc.Streamer, options ...grpc.CallOption,
) (grpc.ClientStream, error) {
	return stream(traced(ctx), description, connection, method, options...)
}

// traced adds what OpenTelemetry's global propagator says of the trace in ctx; nothing, where the
// service has set none.
func traced(ctx context.Context) context.Context {
	outgoing, ok := metadata.FromOutgoingContext(ctx) // a copy
	if !ok {
		outgoing = metadata.MD{}
	}
	otel.GetTextMapPropagator().Inject(ctx, carrier(outgoing))
	return metadata.NewOutgoingContext(ctx, outgoing)
}

// carrier is gRPC's metadata as OpenTelemetry wants to see it.
type carrier metadata.MD

// Get is the first value of the key.
func (c carrier) Get(key string) string {
	if values := metadata.MD(c).Get(key); len(values) > 0 {
		return values[0]
	}
	return ""
}

// Set replaces the values of the key.
func (c carrier) Set(key, value string) { metadata.MD(c).Set(key, value) }

// Keys are all keys.
func (c carrier) Keys() []string { return slices.Collect(maps.Keys(c)) }
