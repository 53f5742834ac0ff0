// Package fanout carries one request to every backend of a pool: a write
// becomes one delivery a backend, each tried again until the backend accepts
// it, whatever the client does meanwhile.
//
// Deciding stands apart from carrying. verdict.go says what an attempt's end
// means for the write, backoff.go how long a retry waits, lane.go which
// delivery of a backend tries next, chain.go which write of a key, lag.go
// whether a backend is behind, answer.go what the client gets; none of them
// does I/O. engine.go and sender.go move the bytes. presence.go is for backends
// that come and go.
//
// The promise is at least once for each backend, in the order of admission
// for each key, under the same Idempotency-Key each time. It holds as long as
// the Journal does; with Memory that is until the process ends.
//
// Of the writes that are not settled the engine holds a window in memory
// (window.go); the journal has the rest, and after a restart all of it.
package fanout

import (
	"context"
	"time"

	"lb/internal/backend"
	"lb/internal/outcome"
	"lb/internal/pool"
)

// Field is one header field: a name with one value.
type Field struct{ Name, Value string }

// Write is one client's request, whole. It must not be changed after Submit:
// its slices are shared by all attempts.
type Write struct {
	Method string
	// Target is the request target, sent byte for byte: origin form, or "*".
	Target string
	Host   string
	// Fields are the end-to-end fields as the backends get them: edited, with
	// the forwarded fields and X-Request-Id, without framing.
	Fields []Field
	Body   []byte
	// Key is the client's Idempotency-Key; empty if it sent none, and then the
	// fan-out's id goes out in its place.
	Key string
	// RequestID is the client's request id, for the log.
	RequestID string
}

// Ack says whose success the client waits for.
type Ack string

// The values of Ack, as the config spells them.
const (
	AckAll    Ack = "all"
	AckFirst  Ack = "first"
	AckQuorum Ack = "quorum"
)

// need returns how many of n deliveries must succeed.
func (a Ack) need(n int) int {
	switch a {
	case AckFirst:
		return 1
	case AckQuorum:
		return n/2 + 1
	default:
		return n
	}
}

// Plan is a fan-out route, compiled. It is never changed: a write keeps the
// plan it was admitted under.
type Plan struct {
	// Route is the route's name. The pending limits count by it.
	Route string
	Pool  Pool
	// Success lists the statuses that settle a delivery, Reject those that are
	// held while no backend has accepted the write, Already those that settle
	// a delivery of which an earlier attempt has an unknown outcome.
	Success, Reject, Already []int
	Ack                      Ack
	// Wait is the longest that a client waits before it gets 202.
	Wait time.Duration
	// AttemptTimeout bounds one attempt, from dial to the response's end; 0
	// means no bound.
	AttemptTimeout time.Duration
	Backoff        Backoff
	// MaxAttempts is how many attempts may reach the backend before the
	// delivery is parked, MaxAge how old it may become; 0 means no bound.
	MaxAttempts int
	MaxAge      time.Duration
	// MaxBody is the largest request body, in bytes. Whoever reads the body
	// enforces it; the engine does not look at it.
	MaxBody int64
	// MaxPending and MaxPendingBytes bound the route's writes that are not
	// settled, and the bytes of their targets, fields and bodies; 0 means no
	// bound.
	MaxPending      int
	MaxPendingBytes int64
	// OrderBy says which writes of the pool belong to one key, and so succeed
	// at each backend in the order of admission.
	OrderBy OrderBy
}

// Pool is what a fan-out needs of a pool.
type Pool interface {
	Name() string
	// Members are the backends that are Present, in config order, those that are
	// down included: who gets new writes. The slice is frozen.
	Members() []*backend.Backend
	// Member returns the backend with that id: a member, or one that is absent
	// and may come back, which is not Present and has its deliveries kept for
	// it; nil if there is neither.
	Member(id string) *backend.Backend
	// Acquire begins a lease on b for an attempt, whatever its state. If there is
	// no slot for it now, ok is false, and w waits until it is Granted one, or
	// Withdrawn.
	Acquire(b *backend.Backend, w *pool.Waiter) (l pool.Lease, ok bool)
	// Withdraw ends the wait of w. False: Granted was or will be called.
	Withdraw(w *pool.Waiter) bool
	// LaggingAfter is how old a pending delivery becomes before its backend is
	// lagging; 0 means that age does not matter. A write keeps the value that
	// it found when it came.
	LaggingAfter() time.Duration
}

// State is where a write stands.
type State string

// The states of a write. All but WritePending are final.
const (
	WritePending   State = "pending"
	WriteDone      State = "done"
	WriteParked    State = "parked"
	WriteRejected  State = "rejected"
	WriteCancelled State = "cancelled"
)

// Settled reports whether s is final, until an operator says otherwise.
func (s State) Settled() bool { return s != WritePending }

// DeliveryState is where one backend's copy of a write stands.
type DeliveryState string

// The states of a delivery. Held is an answer in Plan.Reject that waits for
// the verdict; it stays so when the verdict is a rejection. Parked is given
// up, with the backend lacking the write. Skipped is left out by an operator.
const (
	DeliveryPending   DeliveryState = "pending"
	DeliveryHeld      DeliveryState = "held"
	DeliveryDone      DeliveryState = "done"
	DeliveryParked    DeliveryState = "parked"
	DeliverySkipped   DeliveryState = "skipped"
	DeliveryCancelled DeliveryState = "cancelled"
)

// ended reports whether s is final for good: nothing of the write will be sent
// any more.
func (s State) ended() bool { return s.Settled() && s != WriteParked }

// unsettled reports whether a delivery in s may still be made, and so keeps
// those of its key that come after it waiting.
func (s DeliveryState) unsettled() bool {
	return s == DeliveryPending || s == DeliveryHeld || s == DeliveryParked
}

// Reason says why a delivery was parked or cancelled, for people.
type Reason string

// The reasons.
const (
	// ReasonDiverged: the backend kept refusing what another one accepted.
	ReasonDiverged    Reason = "diverged"
	ReasonMaxAttempts Reason = "max_attempts"
	ReasonMaxAge      Reason = "max_age"
	// ReasonUndecided: the delivery was held, no backend accepted the write,
	// and the last delivery that could have decided was parked.
	ReasonUndecided Reason = "undecided"
	// ReasonRejected: the write was rejected before the delivery was sent.
	ReasonRejected Reason = "rejected"
	// ReasonDamaged: the journal cannot read any more what was to be sent.
	ReasonDamaged Reason = "damaged"
	// ReasonRemoved: the backend is no member of the pool any more, and is not
	// waited for.
	ReasonRemoved Reason = "removed"
	// ReasonUnacknowledged: the journal took so long that the client was told
	// the write had failed; then it was stored after all.
	ReasonUnacknowledged Reason = "unacknowledged"
	// ReasonOperator: an operator left it out.
	ReasonOperator Reason = "operator"
)

// Answer is what the client gets.
type Answer struct {
	// ID is the write's id: /.lb/fanout/{id}, and the field X-LB-Fanout-Id.
	ID string
	// Pending means 202: the write was admitted and its end is not known yet.
	Pending bool
	// Rejected means that no backend has or will have the write, and that the
	// answer is a backend's refusal.
	Rejected bool
	// Status is the backend's, or 202.
	Status int
	// Fields are the backend's end-to-end fields, without Content-Length.
	Fields []Field
	// Body is the backend's, cut at MaxAnswerBody.
	Body []byte
	// Acked of Total deliveries had succeeded when the answer was made.
	Acked, Total int
	// Backend is the id of the backend whose answer it is; empty with Pending.
	Backend string
}

// MaxAnswerBody is how much of a backend's response body is kept, in bytes.
const MaxAnswerBody = 64 << 10

// Request is one attempt, as a Sender gets it: the same for every attempt of
// every delivery of a write.
type Request struct {
	Method, Target, Host string
	Fields               []Field
	Body                 []byte
	// Key goes out as Idempotency-Key, FanoutID as X-LB-Fanout-Id.
	Key, FanoutID string
}

// Response is a backend's answer to an attempt.
type Response struct {
	Status int
	// Fields are the end-to-end fields, without Content-Length; Body is cut at
	// MaxAnswerBody.
	Fields []Field
	Body   []byte
	// RetryAfter is what the backend asked for; 0 if it did not.
	RetryAfter time.Duration
}

// Sender makes one attempt.
type Sender interface {
	// Send sends r to b and returns b's answer, whole. It ends with ctx. It
	// never sends twice. An error that wraps an *outcome.DialError proves that
	// nothing was sent; after any other the backend may have the write.
	Send(ctx context.Context, b *backend.Backend, r Request) (Response, error)
}

// Settlement is a delivery that reached a final state.
type Settlement struct {
	Plan          *Plan
	ID, RequestID string
	Backend       *backend.Backend
	// State is done, parked, skipped or cancelled; Reason is empty for done.
	State    DeliveryState
	Reason   Reason
	Attempts int
	// LastStatus is the last status the backend answered with, 0 for none.
	LastStatus int
	// Age runs from the admission.
	Age time.Duration
}

// Events hears what happens, for metrics and logs. Its methods are called from
// many goroutines, outside of the engine's lock; they should not block. What
// made a client's answer possible is told before the client gets it.
type Events interface {
	// Attempt ended. succeeded tells whether it settled its delivery; then the
	// class is outcome.Success, whatever the status. An answer that did not
	// has the class outcome.Failure. With outcome.Starved lb itself could not
	// make the attempt, and the backend is not to blame. Attempts that were
	// cut by the engine's stop are not reported.
	Attempt(p *Plan, b *backend.Backend, o outcome.Outcome, succeeded bool)
	// Settled is called once for each delivery that ends; not for those that
	// are held when their write is rejected.
	Settled(s Settlement)
	// Decided is called once for each write, when it first leaves WritePending;
	// took runs from its admission.
	Decided(p *Plan, id string, s State, took time.Duration)
	// Disagreed is called once for each write whose backends gave different
	// last answers: statuses has one for each that answered, by config order.
	Disagreed(p *Plan, id string, statuses []int)
	// Lagging is called once for each change: b is behind on its deliveries, or
	// is so no more. reason is for people. The calls come in the order of the
	// changes, and one at a time. What changes once the
	// engine is stopping is not told.
	Lagging(pool string, b *backend.Backend, lagging bool, reason string)
}

// noEvents is an Events that nobody listens to.
type noEvents struct{}

func (noEvents) Attempt(*Plan, *backend.Backend, outcome.Outcome, bool) {}
func (noEvents) Settled(Settlement)                                     {}
func (noEvents) Decided(*Plan, string, State, time.Duration)            {}
func (noEvents) Disagreed(*Plan, string, []int)                         {}
func (noEvents) Lagging(string, *backend.Backend, bool, string)         {}
