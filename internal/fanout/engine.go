package fanout

import (
	"context"
	"crypto/rand"
	"errors"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"lb/internal/backend"
	"lb/internal/crash"
	"lb/internal/outcome"
	"lb/internal/pool"
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
	// Plans returns the plan for a write of that route and pool which the
	// journal has kept; for a route that is gone, one with the pool and the
	// defaults; nil if the pool is gone: then its deliveries are cancelled. A
	// nil Plans knows no pool.
	Plans func(route, pool string) *Plan
	// Window is about how many unsettled writes are held in memory, and
	// WindowBytes how many bytes of them; 0 means no bound.
	Window      int
	WindowBytes int64
}

// Engine takes writes and delivers them. One lock guards all that is decided;
// it is held for microseconds, and never during I/O.
type Engine struct {
	sender  Sender
	journal Journal
	events  Events
	jitter  func(time.Duration) time.Duration
	plans   func(route, pool string) *Plan
	window  struct {
		writes int
		bytes  int64
	}

	ready  atomic.Bool   // the journal's backlog is known
	taking chan struct{} // held by who takes it up

	ctx    context.Context // of the attempts, until the engine is stopped
	cancel context.CancelFunc
	work   sync.WaitGroup // attempts, lanes that wait for a slot, and what timers have called

	mu       sync.Mutex
	stopping bool
	seq      uint64            // the last that was given
	before   uint64            // the last that an earlier process gave
	writes   map[string]*write // those that are pending, and in memory
	held     int64             // their bytes
	chains   map[Key]*chain    // of their keys
	lanes    map[laneKey]*lane
	usage    map[string]*usage // by route
	pools    map[string]*Count
	parked   int // deliveries, in all pools
	oldest   []Oldest

	admitting map[string]bool // writes on their way into the journal
	outside   int             // pending writes that are in the journal alone
	left      departures      // from memory

	expiry  queue[*write]
	expirer *time.Timer
	untold  []lagChange // in the order in which they happened
	telling bool        // somebody is telling them
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
	expiryAt   int    // its place in Engine.expiry
	chain      *chain // of its key; nil without one
	parted     int    // chain.parted when it came in
	gone       bool   // it has left memory: settled, or outside
	decided    bool   // Events was told of its end, perhaps by an earlier process
	newReply   *Reply // what the journal has yet to be told
	newClock   time.Time

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
		plans: o.Plans, taking: make(chan struct{}, 1),
		chains: make(map[Key]*chain), admitting: make(map[string]bool),
		left: departures{writes: make(map[string]int), keys: make(map[Key]int)},
		expiry: queue[*write]{
			less:  func(a, b *write) bool { return a.expires.Before(b.expires) },
			place: func(w *write) *int { return &w.expiryAt },
		},
	}
	e.window.writes, e.window.bytes = o.Window, o.WindowBytes
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
// are an *outcome.Error: no_backend, the pool has no members; bad_request, the
// write has no order key; overloaded, too much is pending, or the engine stops;
// storage_unavailable, the journal failed; for a write whose key was used
// before request_in_progress (the Answer has the first one's ID) and
// idempotency_key_reused; or ctx.Err(). After any of them nothing was admitted
// by this call, but for ctx.Err() and an overloaded engine that was stopped
// under a waiting client. A ctx that ends changes nothing of a write that was
// admitted.
func (e *Engine) Submit(ctx context.Context, p *Plan, in Write) (Answer, error) {
	if err := ctx.Err(); err != nil {
		return Answer{}, err
	}
	members := p.Pool.Members()
	if len(members) == 0 {
		return Answer{}, &outcome.Error{Code: outcome.NoBackend, Detail: "the pool " + p.Pool.Name() + " has no backends"}
	}
	order, err := p.OrderBy.Key(p.Pool.Name(), &in)
	if err != nil {
		return Answer{}, err
	}
	if err := e.takeUp(ctx); err != nil {
		return Answer{}, err
	}
	w := newWrite(p, in, order, members)
	if err := e.reserve(w); err != nil {
		return Answer{}, err
	}
	crash.At("admit.queued")
	// All or nothing, whether the client stays or not.
	if err := e.journal.Admit(context.WithoutCancel(ctx), &w.record); err != nil {
		e.withdraw(w)
		if first := (*Duplicate)(nil); errors.As(err, &first) {
			return e.replay(ctx, w, &first.Record)
		}
		return Answer{}, storageError(err)
	}
	crash.At("admit.returned")
	e.start(w, members)
	return e.await(ctx, w)
}

func newWrite(p *Plan, in Write, order Key, members []*backend.Backend) *write {
	now := time.Now()
	w := &write{
		plan: p,
		record: Record{
			ID:    newID(now),
			Route: p.Route, Pool: p.Pool.Name(), Created: now, Clock: now, Write: in,
			State: WritePending, Order: order, Deliveries: make([]Delivery, len(members)),
		},
		size:    in.Size(),
		expires: now.Add(p.MaxAge),
		waiting: true,
		out:     make([]bool, len(members)),
		answers: make([]*Response, len(members)),
		ready:   make(chan struct{}),
	}
	if in.Key != "" {
		w.record.Claim, w.record.Print = ClaimOf(p.Route, in.authorization(), in.Key), PrintOf(&in)
	}
	w.request = requestOf(&w.record)
	for i, b := range members {
		w.record.Deliveries[i] = Delivery{Backend: b.ID, State: DeliveryPending, Next: now}
		w.out[i] = !b.State().Eligible() || b.Unreachable()
	}
	w.verdict = newVerdict(p, append([]Delivery(nil), w.record.Deliveries...))
	return w
}

// newID returns an id that nobody can guess: 130 random bits in letters and
// digits. They stand behind the time, so that ids grow: a journal's index of
// random ids would touch another page for each write, the more the larger it is.
func newID(now time.Time) string {
	return strings.ToUpper(strconv.FormatInt(now.UnixMilli(), 36)) + rand.Text()
}

// requestOf returns what each attempt of a write sends.
func requestOf(r *Record) Request {
	in := &r.Write
	key := in.Key
	if key == "" {
		key = r.ID
	}
	return Request{
		Method: in.Method, Target: in.Target, Host: in.Host, Fields: in.Fields, Body: in.Body,
		Key: key, FanoutID: r.ID,
	}
}

// authorization returns who the client says it is.
func (w *Write) authorization() string {
	for _, f := range w.Fields {
		if f.Name == "Authorization" {
			return f.Value
		}
	}
	return ""
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
	u := e.usageOf(w.plan.Route)
	if p := w.plan; p.MaxPending > 0 && u.writes >= p.MaxPending ||
		p.MaxPendingBytes > 0 && u.bytes+w.size > p.MaxPendingBytes {
		return &outcome.Error{
			Code: outcome.Overloaded, RetryAfter: time.Second,
			Detail: "the route " + p.Route + " has too many pending writes",
		}
	}
	u.writes++
	u.bytes += w.size
	e.seq++
	w.record.Seq = e.seq
	e.admitting[w.record.ID] = true
	e.enchain(w)
	return nil
}

// usageOf returns a route's usage, made when it is first asked for.
func (e *Engine) usageOf(route string) *usage {
	u := e.usage[route]
	if u == nil {
		u = &usage{}
		e.usage[route] = u
	}
	return u
}

// release gives back the write's part of its route's limits.
func (e *Engine) release(w *write) {
	u := e.usageOf(w.record.Route)
	u.writes--
	u.bytes -= w.size
}

// withdraw undoes reserve: the journal did not take the write.
func (e *Engine) withdraw(w *write) {
	e.mu.Lock()
	defer e.unlock()
	e.release(w)
	delete(e.admitting, w.record.ID)
	e.unchain(w, false)
	for _, d := range w.record.Deliveries {
		e.advance(w, d.Backend, time.Now())
	}
}

func stopped(what string) error {
	return &outcome.Error{Code: outcome.Overloaded, RetryAfter: time.Second, Detail: "lb is stopping; " + what}
}

// start schedules the first attempts of an admitted write. They begin under
// one hold of the lock: no answer can reject the write before all of its
// backends that can be asked, and have a slot, are being asked.
func (e *Engine) start(w *write, members []*backend.Backend) {
	e.mu.Lock()
	defer e.unlock()
	now := time.Now()
	delete(e.admitting, w.record.ID)
	e.writes[w.record.ID] = w
	e.held += w.size
	e.count(w)
	w.deliveries = make([]*delivery, len(members))
	for i, b := range members {
		if b.State().Presence != backend.Present { // since the write came: somebody else may have its id
			if heir := w.plan.Pool.Member(b.ID); heir != nil {
				b = heir
			}
		}
		l := e.lane(b)
		e.join(l, b, now)
		w.deliveries[i] = &delivery{write: w, i: i, lane: l}
	}
	if w.record.Alone {
		w.whole()
	}
	for _, d := range w.deliveries {
		if d.lane.removed { // while the write was on its way into the journal
			w.removeAt(d.i)
		} else {
			e.queue(d, now, false)
		}
	}
	for _, d := range w.deliveries {
		e.pump(d.lane, now)
	}
	if w.plan.MaxAge > 0 {
		e.expiry.push(w)
		e.armExpiry(now)
	}
	e.applyAside(w, now)
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
		l.waiter.Granted = func(lease pool.Lease) { e.granted(l, lease) }
		e.lanes[key] = l
	}
	return l
}

// await waits for what the client is to be told.
func (e *Engine) await(ctx context.Context, w *write) (Answer, error) {
	over := make(chan struct{})
	timer := time.AfterFunc(w.plan.Wait, func() { close(over) })
	defer timer.Stop()
	var err error
	select {
	case <-w.ready:
	case <-over:
	case <-ctx.Done():
		err = ctx.Err()
	case <-e.ctx.Done():
		err = stopped("the write may have reached some backends")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	a, ready := w.answer()
	w.waiting, w.answers = false, nil
	defer e.shed(w)
	// Of what is settled it goes without saying, and an operator may be at it.
	if a.Pending && w.record.Claim != (Key{}) && !w.gone && (ready || err == nil) {
		e.journal.Update(Change{ID: w.record.ID, Seq: w.record.Seq, State: w.verdict.state(), Told: true})
		w.record.Told = true
	}
	crash.At("answer.ready")
	switch {
	case w.failed != nil:
		return Answer{}, storageError(w.failed)
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

// Run takes up what the journal holds, and works until ctx ends or Stop was called, and cuts what is running then:
// call Stop before, to let it end. It returns nil.
func (e *Engine) Run(ctx context.Context) error {
	tick := time.NewTicker(agesEvery)
	defer tick.Stop()
	for try := time.After(0); ; {
		select {
		case <-ctx.Done():
			e.Stop(ctx)
			return nil
		case <-e.ctx.Done():
			return nil
		case <-try:
			if e.takeUp(ctx) != nil {
				try = time.After(again)
			}
			e.lookForOldest(ctx)
		case <-tick.C:
			e.lookForOldest(ctx)
		}
	}
}

// Stop admits nothing more and begins no more attempts, lets those that run
// end until ctx is done, cuts the rest, and returns the deliveries in memory that
// are still pending, in the order of admission, then of config. After it no
// goroutine of the engine is left. Calling it again lists the same ones.
func (e *Engine) Stop(ctx context.Context) []Pending {
	e.mu.Lock()
	e.stopping = true
	for _, l := range e.lanes {
		l.disarm()
		e.unask(l)
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
	crash.At("stop.flushing")
	return e.leftOver()
}
