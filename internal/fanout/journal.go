package fanout

import (
	"context"
	"fmt"
	"time"
)

// Journal keeps writes until they are settled, and their status for a while
// after that. The engine decides; the journal only remembers. Memory is the
// one that forgets with the process; the store's outlives it. Both run
// journaltest.Run.
//
// All methods are safe for concurrent use. Whatever is read has seen every
// Admit that returned and every Update that was called before the read began.
// Errors go to clients as they are when they wrap an *outcome.Error.
type Journal interface {
	Log
	Backlog
}

// Log is the part of a Journal that every write passes through.
type Log interface {
	// Admit stores a new write with its deliveries, all or nothing. Its Seq is
	// the engine's, which never gives one twice; they may come a little out of
	// order, and a record without one gets the next. It returns when the write would survive whatever the journal
	// promises to survive; before that no byte goes to a backend. A *Duplicate says that another write has
	// r.Claim. After any error nothing was admitted. The journal keeps no
	// reference to r.Deliveries, but may keep r.Write's slices: they never
	// change.
	Admit(ctx context.Context, r *Record) error
	// Update notes what became of a write. The engine calls it under its lock,
	// so it only queues: no I/O, and no error. The changes of one write take
	// effect in the order of the calls. A crash may lose the last ones, and
	// then attempts are made again under the same key. What cannot be written
	// for now is kept and written later. A change to an unknown write is
	// ignored.
	Update(c Change)
	// Flush returns when everything updated before the call is as safe as
	// Admit makes a write. A rejection is told to the client only after that.
	Flush(ctx context.Context) error
	// Find returns the record with that id. Of a write in WriteDone,
	// WriteRejected or WriteCancelled nothing of Write need be left but method
	// and target, and it may be forgotten after 24 hours; one in WriteParked
	// stays whole until an operator has settled it.
	Find(ctx context.Context, id string) (r Record, ok bool, err error)
}

// Backlog is the part of a Journal that lets the engine hold only a window of
// the unsettled writes in memory, and take up the work after a restart.
//
// Of a record that the journal cannot read any more (its checksum is wrong) it
// parks what is not settled, for ReasonDamaged, and Due returns what is left of
// it once, in WriteParked.
type Backlog interface {
	// Due returns the records with a delivery in DeliveryPending at that
	// backend whose Next is not after before, and that no unsettled delivery
	// with the same Order and a lower Seq precedes there: by Next, then Seq, at
	// most limit of them; fewer, but at least one, when they are big. Next bears the wall clock, which may have jumped.
	Due(ctx context.Context, pool, backend string, before time.Time, limit int) ([]Record, error)
	// Head returns, of the records with that Order in the pool that have an
	// unsettled delivery at that backend (pending, held or parked), the one
	// with the lowest Seq; and false if there is none.
	Head(ctx context.Context, pool, backend string, order Key) (Record, bool, error)
	// List returns records in one state, or in all of them for an empty one,
	// of one pool or of all, with Seq above after, by rising Seq, at most
	// limit of them (itself at most 1,000). Their Write needs only method,
	// target and request id.
	List(ctx context.Context, f Filter) ([]Record, error)
	// Totals returns what the journal holds. It may read all of its index; the
	// engine asks once, when it starts.
	Totals(ctx context.Context) (Totals, error)
	// Oldest returns for each pool when its oldest pending and its oldest
	// parked write were admitted, in no order. It is asked every few seconds.
	Oldest(ctx context.Context) ([]Oldest, error)
}

// Key is a hash that stands for a client's text: an order key, an
// Idempotency-Key in its scope, a request's content. The zero Key is none.
type Key [16]byte

// Record is a write as the journal keeps it.
type Record struct {
	// Seq is the place in the order of admission, from 1.
	Seq         uint64
	ID          string
	Route, Pool string
	Created     time.Time
	Write       Write
	State       State
	// Clock is when the age began to count that Plan.MaxAge bounds: Created,
	// or an operator's last retry.
	Clock time.Time
	// Order is what writes of one key in one pool share: at each backend they
	// succeed in the order of admission. Zero for unordered.
	Order Key
	// Alone tells that no other unsettled write in the pool has this Order. The
	// journal sets it in what Admit is given and Due and Head return.
	Alone bool
	// Claim is the client's Idempotency-Key in its scope: no two records have
	// the same. Print stands for what was asked under it. Both are zero
	// without a key.
	Claim, Print Key
	// Reply is the best answer yet for the client, kept only with a Claim.
	Reply *Reply
	// Told notes that the client was answered 202.
	Told bool
	// Deliveries stand in the config order of their backends at admission.
	Deliveries []Delivery
}

// Reply is a backend's answer that a client is, or will be, answered with.
type Reply struct {
	// Backend is the backend's id.
	Backend  string
	Response Response
}

// Delivery is one backend's copy of a write: all that has to be known to go on
// with it later.
type Delivery struct {
	// Backend is the backend's id; with the record's pool it is the identity.
	Backend string
	State   DeliveryState
	// Reason says why it is parked or cancelled; empty in any other state.
	Reason Reason
	// Attempts counts all attempts that took place, Reached those that got
	// past the dial.
	Attempts, Reached int
	// Unknown tells that an attempt was cut, or may have been: the backend may
	// have the write.
	Unknown bool
	// Left is how many retries are left to a delivery that was held when its
	// write was accepted; 0 for any other.
	Left int
	// LastStatus is the last status the backend answered with, 0 for none.
	LastStatus int
	// Error is the last failure in words, for operators; at most MaxError bytes.
	Error string
	// Next is when the next attempt is due; it means nothing unless the state
	// is DeliveryPending.
	Next time.Time
}

// MaxError is how much of an error's text a Delivery keeps, in bytes.
const MaxError = 512

// Change is how a write stands now.
type Change struct {
	ID    string
	Seq   uint64
	State State
	// Deliveries are those that changed, as they are now; Backend tells which
	// they are.
	Deliveries []Delivery
	// Clock, Reply and Told replace the record's unless they are zero.
	Clock time.Time
	Reply *Reply
	Told  bool
}

// Duplicate is Admit's error for a write whose Claim another one has: Record
// is that one.
type Duplicate struct{ Record Record }

func (d *Duplicate) Error() string {
	return fmt.Sprintf("the write %s has the same key", d.Record.ID)
}

// Filter chooses records for List.
type Filter struct {
	State State
	Pool  string
	After uint64
	Limit int
}

// Totals are what a journal holds.
type Totals struct {
	// Seq is the highest that was given, 0 for none.
	Seq      uint64
	Backends []BackendTotal
	Routes   []RouteTotal
}

// BackendTotal counts the deliveries of one backend: Pending those in
// DeliveryPending and DeliveryHeld of writes in WritePending, Parked those in
// DeliveryParked.
type BackendTotal struct {
	Pool, Backend   string
	Pending, Parked int
}

// RouteTotal is what the writes of one route in WritePending hold, counted as
// Plan.MaxPending and Plan.MaxPendingBytes count it.
type RouteTotal struct {
	Route  string
	Writes int
	Bytes  int64
}

// Oldest tells since when something waits.
type Oldest struct {
	Pool string
	// State is WritePending or WriteParked.
	State   State
	Created time.Time
}
