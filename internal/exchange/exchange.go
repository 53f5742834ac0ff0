// Package exchange is one request's way through lb: its record, and the
// decisions about it in their order. It decides and never carries: it knows no
// net/http, and whoever moves the bytes asks it at each turn. Nothing here
// allocates on the way of a request that goes well.
package exchange

import (
	"net/netip"
	"sync/atomic"
	"time"

	"lb/internal/backend"
	"lb/internal/balance"
	"lb/internal/metrics"
	"lb/internal/outcome"
	"lb/internal/pool"
	"lb/internal/route"
)

// View is what decisions may see of a request. It is valid until Finish; its
// strings may alias the connection's buffer.
type View interface {
	// Method is the request's method.
	Method() string
	// Target is the request target as the client wrote it.
	Target() string
	// Host is the Host field, or the authority of an absolute-form target.
	Host() string
	// Lookup returns a field's value, its lines joined by ", ", or "" if it is
	// absent or if the client named it in Connection.
	Lookup(field string) string
	// Fields is the number of field lines.
	Fields() int
	// Peer is the address at the other end of the connection, invalid for a
	// unix socket.
	Peer() netip.Addr
}

// Action says what a route does with its requests.
type Action uint8

// The actions of a route.
const (
	Proxy   Action = iota // send to one backend
	Fanout                // send to every backend
	Respond               // answer by itself
	Metrics               // serve the metrics
	Status                // serve the state of a fan-out: the reserved prefix
	Refuse                // no route's: answer with Exchange.Failure
)

// Route is a compiled route.
type Route struct {
	Name   string
	Action Action
	// Pool is set for Proxy and Fanout.
	Pool *pool.Pool
	// Required makes the health report depend on the pool.
	Required bool
	// Timeout runs to the response head, over the queue and all attempts.
	Timeout time.Duration
	Retry   RetryPolicy
	// Key is what the pool's policy spreads by, if it does so by a key.
	Key KeySource
	// Strip is the path prefix, of whole segments, that the backend does not get
	// to see; empty: none.
	Strip string
	// Procedure says that the pool was made by registration: when everybody has
	// gone, there is no such procedure any more.
	Procedure bool
	// Body and Status are the answer of a Respond route.
	Status int
	Body   string
	// Plan is what the fan-out carrier needs to know of a Fanout route. It is
	// opaque here, because the carriers stand above this package.
	Plan any
	// Instruments counts the route's requests, Retries the pool's retries by
	// RetryOutcomes.
	Instruments *metrics.Route
	Retries     []*metrics.Counter
	// Refused counts the pool's requests that got no backend, by RefusedCodes,
	// and QueueWait observes how long those waited that had to. Nil counts
	// nothing.
	Refused   []*metrics.Counter
	QueueWait *metrics.Histogram
}

// RetryPolicy is a compiled retry rule.
type RetryPolicy struct {
	// Attempts is the number of tries after the first.
	Attempts int
	// Reset allows a retry when the connection ended before a head.
	Reset bool
	// Statuses are the response statuses that are retried.
	Statuses map[int]bool
	// Keyed allows retries of requests with an Idempotency-Key.
	Keyed bool
}

// Snapshot is one compiled configuration of the data plane. It is immutable.
type Snapshot struct {
	Generation uint64
	Table      *route.Table
	// Routes stand in the order that the table was compiled from.
	Routes []Route
	// Unrouted counts requests that no route took.
	Unrouted *metrics.Route
}

// Exchange is the record of one request. A carrier owns it from Begin to
// Finish, and resets it before it is used again.
type Exchange struct {
	// Listener says what the request's listener allows. Set before Begin.
	Listener *Listener

	// What Begin found out.
	Snapshot *Snapshot
	Route    *Route // nil if none took the request
	Method   string
	Host     string // normalized
	Target   route.Target
	Client   netip.Addr // the client as far as trusted peers tell
	Forward  Forward
	// Upstream is the raw path to send to a backend: that of Target, without
	// what the route strips. Prefix is the X-Forwarded-Prefix that goes with it;
	// empty: lb has none to set.
	Upstream, Prefix string
	// Failure is the answer when the verdict is Refuse or a step is Fail.
	Failure *outcome.Error
	// Allow lists the methods for a 405.
	Allow []string

	// What the carrier keeps up to date.

	// HeadSent turns true when a byte of any response head, 1xx included, goes
	// to the client: from then on nothing is retried. Atomic because a 1xx can
	// come while an attempt is being given up.
	HeadSent atomic.Bool
	// Replayable says whether the request body can be sent once more.
	Replayable bool
	// Status is the final status sent to the client, 0 before.
	Status            int
	BytesIn, BytesOut int64

	// FanoutID and Acked ("2/3") are those of a write's answer.
	FanoutID, Acked string

	// Backend is where the current or last attempt went; x holds a lease on it
	// until another is looked for and there is no answer at hand, or until Finish.
	Backend *backend.Backend
	// Attempts counts the attempts that were begun.
	Attempts int
	// Queued is how long the request waited for a slot.
	Queued time.Duration
	// Outcome is how the last attempt ended, or the request when it is over.
	Outcome outcome.Outcome
	// Start is when the request's head was complete.
	Start time.Time
	// Took is set by Finish.
	Took time.Duration

	query      balance.Query
	waiter     pool.Waiter
	lease      pool.Lease
	began      time.Time     // when the last attempt began
	attempt    outcome.Class // how the last attempt ended, as far as its head goes
	passing    bool          // the last attempt's response was the answer
	retries    int           // tries that counted against the route's attempts
	repeatable bool          // the method, or the key, allows a retry
}

// Reset empties x for the next request, keeping what the listener allows.
func (x *Exchange) Reset() {
	*x = Exchange{Listener: x.Listener}
}

// Listener is what a listener allows, compiled.
type Listener struct {
	Name string
	// Trusted are the peers whose forwarded fields are believed.
	Trusted []netip.Prefix
	// TrustUnix believes every peer of a unix socket.
	TrustUnix bool
	// MaxFields is how many field lines a request may have.
	MaxFields int
	// Scheme is http, for X-Forwarded-Proto.
	Scheme string
}
