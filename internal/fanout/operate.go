package fanout

import (
	"context"
	"fmt"
	"time"

	"lb/internal/outcome"
)

// agesEvery is how often the ages of the oldest writes are looked up.
const agesEvery = 15 * time.Second

// List returns what f chooses, as the journal has it.
func (e *Engine) List(ctx context.Context, f Filter) ([]Record, error) {
	return e.journal.List(ctx, f)
}

// Find returns the write with that id as it stands, and false if there is none
// or it was forgotten. Next of a delivery is when it tries next as far as can
// be told, zero otherwise.
func (e *Engine) Find(ctx context.Context, id string) (Record, bool, error) {
	if r, ok := e.findLive(id); ok {
		return r, true, nil
	}
	r, found, err := e.journal.Find(ctx, id)
	if err != nil || !found {
		return Record{}, false, err
	}
	if live, ok := e.findLive(id); ok {
		return live, true, nil // it has come into memory meanwhile
	}
	for i := range r.Deliveries {
		if d := &r.Deliveries[i]; d.State != DeliveryPending {
			d.Next = time.Time{}
		}
	}
	return r, true, nil
}

// findLive returns a write that is in memory: only there the next attempts are
// known.
func (e *Engine) findLive(id string) (Record, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	w := e.writes[id]
	if w == nil {
		return Record{}, false
	}
	r := w.live()
	for i, d := range w.deliveries {
		s := &r.Deliveries[i]
		s.Next = time.Time{}
		if s.State == DeliveryPending && !onHold(d.lane.backend) {
			s.Next = d.lane.nextTry(d, d.lane.backend.Unreachable())
		}
	}
	return r, true
}

// Retry makes a parked delivery pending again, with its attempts and its age
// anew. Errors are *outcome.Error: FanoutNotFound, DeliverySettled when it is
// not parked or there is nothing left to send, StorageUnavailable.
func (e *Engine) Retry(ctx context.Context, id, backend string) error {
	return e.operate(ctx, id, backend, func(w *write, i int, now time.Time) error {
		s := &w.verdict.deliveries[i]
		switch {
		case s.State != DeliveryParked:
			return settled("the delivery is %s: only a parked one can be retried", s.State)
		case w.record.Write.Method == "":
			return settled("what was to be sent is damaged: the delivery can only be skipped")
		case w.deliveries[i].lane.removed || w.plan.Pool.Member(s.Backend) == nil:
			return settled("the backend is no member of the pool any more: the delivery can only be skipped")
		}
		w.verdict.reopen(i)
		w.record.Clock, w.newClock = now, now
		e.expiry.remove(w)
		if w.expires = now.Add(w.plan.MaxAge); w.plan.MaxAge > 0 {
			e.expiry.push(w)
			e.armExpiry(now)
		}
		return nil
	})
}

// Skip gives a delivery up for good, as if the backend had the write. Errors
// are *outcome.Error: FanoutNotFound, DeliverySettled when it is settled
// already or an attempt of it is running, StorageUnavailable.
func (e *Engine) Skip(ctx context.Context, id, backend string) error {
	return e.operate(ctx, id, backend, func(w *write, i int, _ time.Time) error {
		switch s := w.verdict.deliveries[i]; {
		case !s.State.unsettled() || w.verdict.rejected:
			return settled("the delivery is %s", s.State)
		case w.verdict.running[i]:
			return settled("an attempt of the delivery is running: try again when it has ended")
		}
		w.verdict.drop(i, DeliverySkipped, ReasonOperator)
		return nil
	})
}

func settled(format string, args ...any) error {
	return &outcome.Error{Code: outcome.DeliverySettled, Detail: fmt.Sprintf(format, args...)}
}

// operate makes one change to a delivery, in memory or out of the journal, and
// returns when it is durable.
func (e *Engine) operate(ctx context.Context, id, backend string, change func(w *write, i int, now time.Time) error) error {
	if err := e.takeUp(ctx); err != nil {
		return err
	}
	since := e.beginRead()
	r, found, err := e.journal.Find(ctx, id)
	e.mu.Lock()
	now := time.Now()
	eff, w, err := func() (effects, *write, error) {
		defer e.endRead()
		if err != nil {
			return effects{}, nil, storageError(err)
		}
		w := e.writes[id]
		switch {
		case w != nil:
		case !found:
			return effects{}, nil, &outcome.Error{Code: outcome.FanoutNotFound, Detail: "no fan-out has this id, or it was settled too long ago"}
		case e.left.writes[id] <= since && !e.admitting[id] && !e.stopping:
			w = e.takeBack(&r, since, now)
		}
		if w == nil {
			return effects{}, nil, settled("the fan-out is just changing: try again")
		}
		i := w.place(backend)
		err := error(&outcome.Error{Code: outcome.FanoutNotFound, Detail: "the fan-out has no delivery to a backend with this id"})
		if i >= 0 {
			err = change(w, i, now)
		}
		if err != nil {
			if w.verdict.state().Settled() {
				e.release(w)
				e.leave(w, true)
			}
			return effects{}, nil, err
		}
		d := w.deliveries[i]
		if w.verdict.deliveries[i].State == DeliveryPending {
			w.verdict.deliveries[i].Next = now
			e.queue(d, now, false)
			w.verdict.moves = nil
			eff := e.apply(w, i, now)
			e.pump(d.lane, now)
			return eff, w, nil
		}
		d.blocked = false
		return e.apply(w, -1, now), w, nil
	}()
	e.unlock()
	if err != nil {
		return err
	}
	e.follow(w, eff)
	if err := e.journal.Flush(ctx); err != nil {
		return &outcome.Error{
			Code: outcome.StorageUnavailable, RetryAfter: again, Err: err,
			Detail: "it is done, but could not be stored: it may not outlive a restart",
		}
	}
	return nil
}

// takeBack takes a write that an operator works on into memory, whatever its
// state; nil if that was the end of it.
func (e *Engine) takeBack(r *Record, since int, now time.Time) *write {
	r.Alone = false // Find does not tell how that stands now
	if r.State == WritePending {
		w, _ := e.bring(r, "", since, now)
		return w
	}
	w := e.revive(r)
	w.decided = true
	u := e.usageOf(r.Route)
	u.writes++ // pending it counts
	u.bytes += w.size
	e.enter(w, now)
	if w.chain != nil {
		w.chain.partial = true
	}
	return w
}

// Age is how long the oldest write of a pool has been where it is.
type Age struct {
	Pool string
	// State is WritePending or WriteParked.
	State State
	// Oldest runs from the admission.
	Oldest time.Duration
}

// Ages returns the ages of the oldest pending and parked writes, as of a few
// seconds ago, in no order.
func (e *Engine) Ages() []Age {
	e.mu.Lock()
	defer e.mu.Unlock()
	ages := make([]Age, len(e.oldest))
	for i, o := range e.oldest {
		ages[i] = Age{o.Pool, o.State, max(0, time.Since(o.Created))}
	}
	return ages
}

// lookForOldest brings Ages up to date.
func (e *Engine) lookForOldest(ctx context.Context) {
	oldest, err := e.journal.Oldest(ctx)
	if err != nil {
		return // the last ones stay: a scrape is no place for this error
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.oldest = oldest
}
