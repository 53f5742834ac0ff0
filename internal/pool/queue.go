package pool

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"lb/internal/admission"
	"lb/internal/backend"
	"lb/internal/balance"
	"lb/internal/outcome"
)

// Limits bound what is in flight in a pool.
type Limits struct {
	// Total is how many requests and attempts may be in flight in the pool; 0:
	// any number. What began under no total does not count.
	Total int
	// Queue is how many requests may wait for a slot; 0: none. Deliveries wait
	// whatever it says.
	Queue int
	// Timeout is the longest that a request waits; 0: only its own deadline
	// bounds the wait.
	Timeout time.Duration
}

// Waiter is one that waits for a slot: a request for any that its policy may
// use, a delivery for one of its own backend. The zero value is ready, and is
// ready again when the wait is over. While it waits it must not be moved.
type Waiter struct {
	// Granted is called with the lease that Acquire had to wait for, on a
	// goroutine of its own and without a lock held. Wait does not use it.
	Granted func(Lease)

	place  admission.Place[*Waiter]
	query  *balance.Query   // of a request
	pinned *backend.Backend // of a delivery
	lease  Lease            // what it was granted and has not taken yet
	parked bool             // whoever grants it a lease must tell it
	ready  chan struct{}    // tells a request; made by its first wait, as is timer
	timer  *time.Timer
}

// queue is who waits before a pool, and what is counted over all of it.
//
// No wake-up is lost because both sides keep an order: who waits is counted in
// Pool.waiting before it tries for the last time, and who gives something back
// (a slot, a trial, a place in the total) does so before it looks at waiting.
type queue struct {
	sync.Mutex // may be taken with Pool.mu held, and not the other way round
	line       admission.Queue[*Waiter]
	offer      func(*Waiter) admission.Answer // Pool.offerTo
	stirred    bool                           // by what was granted: see take

	total atomic.Int64    // in flight, of what began under a total
	held  backend.Latency // for how long slots were held, while requests may wait
	born  time.Time       // Lease.begun counts from here
}

// TryAcquire picks a backend for q and begins a lease on it, unless somebody
// who waits can use it. ok is false if none would take the request; Refusal
// says why.
func (p *Pool) TryAcquire(q *balance.Query) (l Lease, ok bool) {
	if p.waiting.Load() > 0 {
		p.queue.Lock()
		p.serve(nil)
		if p.take(q, &l) {
			p.serve(nil)
		}
		p.queue.Unlock()
	} else if p.take(q, &l) {
		p.wake(nil)
	}
	return l, l.Backend != nil
}

// Acquire begins a lease on b itself, whatever its state: deliveries go to every
// backend. If b is on trial and a trial is left, this is one. ok is false if
// all slots of b or of the pool are taken: then w waits until it is Granted a
// lease, or is Withdrawn.
func (p *Pool) Acquire(b *backend.Backend, w *Waiter) (l Lease, ok bool) {
	if p.waiting.Load() == 0 {
		if p.takeAt(b, &l) {
			p.wake(nil)
		}
		if l.Backend != nil {
			return l, true
		}
	}
	p.queue.Lock()
	defer p.queue.Unlock()
	w.pinned = b
	return p.enter(w)
}

// Withdraw takes w, which waits for Acquire, out of the queue. False: it is not
// there any more, and Granted was or will be called.
func (p *Pool) Withdraw(w *Waiter) bool {
	p.queue.Lock()
	defer p.queue.Unlock()
	return p.leave(w)
}

// Wait waits in the queue for a slot that q may use, until the pool's timeout,
// the deadline (zero: none), or gone is closed. The error's code is queue_full,
// queue_timeout, max_concurrency_reached where nobody may wait, no_backend
// where there is nobody to wait for, or client_closed. It follows a TryAcquire
// that has refused q.
func (p *Pool) Wait(q *balance.Query, w *Waiter, deadline time.Time, gone <-chan struct{}) (Lease, *outcome.Error) {
	if !p.members.Load().anybody(q) {
		return Lease{}, p.Refusal(q)
	}
	l, ok, refusal := p.queueUp(q, w, deadline)
	if ok || refusal != nil {
		return l, refusal
	}
	left := false
	select {
	case <-w.ready:
		w.timer.Stop()
		return w.granted(), nil
	case <-w.timer.C:
	case <-gone:
		w.timer.Stop()
		left = true
	}
	if !p.Withdraw(w) {
		<-w.ready // it was granted a lease just now
		l = w.granted()
		if !left {
			return l, nil
		}
		l.free()
	}
	if left {
		return Lease{}, &outcome.Error{Code: outcome.ClientClosed, Detail: "the client left while its request waited for a slot"}
	}
	return Lease{}, p.refusal(outcome.QueueTimeout,
		"no slot came free before limits.queue.timeout of the pool or the route's timeout was over")
}

// queueUp puts w in line. If that is not worth the while, it is refused; if it
// could be served at once, ok is true.
func (p *Pool) queueUp(q *balance.Query, w *Waiter, deadline time.Time) (l Lease, ok bool, refusal *outcome.Error) {
	p.queue.Lock()
	defer p.queue.Unlock()
	w.query = q
	if l, ok = p.enter(w); ok {
		return l, true, nil
	}
	now, limits := time.Now(), p.members.Load().limits
	patience := limits.patience(now, deadline)
	if refusal = p.turnAway(now, limits, patience); refusal != nil {
		p.leave(w)
		return l, false, refusal
	}
	if w.ready == nil {
		w.ready, w.timer = make(chan struct{}, 1), time.NewTimer(patience)
	} else {
		w.timer.Reset(patience)
	}
	return l, false, nil
}

// patience is how long a request waits at most.
func (l Limits) patience(now, deadline time.Time) time.Duration {
	patience := time.Duration(math.MaxInt64)
	if l.Timeout > 0 {
		patience = l.Timeout
	}
	if !deadline.IsZero() {
		patience = min(patience, deadline.Sub(now))
	}
	return patience
}

// turnAway refuses the request that is last in line, if it has no good reason
// to wait. Called with the queue's lock held.
func (p *Pool) turnAway(now time.Time, limits Limits, patience time.Duration) *outcome.Error {
	position := p.queue.line.Free()
	pace := p.pace(now)
	refuse := func(code outcome.Code, detail string) *outcome.Error {
		return &outcome.Error{Code: code, Detail: detail, RetryAfter: pace.RetryAfter(position - 1)}
	}
	switch {
	case limits.Queue == 0:
		return refuse(outcome.MaxConcurrency, allTaken)
	case position > limits.Queue:
		return refuse(outcome.QueueFull, "all slots of the pool are taken, and as many requests wait as its limits.queue.limit allows")
	case patience <= 0:
		return refuse(outcome.QueueTimeout, "all slots of the pool are taken, and the route's timeout leaves no time to wait")
	case pace.Wait(position) > patience:
		return refuse(outcome.QueueTimeout,
			"so many requests wait for a slot that limits.queue.timeout of the pool or the route's timeout would be over first")
	}
	return nil
}

const allTaken = "all slots are taken: limits.per_backend of the pool (concurrency, of a backend that registered itself) or limits.total allow no more, and limits.queue.limit is 0: nobody may wait"

// MayWait reports whether requests may wait at all, so that one that may not is
// refused before anything is done for its wait.
func (p *Pool) MayWait() bool { return p.members.Load().limits.Queue > 0 }

// Waited reports whether w, since it was zero, has waited for a request. One that
// was refused at the door has not.
func (w *Waiter) Waited() bool { return w.ready != nil }

// Refusal says why TryAcquire has just refused q: no_backend if nobody may have
// it, else max_concurrency_reached.
func (p *Pool) Refusal(q *balance.Query) *outcome.Error {
	if !p.members.Load().anybody(q) {
		return &outcome.Error{Code: outcome.NoBackend, Detail: "no backend of the pool is eligible", RetryAfter: p.RetryAfter()}
	}
	return p.refusal(outcome.MaxConcurrency, "all slots of the pool are taken (limits.per_backend, limits.total)")
}

func (p *Pool) refusal(code outcome.Code, detail string) *outcome.Error {
	return &outcome.Error{Code: code, Detail: detail, RetryAfter: p.pace(time.Now()).RetryAfter(p.Depth())}
}

// pace returns how fast slots come free, as far as that is known.
func (p *Pool) pace(now time.Time) admission.Pace {
	held, n := p.queue.held.Quantiles(now, 0.5)
	if n < admission.MinSamples {
		return admission.Pace{}
	}
	return admission.Pace{Held: held[0], Slots: p.members.Load().slots()}
}

// Depth returns how many requests wait.
func (p *Pool) Depth() int {
	if p.waiting.Load() == 0 {
		return 0
	}
	p.queue.Lock()
	defer p.queue.Unlock()
	return p.queue.line.Free()
}

// queued returns how many wait that may use a slot of b.
func (p *Pool) queued(b *backend.Backend) int {
	if p.waiting.Load() == 0 {
		return 0
	}
	p.queue.Lock()
	defer p.queue.Unlock()
	return p.queue.line.Free() + p.queue.line.Pinned(b)
}

// take begins the lease l for q, if it can. stirred says that others may have
// become able to use what they could not: something was claimed in passing and
// given back; or a trial was taken, and policies that look at one backend look at
// the next when the trials are given out.
func (p *Pool) take(q *balance.Query, l *Lease) (stirred bool) {
	m := p.members.Load()
	if !p.queue.count(m.limits.Total) {
		return false
	}
	b := m.pick(q)
	if b == nil {
		return p.queue.uncount(m.limits.Total > 0) || q.GaveBack()
	}
	l.begin(p, m, b, q.Trial())
	return l.trial != 0 || q.GaveBack()
}

// takeAt is take for a delivery to b.
func (p *Pool) takeAt(b *backend.Backend, l *Lease) (stirred bool) {
	m := p.members.Load()
	if !p.queue.count(m.limits.Total) {
		return false
	}
	if !b.TryBegin() {
		return p.queue.uncount(m.limits.Total > 0)
	}
	trial, _ := b.TakeTrial()
	l.begin(p, m, b, trial)
	return trial != 0
}

// begin makes l the lease on b, of which a slot was taken.
func (l *Lease) begin(p *Pool, m *Members, b *backend.Backend, trial uint32) {
	l.Backend, l.pool, l.trial, l.round = b, p, trial, b.Recent.Round()
	l.counted = m.limits.Total > 0
	if m.limits.Queue > 0 {
		l.timed, l.begun = true, time.Since(p.queue.born)
	}
}

// count counts one more in flight in the pool, unless there are total already.
func (q *queue) count(total int) bool {
	if total == 0 {
		return true
	}
	for {
		n := q.total.Load()
		if n >= int64(total) {
			return false
		}
		if q.total.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// uncount takes back what count has counted, and reports whether that was
// anything.
func (q *queue) uncount(counted bool) bool {
	if counted {
		q.total.Add(-1)
	}
	return counted
}

// wake serves those who wait because something has come free: at b, or
// somewhere if b is nil. It costs one atomic load while nobody waits.
func (p *Pool) wake(b *backend.Backend) {
	if p.waiting.Load() > 0 {
		p.lockAndServe(b)
	}
}

func (p *Pool) lockAndServe(b *backend.Backend) {
	p.queue.Lock()
	defer p.queue.Unlock()
	p.serve(b)
}

// serve gives those who wait, in order, what is free: at b, or everywhere if b
// is nil. Called with the queue's lock held.
func (p *Pool) serve(b *backend.Backend) {
	for again := true; again; again = p.queue.stirred {
		p.queue.stirred = false
		if b == nil {
			p.queue.line.Serve(p.queue.offer)
		} else {
			p.queue.line.ServeAt(b, p.queue.offer)
		}
	}
}

// offerTo grants w a lease if there is one for it. Called with the queue's lock
// held.
func (p *Pool) offerTo(w *Waiter) admission.Answer {
	var l Lease
	var stirred bool
	if w.pinned != nil {
		stirred = p.takeAt(w.pinned, &l)
	} else {
		stirred = p.take(w.query, &l)
	}
	switch {
	case l.Backend != nil:
		p.queue.stirred = p.queue.stirred || stirred
		p.grant(w, l)
		return admission.Next
	case p.full():
		return admission.Stop
	case w.pinned != nil || w.query.Fresh():
		// What it cannot use, those that want the same cannot.
		return admission.Blocked
	}
	return admission.Next
}

// full reports whether the pool's total is reached.
func (p *Pool) full() bool {
	total := p.members.Load().limits.Total
	return total > 0 && p.queue.total.Load() >= int64(total)
}

// grant gives w, which is out of line from then on, its lease.
func (p *Pool) grant(w *Waiter, l Lease) {
	tell, delivery := w.parked, w.pinned != nil
	p.leave(w)
	switch {
	case tell && delivery:
		go w.Granted(l)
	case tell:
		w.lease = l
		w.ready <- struct{}{}
	default:
		w.lease = l
	}
}

// granted hands over the lease that w was granted.
func (w *Waiter) granted() Lease {
	l := w.lease
	w.lease = Lease{}
	return l
}

// enter puts w in line and serves the line. If w's turn comes, ok is true. Called
// with the queue's lock held.
func (p *Pool) enter(w *Waiter) (l Lease, ok bool) {
	switch line := &p.queue.line; {
	case w.pinned != nil:
		line.JoinPinned(&w.place, w, w.pinned)
	case w.query.Fresh():
		line.Join(&w.place, w)
	default:
		line.JoinPicky(&w.place, w)
	}
	p.waiting.Store(int64(p.queue.line.Len()))
	p.serve(nil)
	if w.place.Waits() {
		w.parked = true
		return Lease{}, false
	}
	return w.granted(), true
}

// leave takes w out of line and reports whether it was there. Called with the
// queue's lock held.
func (p *Pool) leave(w *Waiter) bool {
	if !p.queue.line.Leave(&w.place) {
		return false
	}
	w.query, w.pinned, w.parked = nil, nil, false
	p.waiting.Store(int64(p.queue.line.Len()))
	return true
}
