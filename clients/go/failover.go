package ruvd

import (
	"context"
	"encoding/json"
	"errors"
	"path"
	"regexp"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

const sessionHeader = "x-ruvd-session-id"

var sessionID = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,128}$`)

// serviceConfigFile is what this file uses of the service config if there are several addresses;
// otherwise gRPC applies it.
type serviceConfigFile struct {
	timeouts map[string]time.Duration // of all attempts together, by method
	reads    map[string]bool          // the methods that have the retry policy
	policy   retryPolicy
}

// retryPolicy is that of the methods that only read. With several addresses all methods have it, as
// each call can be repeated.
type retryPolicy struct {
	rounds       int
	firstPause   time.Duration
	longestPause time.Duration
	multiplier   float64
}

var configured = readConfig(serviceConfig)

func readConfig(text string) serviceConfigFile {
	var parsed struct {
		MethodConfig []struct {
			Name        []struct{ Method string }
			Timeout     string
			RetryPolicy *struct {
				MaxAttempts                int
				InitialBackoff, MaxBackoff string
				BackoffMultiplier          float64
			}
		}
	}
	if err := json.Unmarshal([]byte(text), &parsed); err != nil {
		panic(err) // the file is a part of this package
	}
	config := serviceConfigFile{timeouts: map[string]time.Duration{}, reads: map[string]bool{}}
	for _, one := range parsed.MethodConfig {
		for _, name := range one.Name {
			config.timeouts[name.Method] = duration(one.Timeout)
			config.reads[name.Method] = one.RetryPolicy != nil
		}
		if policy := one.RetryPolicy; policy != nil {
			config.policy = retryPolicy{
				rounds:       policy.MaxAttempts,
				firstPause:   duration(policy.InitialBackoff),
				longestPause: duration(policy.MaxBackoff),
				multiplier:   policy.BackoffMultiplier,
			}
		}
	}
	return config
}

// duration parses a Duration in its JSON form, which is 0 if it is not set.
func duration(text string) time.Duration {
	parsed, _ := time.ParseDuration(text)
	return parsed
}

// Invoke makes a call that is no stream. With several addresses it is repeated at the others.
func (c *connections) Invoke(
	ctx context.Context, method string, request, response any, options ...grpc.CallOption,
) error {
	if message, ok := request.(interface{ GetSessionId() string }); ok {
		ctx = withSession(ctx, message.GetSessionId())
	}
	if !c.several {
		return c.invokeAt(ctx, c.now(), method, request, response, options)
	}
	name, policy := path.Base(method), configured.policy
	timeout, hasTimeout := configured.timeouts[name]
	if _, hasDeadline := ctx.Deadline(); !hasDeadline && hasTimeout {
		limited, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		ctx = limited
	}
	request = withRequestID(request)
	wasLost, isRead := false, configured.reads[name]
	for pause := policy.firstPause; ; pause = policy.after(pause) {
		policy.rounds--
		err := c.invokeRound(ctx, method, request, response, options, isRead, &wasLost)
		if err == nil || !failsOver(err, isRead) || policy.rounds == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return toError(ctx.Err())
		case <-time.After(pause):
		}
	}
}

func (p retryPolicy) after(pause time.Duration) time.Duration {
	return min(time.Duration(float64(pause)*p.multiplier), p.longestPause)
}

// invokeRound makes a call at each address until one does not fail over.
func (c *connections) invokeRound(
	ctx context.Context, method string, request, response any, options []grpc.CallOption,
	isRead bool, wasLost *bool,
) (err error) {
	for range c.roundLength() {
		used := c.open(c.now())
		err = used.Invoke(ctx, method, request, response, options...)
		reason := reasonOf(err)
		if failsOver(err, isRead) {
			*wasLost = *wasLost || reason == ""
			c.leave(used, reason != "")
			c.close(used)
			continue
		}
		c.close(used)
		switch request.(type) {
		case *ruvdv1.EndSessionRequest:
			if *wasLost && reason == ReasonSessionNotFound {
				return nil // an attempt whose answer was lost has ended it
			}
		case *ruvdv1.CancelCompletionRequest:
			if reason == ReasonCompletionNotFound {
				return c.invokeAtOthers(ctx, used.entry, err, method, request, response, options)
			}
		}
		return err
	}
	return err
}

// invokeAtOthers asks the other daemons for a completion that one does not have.
func (c *connections) invokeAtOthers(
	ctx context.Context, at *entry, missing error,
	method string, request, response any, options []grpc.CallOption,
) error {
	for _, other := range c.others(at) {
		err := c.invokeAt(ctx, other, method, request, response, options)
		if reasonOf(err) != ReasonCompletionNotFound && !failsOver(err, false) {
			return err
		}
	}
	return missing
}

func (c *connections) invokeAt(
	ctx context.Context, at *entry, method string, request, response any, options []grpc.CallOption,
) error {
	used := c.open(at)
	defer c.close(used)
	return used.Invoke(ctx, method, request, response, options...)
}

// failsOver reports whether a call that failed so is repeated at another address. Any UNAVAILABLE of a
// read is.
func failsOver(err error, isRead bool) bool {
	var failure *Error
	if !errors.As(err, &failure) {
		return false
	}
	return isLeft(failure.Reason) || failure.Code == codes.Unavailable && (isRead || failure.Reason == "")
}

// isLeft reports whether a daemon that gives this reason is left. It has stored nothing.
func isLeft(reason Reason) bool {
	return reason == ReasonShuttingDown || reason == ReasonOwnershipLost
}

func reasonOf(err error) Reason {
	var failure *Error
	if errors.As(err, &failure) {
		return failure.Reason
	}
	return ""
}

// withRequestID gives an id to a request that creates something, so that it can be repeated.
func withRequestID(request any) any {
	message, ok := request.(proto.Message)
	if !ok {
		return request
	}
	switch message := proto.Clone(message).(type) {
	case *ruvdv1.CreateSessionRequest:
		message.RequestId = orRandom(message.RequestId)
		return message
	case *ruvdv1.AppendMessagesRequest:
		message.RequestId = orRandom(message.RequestId)
		return message
	case *ruvdv1.ForkSessionRequest:
		message.RequestId = orRandom(message.RequestId)
		return message
	}
	return request
}

func orRandom(requestID string) string {
	if requestID == "" {
		return uuid()
	}
	return requestID
}

// withSession adds the session's header, by which proxies choose a daemon. A session id that is no
// valid one is left to the daemon, whose error names it.
func withSession(ctx context.Context, id string) context.Context {
	given, _ := metadata.FromOutgoingContext(ctx)
	if !sessionID.MatchString(id) || len(given.Get(sessionHeader)) > 0 {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, sessionHeader, id)
}

// isConnectionError reports whether an error is that of a lost connection.
func isConnectionError(failure *Error) bool {
	return failure.Reason == "" && slices.Contains(connectionErrors, failure.Code)
}
