package fanout

import (
	"context"
	"errors"
	"slices"
	"time"

	"lb/internal/backend"
	"lb/internal/crash"
	"lb/internal/outcome"
	"lb/internal/pool"
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
	// statuses are those of backends that disagree; nil if they do not
	statuses []int
}

// onHold reports whether b gets no deliveries for now: an operator works on it,
// or it is not there.
func onHold(b *backend.Backend) bool {
	s := b.State()
	return s.Admin == backend.Maintenance || s.Presence != backend.Present
}

// pump begins the attempts that l lets go now, and notes whether its backend
// has begun to lag or caught up. unlock must come after it.
func (e *Engine) pump(l *lane, now time.Time) {
	if e.stopping {
		return
	}
	if l.lag.turn(now, l.outside > 0) {
		e.untold = append(e.untold, l.lagChange())
	}
	more := e.refill(l, now)
	for {
		d, wake := l.next(now, l.backend.Unreachable(), onHold(l.backend))
		if d == nil {
			e.unask(l)
			l.arm(now, earlier(more, earlier(wake, l.lag.wake())))
			return
		}
		lease, ok := e.ask(l, d)
		if !ok {
			l.arm(now, earlier(more, l.lag.wake()))
			return
		}
		if onHold(l.backend) {
			// Since a moment ago. Who waits for what is in flight at a backend that
			// leaves sees this slot, or is seen here.
			lease.End(outcome.Undecided, now)
			continue
		}
		e.begin(d, lease)
	}
}

// ask returns a slot for d, or has the lane wait for one if it does not yet.
func (e *Engine) ask(l *lane, d *delivery) (lease pool.Lease, ok bool) {
	if l.asked != nil {
		return lease, false
	}
	p := d.write.plan.Pool
	if lease, ok = p.Acquire(l.backend, &l.waiter); !ok {
		l.asked = p
		e.work.Add(1)
	}
	return lease, ok
}

// unask ends the lane's wait for a slot. One that is on its way to it will be
// given back.
func (e *Engine) unask(l *lane) {
	if l.asked != nil && l.asked.Withdraw(&l.waiter) {
		l.asked = nil
		e.work.Done()
	}
}

// granted takes the slot that l has waited for. It goes to the delivery that is
// next by now, or back if there is none.
func (e *Engine) granted(l *lane, lease pool.Lease) {
	defer e.work.Done()
	e.mu.Lock()
	l.asked = nil
	now := time.Now()
	var d *delivery
	if !e.stopping && lease.Backend == l.backend {
		d, _ = l.next(now, l.backend.Unreachable(), onHold(l.backend))
	}
	if d != nil {
		e.begin(d, lease)
	} else {
		lease.End(outcome.Undecided, now)
	}
	e.pump(l, now)
	e.unlock()
}

// begin begins an attempt of d, which is next in its lane.
func (e *Engine) begin(d *delivery, lease pool.Lease) {
	d.lane.start(d)
	d.write.verdict.begin(d.i)
	e.work.Add(1)
	go e.attempt(d, lease)
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

// attempt makes one attempt of d, which has begun, at the lease's backend.
func (e *Engine) attempt(d *delivery, lease pool.Lease) {
	defer e.work.Done()
	ctx := e.ctx
	if timeout := d.write.plan.AttemptTimeout; timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	crash.At("attempt.begin")
	b, began := lease.Backend, time.Now()
	resp, err := e.sender.Send(ctx, b, d.write.request)
	crash.At("attempt.answered")
	now := time.Now()
	class := judge(b, resp, err)
	lease.Answered(class, now, now.Sub(began))
	lease.End(class, now)
	if err != nil {
		e.finish(d, b, failure(err), Response{}, outcome.FromError(err))
		return
	}
	e.finish(d, b, answered, resp, outcome.Outcome{Class: outcome.Failure, Status: resp.Status})
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

// finish notes how d's attempt at b ended and goes on from there. o is its
// outcome as long as the verdict has not called it a success.
func (e *Engine) finish(d *delivery, b *backend.Backend, r result, resp Response, o outcome.Outcome) {
	w := d.write
	e.mu.Lock()
	now := time.Now()
	d.lane.done()
	w.verdict.end(d.i, r, resp.Status)
	text := ""
	if o.Err != nil {
		text = o.Err.Error()
	}
	w.verdict.deliveries[d.i].explain(r, text)
	state := w.verdict.deliveries[d.i].State
	if state == DeliveryDone {
		o.Class = outcome.Success
	}
	if w.waiting && r == answered && (state == DeliveryDone || state == DeliveryHeld) {
		w.answers[d.i] = &resp
	}
	w.consider(d.i, r, resp)
	switch {
	case d.last:
		d.last = false
		w.removeAt(d.i)
	case state == DeliveryPending:
		e.schedule(d, now, resp.RetryAfter)
		if r != starved {
			d.lane.lag.failed(d, now)
		}
	}
	eff := e.apply(w, d.i, now)
	e.pump(d.lane, now)
	e.unlock()
	crash.At("outcome.noted")

	if !(e.ctx.Err() != nil && errors.Is(o.Err, context.Canceled)) { // else lb cut it
		e.events.Attempt(w.plan, b, o, state == DeliveryDone)
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
				Backend: d.lane.backend, State: s.State, Reason: m.reason, Attempts: s.Attempts,
				LastStatus: s.LastStatus, Age: now.Sub(w.record.Created),
			})
		}
	}
	change := Change{ID: w.record.ID, Seq: w.record.Seq, State: w.verdict.state(), Reply: w.newReply, Clock: w.newClock}
	w.newReply, w.newClock = nil, time.Time{}
	for _, i := range changed {
		change.Deliveries = append(change.Deliveries, w.verdict.deliveries[i])
	}
	e.journal.Update(change)
	e.count(w)
	w.reporting++
	if change.State != WritePending && !w.gone {
		e.leave(w, change.State == WriteParked)
		e.release(w)
		eff.decided, eff.state, eff.took = !w.decided, change.State, now.Sub(w.record.Created)
		eff.statuses = w.verdict.disagreement()
		w.decided = true
	}
	for _, i := range changed {
		if s := w.verdict.deliveries[i]; !s.State.unsettled() {
			e.advance(w, s.Backend, now)
		}
	}
	if change.State == WriteRejected {
		for _, s := range w.verdict.deliveries {
			e.advance(w, s.Backend, now) // held ones stay so, and are in nobody's way
		}
	}
	return eff
}

// count brings w's part of its pool's Count up to date.
func (e *Engine) count(w *write) {
	c := e.countOf(w.record.Pool)
	pending, parked := w.counts()
	c.Pending += pending - w.pending
	c.Parked += parked - w.parked
	e.parked += parked - w.parked
	w.pending, w.parked = pending, parked
}

// counts returns how many of w's deliveries are on their way, and how many are
// parked.
func (w *write) counts() (pending, parked int) {
	parked = w.verdict.count(DeliveryParked)
	if !w.verdict.rejected {
		pending = w.verdict.count(DeliveryPending, DeliveryHeld)
	}
	return pending, parked
}

// countOf returns the Count of a pool, made when it is first asked for.
func (e *Engine) countOf(pool string) *Count {
	c := e.pools[pool]
	if c == nil {
		c = &Count{Pool: pool}
		e.pools[pool] = c
	}
	return c
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
		if eff.statuses != nil {
			e.events.Disagreed(w.plan, w.record.ID, eff.statuses)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if eff.state == WriteRejected {
		w.recorded, w.failed = err == nil, err
	}
	w.reporting--
	w.tell()
	e.shed(w)
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
