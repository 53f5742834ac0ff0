package fanout

import (
	"context"
	"crypto/rand"
	"sync"
	"time"

	"lb/internal/backend"
	"lb/internal/outcome"
)

// Options are what an Engine is made of.
type Options struct {
	// Sender makes the attempts. It must be there.
	Sender Sender
	// Journal keeps the writes; nil means a new Memory.
	Journal Journal
	// Events hears what happens; nil means nobody.
	Events Events
	// Jitter returns a random duration from 0 to max, both included; nil
	// means a uniform one. Tests make it predictable.
	Jitter func(max time.Duration) time.Duration
}

// Engine takes writes and delivers them. One lock guards all that is decided;
// it is held for microseconds, and never during I/O.
type Engine struct {
	sender  Sender
	journal Journal
	events  Events
	jitter  func(time.Duration) time.Duration

	ctx    context.Context // of the attempts, until the engine is stopped
	cancel context.CancelFunc
	work   sync.WaitGroup // attempts, and what timers have called

	mu       sync.Mutex
	stopping bool
	writes   map[string]*write // those that are pending
	lanes    map[laneKey]*lane
	usage    map[string]*usage // by route
	pools    map[string]*Count
	expiry   queue[*write]
	expirer  *time.Timer
	untold   []lagChange // in the order in which they happened
	telling  bool        // somebody is telling them
}

// laneKey is the identity of a backend: it survives whatever happens to the
// object that stands for it.
type laneKey struct{ pool, backend string }

// usage is what the writes of one route that are pending hold.
type usage struct {
	writes int
	bytes  int64
}

// write is one write on its way.
type write struct {
	plan       *Plan
	record     Record // as admitted; what moves stands in verdict
	verdict    verdict
	deliveries []*delivery
	size       int64
	request    Request
	expires    time.Time
	expiryAt   int // its place in Engine.expiry

	// what it counts for in its pool's Count
	pending, parked int

	// For the client, while it waits.
	waiting  bool
	out      []bool      // the backends that were out when the write came
	answers  []*Response // by delivery, of those done or held
	ready    chan struct{}
	told     bool  // ready is closed
	recorded bool  // the rejection is safe
	failed   error // the rejection could not be made safe
	// reporting counts the changes that Events is just being told of.
	reporting int
}

// New returns an Engine that is ready to take writes.
func New(o Options) *Engine {
	e := &Engine{
		sender: o.Sender, journal: o.Journal, events: o.Events, jitter: o.Jitter,
		writes: make(map[string]*write), lanes: make(map[laneKey]*lane),
		usage: make(map[string]*usage), pools: make(map[string]*Count),
		expiry: queue[*write]{
			less:  func(a, b *write) bool { return a.expires.Before(b.expires) },
			place: func(w *write) *int { return &w.expiryAt },
		},
	}
	if e.journal == nil {
		e.journal = NewMemory()
	}
	if e.events == nil {
		e.events = noEvents{}
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	return e
}

// Submit admits a write and waits for what its client is to be told. Errors
// are an *outcome.Error when nothing was admitted (no_backend: the pool has no
// members; overloaded: too much is pending, or the engine stops), what the
// journal returned, or ctx.Err(). A ctx that ends changes nothing of a write
// that was admitted. When the engine is stopped under a waiting client, the
// error is overloaded too, and the write may have reached some backends.
func (e *Engine) Submit(ctx context.Context, p *Plan, in Write) (Answer, error) {
	if err := ctx.Err(); err != nil {
		return Answer{}, err
	}
	members := p.Pool.Members()
	if len(members) == 0 {
		return Answer{}, &outcome.Error{Code: outcome.NoBackend, Detail: "the pool " + p.Pool.Name() + " has no backends"}
	}
	w := newWrite(p, in, members)
	if err := e.reserve(w); err != nil {
		return Answer{}, err
	}
	// All or nothing, whether the client stays or not.
	if err := e.journal.Admit(context.WithoutCancel(ctx), &w.record); err != nil {
		e.mu.Lock()
		e.release(w)
		e.mu.Unlock()
		return Answer{}, err
	}
	e.start(w, members)
	return e.await(ctx, w)
}

func newWrite(p *Plan, in Write, members []*backend.Backend) *write {
	now := time.Now()
	id := rand.Text() // 130 random bits in letters and digits
	w := &write{
		plan: p,
		record: Record{
			ID: id, Route: p.Route, Pool: p.Pool.Name(), Created: now, Clock: now, Write: in,
			State: WritePending, Deliveries: make([]Delivery, len(members)),
		},
		request: Request{
			Method: in.Method, Target: in.Target, Host: in.Host,
			Fields: in.Fields, Body: in.Body, Key: in.Key, FanoutID: id,
		},
		size:    in.Size(),
		expires: now.Add(p.MaxAge),
		waiting: true,
		out:     make([]bool, len(members)),
		answers: make([]*Response, len(members)),
		ready:   make(chan struct{}),
	}
	if w.request.Key == "" {
		w.request.Key = id
	}
	for i, b := range members {
		w.record.Deliveries[i] = Delivery{Backend: b.ID, State: DeliveryPending, Next: now}
		w.out[i] = !b.State().Eligible() || b.Unreachable()
	}
	w.verdict = newVerdict(p, append([]Delivery(nil), w.record.Deliveries...))
	return w
}

// Size returns what w holds, in bytes, as the limits count it.
func (w *Write) Size() int64 {
	n := len(w.Body) + len(w.Target) + len(w.Host)
	for _, f := range w.Fields {
		n += len(f.Name) + len(f.Value)
	}
	return int64(n)
}

// reserve takes the write's part of its route's limits, or says why not.
func (e *Engine) reserve(w *write) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stopping {
		return stopped("nothing was sent")
	}
	u := e.usage[w.plan.Route]
	if u == nil {
		u = &usage{}
		e.usage[w.plan.Route] = u
	}
	if p := w.plan; p.MaxPending > 0 && u.writes >= p.MaxPending ||
		p.MaxPendingBytes > 0 && u.bytes+w.size > p.MaxPendingBytes {
		return &outcome.Error{
			Code: outcome.Overloaded, RetryAfter: time.Second,
			Detail: "the route " + p.Route + " has too many pending writes",
		}
	}
	u.writes++
	u.bytes += w.size
	return nil
}

// release gives back what reserve took.
func (e *Engine) release(w *write) {
	u := e.usage[w.plan.Route]
	u.writes--
	u.bytes -= w.size
}

func stopped(what string) error {
	return &outcome.Error{Code: outcome.Overloaded, RetryAfter: time.Second, Detail: "lb is stopping; " + what}
}

// start schedules the first attempts of an admitted write. They begin under
// one hold of the lock: no answer can reject the write before all of its
// backends that can be asked are being asked.
func (e *Engine) start(w *write, members []*backend.Backend) {
	e.mu.Lock()
	defer e.unlock()
	now := time.Now()
	e.writes[w.record.ID] = w
	e.count(w)
	w.deliveries = make([]*delivery, len(members))
	for i, b := range members {
		d := &delivery{write: w, i: i, backend: b, lane: e.lane(b)}
		if after := w.plan.Pool.LaggingAfter(); after > 0 {
			d.since = w.record.Created.Add(after)
		}
		w.deliveries[i] = d
		d.lane.add(d, now)
		d.lane.lag.watch(d)
	}
	for _, d := range w.deliveries {
		e.pump(d.lane, now)
	}
	if w.plan.MaxAge > 0 {
		e.expiry.push(w)
		e.armExpiry(now)
	}
	w.tell()
}

// lane returns the lane of a backend, made at its first delivery.
func (e *Engine) lane(b *backend.Backend) *lane {
	key := laneKey{b.Pool, b.ID}
	l := e.lanes[key]
	if l == nil {
		l = newLane(b, func() {
			e.mu.Lock()
			if e.stopping {
				e.mu.Unlock()
				return
			}
			e.work.Add(1) // it may have something to tell
			defer e.work.Done()
			e.pump(l, time.Now())
			e.unlock()
		})
		e.lanes[key] = l
	}
	return l
}

// await waits for what the client is to be told.
func (e *Engine) await(ctx context.Context, w *write) (Answer, error) {
	timer := time.NewTimer(w.plan.Wait)
	defer timer.Stop()
	var err error
	select {
	case <-w.ready:
	case <-timer.C:
	case <-ctx.Done():
		err = ctx.Err()
	case <-e.ctx.Done():
		err = stopped("the write may have reached some backends")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	a, ready := w.answer()
	w.waiting, w.answers = false, nil
	switch {
	case w.failed != nil:
		return Answer{}, w.failed
	case ready:
		return a, nil // whatever else happened
	case err != nil:
		return Answer{}, err
	}
	return a, nil
}

// tell wakes the client when there is something to tell.
func (w *write) tell() {
	if !w.waiting || w.told || w.reporting > 0 {
		return
	}
	if _, ready := w.answer(); ready || w.failed != nil {
		w.told = true
		close(w.ready)
	}
}

// Run works until ctx ends or Stop was called, and cuts what is running then:
// call Stop before, to let it end. It returns nil.
func (e *Engine) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		e.Stop(ctx)
	case <-e.ctx.Done():
	}
	return nil
}

// Stop admits nothing more and begins no more attempts, lets those that run
// end until ctx is done, cuts the rest, and returns the deliveries that are
// still pending, in the order of admission, then of config. After it no
// goroutine of the engine is left. Calling it again lists the same ones.
func (e *Engine) Stop(ctx context.Context) []Pending {
	e.mu.Lock()
	e.stopping = true
	for _, l := range e.lanes {
		l.disarm()
	}
	if e.expirer != nil {
		e.expirer.Stop()
	}
	e.mu.Unlock()

	ended := make(chan struct{})
	go func() {
		e.work.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
	}
	e.cancel()
	<-ended
	return e.leftOver()
}
