package ruvd

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"
)

const (
	connectTimeout = 3 * time.Second // of one of several addresses
	pingAfter      = 20 * time.Second
	pingTimeout    = 10 * time.Second
)

// connections has a connection to each of the client's addresses. All calls use the current one until
// a call fails over to the next, by the rules of clients/CONFORMANCE.md.
type connections struct {
	several bool // false for one daemon, of which gRPC takes care alone

	mutex   sync.Mutex
	entries []*entry
	current int
	retired []*link // replaced, with calls that still run
}

// entry is an address and its newest connection.
type entry struct {
	position int // in the list
	isName   bool
	dial     func() (*grpc.ClientConn, error)
	link     *link // guarded by the connections' mutex
}

// link is a connection and the number of its calls. Its fields are guarded by the connections' mutex.
type link struct {
	*grpc.ClientConn
	entry *entry
	calls int
}

// connect creates the connections to these addresses, which are made at their first calls. The
// caller's own options come last, so that they win.
func connect(addresses []string, security, own []grpc.DialOption) (*connections, error) {
	all := &connections{several: len(addresses) > 1 || isName(addresses[0])}
	options := slices.Concat(security, dialOptions(all.several), own)
	for i, address := range addresses {
		dial := func() (*grpc.ClientConn, error) { return grpc.NewClient(address, options...) }
		connection, err := dial()
		if err != nil {
			_ = all.Close()
			return nil, err
		}
		one := &entry{position: i, isName: isName(address), dial: dial}
		one.link = &link{ClientConn: connection, entry: one}
		all.entries = append(all.entries, one)
	}
	// Otherwise all clients that have the same list would use its first address.
	all.current = rand.IntN(len(all.entries))
	return all, nil
}

func dialOptions(several bool) []grpc.DialOption {
	timeout := 2 * time.Second
	options := []grpc.DialOption{
		grpc.WithNoProxy(),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithDisableServiceConfig(),      // no DNS query for a service config
		grpc.WithMaxHeaderListSize(64 << 10), // an error may name many invalid fields
		// The daemon limits the sizes, because its error says why a message was rejected.
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.MaxCallSendMsgSize(math.MaxInt32),
		),
		grpc.WithChainUnaryInterceptor(unaryInterceptor),
		grpc.WithChainStreamInterceptor(streamInterceptor),
	}
	if several {
		timeout = connectTimeout
		options = append(options,
			grpc.WithDisableRetry(), // an attempt is made at an address that the client chooses
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: pingTimeout}),
		)
	}
	// The client reconnects soon after a restart of its daemon.
	return append(options, grpc.WithConnectParams(grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: firstPause, Multiplier: 2, MaxDelay: longestPause},
		MinConnectTimeout: timeout,
	}))
}

// now returns the current entry.
func (c *connections) now() *entry {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return c.entries[c.current]
}

// others returns the entries after this one, in the order in which they are tried.
func (c *connections) others(at *entry) []*entry {
	return slices.Concat(c.entries[at.position+1:], c.entries[:at.position])
}

// roundLength returns the number of attempts after which to pause.
func (c *connections) roundLength() int { return max(2, len(c.entries)) }

// open returns the entry's connection for a call, which ends with close.
func (c *connections) open(at *entry) *link {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	at.link.calls++
	return at.link
}

// close ends a call. The last one of a connection that was replaced closes it.
func (c *connections) close(used *link) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	used.calls--
	if used.calls == 0 && used != used.entry.link {
		c.retired = slices.DeleteFunc(c.retired, func(one *link) bool { return one == used })
		_ = used.ClientConn.Close()
	}
}

// leave moves on from the entry of a call that failed, unless another call has moved on before.
// answered is whether the daemon itself refused the call.
func (c *connections) leave(failed *link, answered bool) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	at := failed.entry
	if at.position == c.current {
		c.current = (c.current + 1) % len(c.entries)
	}
	if answered && at.isName && at.link == failed {
		// The old connection would lead to the same one of the daemons that the name stands for.
		if connection, err := at.dial(); err == nil {
			c.retired = append(c.retired, failed)
			at.link = &link{ClientConn: connection, entry: at}
		}
	}
}

// Close closes all connections.
func (c *connections) Close() (err error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for _, old := range c.retired {
		_ = old.ClientConn.Close()
	}
	for _, one := range c.entries {
		if failure := one.link.ClientConn.Close(); err == nil {
			err = failure
		}
	}
	return err
}

// NewStream starts a stream at the current entry. It is not repeated.
func (c *connections) NewStream(
	ctx context.Context, description *grpc.StreamDesc, method string, options ...grpc.CallOption,
) (grpc.ClientStream, error) {
	used := c.open(c.now())
	stream, err := used.NewStream(ctx, description, method, options...)
	if err != nil {
		c.close(used)
		return nil, err
	}
	context.AfterFunc(stream.Context(), func() { c.close(used) })
	return stream, nil
}
