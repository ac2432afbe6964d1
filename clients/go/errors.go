package ruvd

import (
	"cmp"
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Reason is a ruvdv1.ErrorReason without its prefix, such as ReasonSessionNotFound. Later versions of
// the daemon may have further ones.
type Reason string

// ReasonRequestTooLarge is the reason of a request that gRPC refused for its size, before ruvd saw it.
const ReasonRequestTooLarge Reason = "REQUEST_TOO_LARGE"

// tooLargeText is in the daemon's gRPC status for a request that is, or decompresses to, more than
// slightly above max_request_bytes. Text of this client's own limits begins with "grpc: received".
const tooLargeText = "message larger than max"

// Error is the error of a failed call. Get it with errors.As.
//
// errors.Is matches it with context.Canceled or context.DeadlineExceeded if the client caused it,
// and status.FromError returns its gRPC status.
type Error struct {
	// Code is the gRPC status code.
	Code codes.Code
	// Reason is empty if the error does not come from the daemon (no daemon at the address, deadline
	// exceeded). The client itself adds ReasonRequestTooLarge.
	Reason Reason
	// Message is a description for humans.
	Message string
	// Violations are all invalid fields, with INVALID_REQUEST.
	Violations []*errdetails.BadRequest_FieldViolation
	// RetryAfter is set if the call is worth a retry.
	RetryAfter time.Duration

	status *status.Status
}

// Error returns the reason, or the code if there is no reason, and the message.
func (e *Error) Error() string {
	return "ruvd: " + cmp.Or(string(e.Reason), code.Code(e.Code).String()) + ": " + e.Message
}

// Is makes errors.Is match the errors of package context.
func (e *Error) Is(target error) bool {
	return e.Reason == "" &&
		(target == context.Canceled && e.Code == codes.Canceled ||
			target == context.DeadlineExceeded && e.Code == codes.DeadlineExceeded)
}

// GRPCStatus returns the status of the call, with its details.
func (e *Error) GRPCStatus() *status.Status { return e.status }

// toError converts an error of gRPC or of a context to *Error. It returns nil and io.EOF unchanged.
func toError(err error) error {
	var known *Error
	switch {
	case err == nil, err == io.EOF, errors.As(err, &known):
		return err
	case err == context.Canceled, err == context.DeadlineExceeded:
		return fromStatus(status.FromContextError(err))
	default:
		return fromStatus(status.Convert(err))
	}
}

func fromStatus(from *status.Status) *Error {
	err := &Error{Code: from.Code(), Message: from.Message(), status: from}
	for _, detail := range from.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() == "ruvd" {
				err.Reason = Reason(detail.GetReason())
			}
		case *errdetails.BadRequest:
			err.Violations = detail.GetFieldViolations()
		case *errdetails.RetryInfo:
			err.RetryAfter = detail.GetRetryDelay().AsDuration()
		}
	}
	if err.Reason == "" && err.Code == codes.ResourceExhausted &&
		strings.Contains(err.Message, tooLargeText) && !strings.HasPrefix(err.Message, "grpc: received") {
		err.Reason = ReasonRequestTooLarge
		err.Message += " (the daemon's max_request_bytes)"
	}
	return err
}
