package fanout

import (
	"context"
	"time"

	"lb/internal/backend"
)

// A backend that is not Present keeps its deliveries: they wait as they do in
// maintenance, and go to whoever comes back under its id. One that will not come
// back has them cancelled.

// cancelPage is how many records Cancel reads from the journal at once.
const cancelPage = 256

// Rejoin has b stand for its pool and id from now on: what is pending goes to
// it. Attempts under way end where they began. It is to be called for each
// backend that comes, and comes back, without a lock held that Options.Plans, a
// Pool or Events take.
func (e *Engine) Rejoin(b *backend.Backend) {
	e.mu.Lock()
	defer e.unlock()
	if l := e.lanes[laneKey{b.Pool, b.ID}]; l != nil {
		e.rejoin(l, b, time.Now())
	}
}

// join is Rejoin for a backend that a write is for, if the lane's own is away.
func (e *Engine) join(l *lane, b *backend.Backend, now time.Time) {
	away := l.removed || l.backend.State().Presence != backend.Present
	if away && b.State().Presence == backend.Present {
		e.rejoin(l, b, now)
	}
}

func (e *Engine) rejoin(l *lane, b *backend.Backend, now time.Time) {
	l.removed = false
	if l.backend != b {
		l.backend = b
		e.unask(l) // that was for a slot of the other
		if l.lag.lagging {
			e.untold = append(e.untold, lagChange{backend: b, lagging: true, reason: "it was behind when it went"})
		}
	}
	e.pump(l, now)
}

// removed reports whether the deliveries to that backend are cancelled.
func (e *Engine) removed(pool, backend string) bool {
	l := e.lanes[laneKey{pool, backend}]
	return l != nil && l.removed
}

// Cancel gives up what is on its way to a backend that is not Present any more
// and is not waited for: all deliveries to it that are pending or held, in
// memory and in the journal alone, end as cancelled for ReasonRemoved. One that
// is being attempted does so when the attempt ends, unless that succeeds; what
// is parked stays so until an operator skips it. What comes later is cancelled
// too, until the backend is back. It returns when that is durable; after an
// error (StorageUnavailable, Overloaded when the engine stops, or ctx's own) it
// may be called again.
func (e *Engine) Cancel(ctx context.Context, pool, backend string) error {
	if err := e.takeUp(ctx); err != nil {
		return err
	}
	writes, last := e.remove(pool, backend)
	for len(writes) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		batch := writes[:min(len(writes), expireBatch)]
		writes = writes[len(batch):]
		if err := e.cancelAt(batch, backend); err != nil {
			return err
		}
	}
	if err := e.cancelOutside(ctx, pool, backend, last); err != nil {
		return err
	}
	if err := e.journal.Flush(ctx); err != nil {
		return storageError(err)
	}
	e.dropLane(laneKey{pool, backend})
	return nil
}

// dropLane forgets the lane of a backend that is removed, once it is of no more
// use: ids that come and go must not fill the memory. A write that is on its way
// into the journal may still need to find that the backend is removed.
func (e *Engine) dropLane(key laneKey) {
	e.mu.Lock()
	defer e.mu.Unlock()
	l := e.lanes[key]
	if l == nil || !l.removed || len(e.admitting) > 0 || l.loading || l.asked != nil ||
		e.planOf(&Record{Pool: key.pool}).Pool.Member(key.backend) != nil ||
		len(l.waiting.items)+l.running+l.outside+len(l.lag.pending.items) > 0 {
		return
	}
	l.disarm()
	delete(e.lanes, key)
}

// remove marks a backend as removed. It returns the writes in memory that it
// does not have, and the last number that was given to any.
func (e *Engine) remove(poolName, id string) (writes []*write, last uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lane(backendOf(e.planOf(&Record{Pool: poolName}).Pool, id)).removed = true
	for _, w := range e.writes {
		if i := w.place(id); w.record.Pool == poolName && i >= 0 && w.removable(i) {
			writes = append(writes, w)
		}
	}
	return writes, e.seq
}

// removable reports whether delivery i is one that Cancel cancels.
func (w *write) removable(i int) bool {
	s := w.verdict.deliveries[i].State
	return (s == DeliveryPending || s == DeliveryHeld) && !w.verdict.rejected
}

// removeAt cancels delivery i, if it can be and no attempt of it runs; if one
// does, it is the last. apply must come after it.
func (w *write) removeAt(i int) {
	switch {
	case !w.removable(i):
	case w.verdict.running[i]:
		w.deliveries[i].last = true
	default:
		w.verdict.drop(i, DeliveryCancelled, ReasonRemoved)
	}
}

// cancelAt cancels the deliveries to a backend of writes that were in memory a
// moment ago.
func (e *Engine) cancelAt(writes []*write, backend string) error {
	var changed []*write
	var effs []effects
	e.mu.Lock()
	if e.stopping {
		e.mu.Unlock()
		return cancelStopped()
	}
	now := time.Now()
	for _, w := range writes {
		if w.gone {
			continue // or outside, and found there
		}
		if w.removeAt(w.place(backend)); len(w.verdict.moves) > 0 {
			changed, effs = append(changed, w), append(effs, e.apply(w, -1, now))
		}
	}
	e.unlock()
	for n, w := range changed {
		e.follow(w, effs[n])
	}
	return nil
}

// applyAside carries out what the verdict over w has come to, if it has come to
// anything; follow has a goroutine of its own.
func (e *Engine) applyAside(w *write, now time.Time) {
	if len(w.verdict.moves) == 0 {
		return
	}
	eff := e.apply(w, -1, now)
	e.work.Add(1)
	go func() {
		defer e.work.Done()
		e.follow(w, eff)
	}()
}

// cancelOutside cancels what the journal alone has, up to number last: it brings
// the writes in, one by one.
func (e *Engine) cancelOutside(ctx context.Context, pool, backend string, last uint64) error {
	for after := uint64(0); after < last && e.anyOutside(); {
		page, err := e.journal.List(ctx, Filter{State: WritePending, Pool: pool, After: after, Limit: cancelPage})
		if err != nil {
			return storageError(err)
		}
		for i := range page {
			after = page[i].Seq
			if after > last {
				break
			}
			for done := !page[i].removable(backend); !done; {
				if done, err = e.cancelOne(ctx, page[i].ID, backend); err != nil {
					return err
				}
			}
		}
		if len(page) < cancelPage {
			return nil
		}
	}
	return nil
}

// cancelOne cancels one write's delivery to a backend, wherever the write is.
// It is not done if the write was just moving.
func (e *Engine) cancelOne(ctx context.Context, id, backend string) (done bool, err error) {
	since := e.beginRead()
	r, found, err := e.journal.Find(ctx, id)
	e.mu.Lock()
	defer e.unlock()
	defer e.endRead()
	now := time.Now()
	w := e.writes[id]
	switch {
	case err != nil:
		return false, storageError(err)
	case e.stopping:
		return false, cancelStopped()
	case w != nil:
	case !found || !r.removable(backend):
		return true, nil
	case e.left.writes[id] > since || e.admitting[id]:
		return false, nil
	default:
		r.Alone = false // Find does not tell how that stands now
		if w, _ = e.bring(&r, "", since, now); w == nil {
			return true, nil // that was the end of it
		}
	}
	w.removeAt(w.place(backend))
	e.applyAside(w, now)
	return true, nil
}

// removable reports whether a record, as the journal has it, has a delivery that
// Cancel cancels.
func (r *Record) removable(backend string) bool {
	d := r.delivery(backend)
	return r.State == WritePending && d != nil && (d.State == DeliveryPending || d.State == DeliveryHeld)
}

func cancelStopped() error { return stopped("not all that was to be cancelled is") }

func (e *Engine) anyOutside() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.outside > 0
}
