package fanout

import (
	"context"
	"time"
)

// Journal keeps writes until they are settled, and their status for a while
// after that. The engine decides; the journal only remembers. Memory is the
// one that forgets with the process; a durable one fits behind the same
// methods, and both run journaltest.Run.
//
// All methods are safe for concurrent use.
type Journal interface {
	// Admit stores a new write with its deliveries, all or nothing, and sets
	// r.Seq: above that of every write admitted before. It returns when the
	// write would survive whatever the journal promises to survive; before
	// that no byte goes to a backend. After an error nothing was admitted; an
	// *outcome.Error goes to the client as it is. The journal keeps no
	// reference to r.Deliveries, but may keep r.Write's slices: they never
	// change.
	Admit(ctx context.Context, r *Record) error
	// Update notes what became of a write. The engine calls it under its lock,
	// so it only queues: no I/O. The changes of one write take effect in the
	// order of the calls. A crash may lose the last ones, and then attempts are
	// made again under the same key.
	Update(c Change)
	// Flush returns when everything updated before the call is as safe as
	// Admit makes a write. A rejection is told to the client only after that.
	Flush(ctx context.Context) error
	// Pending returns the records in WritePending with Seq above after, by
	// rising Seq, at most limit of them: the way to take the work up again
	// after a restart, or to hold only a window of it in memory. Whatever
	// delivery stands there in DeliveryPending may have had an attempt whose
	// end was not noted: after a restart it has to be taken as Unknown.
	Pending(ctx context.Context, after uint64, limit int) ([]Record, error)
	// Find returns the record with that id. Of a settled write's Write nothing
	// need be left but method and target, and it may be forgotten in time.
	Find(id string) (r Record, ok bool, err error)
}

// Record is a write as the journal keeps it.
type Record struct {
	// Seq is the place in the order of admission, from 1.
	Seq         uint64
	ID          string
	Route, Pool string
	Created     time.Time
	Write       Write
	State       State
	// Deliveries stand in the config order of their backends at admission.
	Deliveries []Delivery
}

// Delivery is one backend's copy of a write: all that has to be known to go on
// with it later.
type Delivery struct {
	// Backend is the backend's id; with the record's pool it is the identity.
	Backend string
	State   DeliveryState
	// Attempts counts all attempts that took place, Reached those that got
	// past the dial.
	Attempts, Reached int
	// Unknown tells that an attempt was cut: the backend may have the write.
	Unknown bool
	// Left is how many retries are left to a delivery that was held when its
	// write was accepted; 0 for any other.
	Left int
	// LastStatus is the last status the backend answered with, 0 for none.
	LastStatus int
	// Next is when the next attempt is due; it means nothing unless the state
	// is DeliveryPending.
	Next time.Time
}

// Change is how a write stands now.
type Change struct {
	ID    string
	State State
	// Deliveries are those that changed, as they are now; Backend tells which
	// they are.
	Deliveries []Delivery
}
