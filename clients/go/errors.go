package ruvd

import (
	"context"
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
	Violations []FieldViolation
	// RetryAfter is set where waiting helps.
	RetryAfter time.Duration

	status *status.Status
}

// FieldViolation is one wrong field of a request: its path, and what is wrong with it.
type FieldViolation struct {
	Field       string
	Description string
}

// Error is the reason, or the code where there is none, and the message.
func (e *Error) Error() string {
	what := e.Reason
	if what == "" {
		what = code.Code(e.Code).String()
	}
	return "ruvd: " + what + ": " + e.Message
}

// Is makes errors.Is find the errors of package context.
func (e *Error) Is(target error) bool {
	return e.Reason == "" &&
		(target == context.Canceled && e.Code == codes.Canceled ||
			target == context.DeadlineExceeded && e.Code == codes.DeadlineExceeded)
}

// GRPCStatus is the status of the call, with its details.
func (e *Error) GRPCStatus() *status.Status { return e.status }

// errorFrom is the *Error of what gRPC or a context gave; nil for nil.
func errorFrom(err error) error {
	switch err {
	case nil:
		return nil
	case context.Canceled, context.DeadlineExceeded:
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
			for _, each := range detail.GetFieldViolations() {
				err.Violations = append(
					err.Violations, FieldViolation{each.GetField(), each.GetDescription()},
				)
			}
		case *errdetails.RetryInfo:
			err.RetryAfter = detail.GetRetryDelay().AsDuration()
		}
	}
	return err
}
