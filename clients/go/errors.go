package ruvd

import (
	"cmp"
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Error is a call that failed. Get it with errors.As.
//
// errors.Is knows it as context.Canceled or context.DeadlineExceeded when it is this caller's own,
// and status.FromError gives the status that it came with.
type Error struct {
	// Code is gRPC's.
	Code codes.Code
	// Reason is one of ruvdv1.ErrorReason without its prefix, as SESSION_NOT_FOUND. It is empty
	// when the error is not the daemon's own: nobody at the address, or a deadline.
	Reason string
	// Message is for people.
	Message string
	// Violations are the wrong fields, all of them, with INVALID_REQUEST.
	Violations []*errdetails.BadRequest_FieldViolation
	// RetryAfter is set where waiting helps.
	RetryAfter time.Duration

	status *status.Status
}

// Error is the reason, or the code where there is none, and the message.
func (e *Error) Error() string {
	return "ruvd: " + cmp.Or(e.Reason, code.Code(e.Code).String()) + ": " + e.Message
}

// Is makes errors.Is find the errors of package context.
func (e *Error) Is(target error) bool {
	return e.Reason == "" &&
		(target == context.Canceled && e.Code == codes.Canceled ||
			target == context.DeadlineExceeded && e.Code == codes.DeadlineExceeded)
}

// GRPCStatus is the status of the call, with its details.
func (e *Error) GRPCStatus() *status.Status { return e.status }

// typed is the *Error of what gRPC or a context gave. Neither nil nor the end of a stream is one.
func typed(err error) error {
	var known *Error
	switch {
	case err == nil, err == io.EOF, errors.As(err, &known):
		return err
	case err == context.Canceled, err == context.DeadlineExceeded:
		return errorOf(status.FromContextError(err))
	default:
		return errorOf(status.Convert(err))
	}
}

func errorOf(from *status.Status) *Error {
	err := &Error{Code: from.Code(), Message: from.Message(), status: from}
	for _, detail := range from.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() == "ruvd" {
				err.Reason = detail.GetReason()
			}
		case *errdetails.BadRequest:
			err.Violations = detail.GetFieldViolations()
		case *errdetails.RetryInfo:
			err.RetryAfter = detail.GetRetryDelay().AsDuration()
		}
	}
	return err
}
