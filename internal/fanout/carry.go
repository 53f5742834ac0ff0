package fanout

import (
	"context"
	"errors"
	"slices"
	"time"

	"lb/internal/backend"
	"lb/internal/outcome"
)

// expireBatch is how many writes expire under one hold of the lock: a burst
// that was admitted together expires together.
const expireBatch = 256

// effects is what has to be done outside of the lock after something changed.
type effects struct {
	settled []Settlement
	decided bool
	took    time.Duration
	state   State
}

// onHold reports whether b gets no deliveries for now: an operator works on it.
func onHold(b *backend.Backend) bool { return b.State().Admin == backend.Maintenance }

// pump begins the attempts that l lets go now, and notes whether its backend
// has begun to lag or caught up. unlock must come after it.
func (e *Engine) pump(l *lane, now time.Time) {
	if e.stopping {
		return
	}
	if l.lag.turn(now) {
		e.untold = append(e.untold, l.lagChange())
	}
	for {
		d, wake := l.next(now, l.backend.Unreachable(), onHold(l.backend))
		if d == nil {
			l.arm(now, earlier(wake, l.lag.wake()))
			return
		}
		d.write.verdict.begin(d.i)
		e.work.Add(1)
		go e.attempt(d)
	}
}

// unlock gives up the lock, and tells Events who has begun to lag or caught up:
// in order, so that while one goroutine is telling, the changes of others wait
// for it.
func (e *Engine) unlock() {
	if e.telling {
		e.mu.Unlock()
		return
	}
	e.telling = true
	for len(e.untold) > 0 {
		c := e.untold[0]
		e.untold = e.untold[1:]
		e.mu.Unlock()
		e.events.Lagging(c.backend.Pool, c.backend, c.lagging, c.reason)
		e.mu.Lock()
	}
	e.telling = false
	e.mu.Unlock()
}

// earlier returns the earlier of two times, of which zero is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// attempt makes one attempt of d, which has begun.
func (e *Engine) attempt(d *delivery) {
	defer e.work.Done()
	ctx := e.ctx
	if timeout := d.write.plan.AttemptTimeout; timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	lease, began := d.write.plan.Pool.Acquire(d.backend), time.Now()
	resp, err := e.sender.Send(ctx, d.backend, d.write.request)
	now := time.Now()
	class := judge(d.backend, resp, err)
	lease.Answered(class, now, now.Sub(began))
	lease.End(class, now)
	if err != nil {
		e.finish(d, failure(err), Response{}, outcome.FromError(err))
		return
	}
	e.finish(d, answered, resp, outcome.Outcome{Class: outcome.Failure, Status: resp.Status})
}

// judge says what an attempt tells about its backend, which is another matter
// than what it means for the delivery: a refusal is no failure of the backend.
func judge(b *backend.Backend, resp Response, err error) outcome.Class {
	if err == nil {
		return outcome.FromStatus(resp.Status).Class
	}
	class := outcome.FromError(err).Class
	if class == outcome.Unsent && !b.Unreachable() {
		return outcome.Undecided // no dial failed: the attempt's own time was over first
	}
	return class
}

// failure tells what an attempt without an answer came to.
func failure(err error) result {
	switch outcome.FromError(err).Class {
	case outcome.Unsent:
		return unsent
	case outcome.Starved:
		return starved
	default:
		return cut
	}
}

// finish notes how d's attempt ended and goes on from there. o is its outcome
// as long as the verdict has not called it a success.
func (e *Engine) finish(d *delivery, r result, resp Response, o outcome.Outcome) {
	w := d.write
	e.mu.Lock()
	now := time.Now()
	d.lane.done()
	w.verdict.end(d.i, r, resp.Status)
	state := w.verdict.deliveries[d.i].State
	if state == DeliveryDone {
		o.Class = outcome.Success
	}
	if w.waiting && r == answered && (state == DeliveryDone || state == DeliveryHeld) {
		w.answers[d.i] = &resp
	}
	if state == DeliveryPending {
		e.schedule(d, now, resp.RetryAfter)
		if r != starved {
			d.lane.lag.failed(d, now)
		}
	}
	eff := e.apply(w, d.i, now)
	e.pump(d.lane, now)
	e.unlock()

	if !(e.ctx.Err() != nil && errors.Is(o.Err, context.Canceled)) { // else lb cut it
		e.events.Attempt(w.plan, d.backend, o, state == DeliveryDone)
	}
	e.follow(w, eff)
}

// schedule puts d, which waits for a retry, into its lane.
func (e *Engine) schedule(d *delivery, now time.Time, asked time.Duration) {
	p := d.write.plan
	state := &d.write.verdict.deliveries[d.i]
	waits := Waits{Backoff: p.Backoff, Retry: max(0, state.Attempts-1), Draw: e.jitter}
	state.Next = now.Add(max(waits.NextBackOff(), min(asked, p.Backoff.Cap)))
	d.lane.add(d, state.Next)
}

// apply carries out what the verdict over w has come to: lanes, counters,
// journal. i is the delivery whose attempt ended, -1 for none. follow must come
// after it, outside of the lock.
func (e *Engine) apply(w *write, i int, now time.Time) effects {
	var eff effects
	var changed []int
	if i >= 0 {
		changed = append(changed, i)
	}
	for _, m := range w.verdict.take() {
		d, s := w.deliveries[m.i], w.verdict.deliveries[m.i]
		if !slices.Contains(changed, m.i) {
			changed = append(changed, m.i)
		}
		switch s.State {
		case DeliveryHeld:
			d.lane.lag.drop(d)
		case DeliveryPending: // it was held, and the write is accepted
			e.schedule(d, now, 0)
			d.lane.lag.watch(d)
			e.pump(d.lane, now)
		default:
			d.lane.remove(d)
			d.lane.lag.drop(d)
			e.pump(d.lane, now) // another one may be the oldest now
			eff.settled = append(eff.settled, Settlement{
				Plan: w.plan, ID: w.record.ID, RequestID: w.record.Write.RequestID,
				Backend: d.backend, State: s.State, Reason: m.reason, Attempts: s.Attempts,
				LastStatus: s.LastStatus, Age: now.Sub(w.record.Created),
			})
		}
	}
	change := Change{ID: w.record.ID, State: w.verdict.state()}
	for _, i := range changed {
		change.Deliveries = append(change.Deliveries, w.verdict.deliveries[i])
	}
	e.journal.Update(change)
	e.count(w)
	if change.State != WritePending {
		delete(e.writes, w.record.ID)
		e.expiry.remove(w)
		e.release(w)
		eff.decided, eff.state, eff.took = true, change.State, now.Sub(w.record.Created)
	}
	w.reporting++
	return eff
}

// count brings w's part of its pool's Count up to date.
func (e *Engine) count(w *write) {
	c := e.pools[w.record.Pool]
	if c == nil {
		c = &Count{Pool: w.record.Pool}
		e.pools[w.record.Pool] = c
	}
	pending, parked := w.verdict.count(DeliveryPending, DeliveryHeld), w.verdict.count(DeliveryParked)
	if w.verdict.rejected {
		pending = 0
	}
	c.Pending += pending - w.pending
	c.Parked += parked - w.parked
	w.pending, w.parked = pending, parked
}

// follow does what must be done outside of the lock, and tells the client last:
// whoever has an answer finds it counted.
func (e *Engine) follow(w *write, eff effects) {
	var err error
	if eff.state == WriteRejected {
		err = e.journal.Flush(e.ctx)
	}
	for _, s := range eff.settled {
		e.events.Settled(s)
	}
	if eff.decided {
		e.events.Decided(w.plan, w.record.ID, eff.state, eff.took)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if eff.state == WriteRejected {
		w.recorded, w.failed = err == nil, err
	}
	w.reporting--
	w.tell()
}

// armExpiry sets the timer for the next write that expires.
func (e *Engine) armExpiry(now time.Time) {
	w, ok := e.expiry.min()
	switch {
	case !ok || e.stopping:
	case e.expirer == nil:
		e.expirer = time.AfterFunc(w.expires.Sub(now), e.expire)
	default:
		e.expirer.Reset(w.expires.Sub(now))
	}
}

// expire parks what has become too old, a batch of it; the timer fires again
// at once while there is more.
func (e *Engine) expire() {
	type expired struct {
		w *write
		effects
	}
	var batch []expired
	e.mu.Lock()
	if e.stopping {
		e.mu.Unlock()
		return
	}
	e.work.Add(1)
	defer e.work.Done()
	now := time.Now()
	for len(batch) < expireBatch {
		w, ok := e.expiry.min()
		if !ok || w.expires.After(now) {
			break
		}
		e.expiry.remove(w)
		w.verdict.expire()
		batch = append(batch, expired{w, e.apply(w, -1, now)})
	}
	e.armExpiry(now)
	e.unlock()
	for _, x := range batch {
		e.follow(x.w, x.effects)
	}
}
