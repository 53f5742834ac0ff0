package fanout

import (
	"context"
	"errors"
	"time"

	"lb/internal/backend"
	"lb/internal/crash"
	"lb/internal/outcome"
	"lb/internal/pool"
)

// A write that is not settled is in memory while its client waits, while an
// attempt of it runs, and while there is room: Options.Window and WindowBytes. The others are
// outside, in the journal alone. Each lane counts its deliveries there, and
// brings in those that are due when it is about to run out of work. So memory
// does not grow with what is pending, and a restart is nothing special: after
// it everything is outside.
const (
	// laneLow is how few deliveries make a lane ask for more: enough to keep it
	// busy while the journal is read.
	laneLow = 2 * laneWidth
	// laneBatch is how many it asks for at once.
	laneBatch = 512
	// dueSoon is how far ahead it looks, and how soon it looks again: what is
	// due by then is better brought in with the rest.
	dueSoon = time.Second
	// maxPoll is the longest that a lane goes without looking while it finds
	// nothing: its deliveries outside may all wait for others of their keys.
	maxPoll = 16 * time.Second
	// again is when to try once more what the journal failed to do.
	again = time.Second
	// patience is how long a client waits for the backlog to be taken up.
	patience = 5 * time.Second
)

// takeUp learns what the journal holds, once, before anything is admitted or
// sent. It gives up waiting for somebody else who is at it.
func (e *Engine) takeUp(ctx context.Context) error {
	if e.ready.Load() {
		return nil
	}
	over := time.NewTimer(patience)
	defer over.Stop()
	select {
	case e.taking <- struct{}{}:
		defer func() { <-e.taking }()
	case <-ctx.Done():
		return ctx.Err()
	case <-over.C:
		return &outcome.Error{
			Code: outcome.StorageUnavailable, RetryAfter: again,
			Detail: "the backlog in the storage is still being counted: try again",
		}
	}
	if e.ready.Load() {
		return nil
	}
	// With millions of pending writes this takes seconds, whoever began it.
	t, err := e.journal.Totals(context.WithoutCancel(ctx))
	if err != nil {
		return storageError(err)
	}
	crash.At("recover.loading")
	e.mu.Lock()
	defer e.unlock()
	e.seq, e.before = t.Seq, t.Seq
	for _, r := range t.Routes {
		e.usage[r.Route] = &usage{writes: r.Writes, bytes: r.Bytes}
		e.outside += r.Writes
	}
	now := time.Now()
	for _, b := range t.Backends {
		c := e.countOf(b.Pool)
		c.Pending += b.Pending
		c.Parked += b.Parked
		e.parked += b.Parked
		if b.Pending > 0 {
			l := e.lane(backendOf(e.planOf(&Record{Pool: b.Pool}).Pool, b.Backend))
			l.outside, l.outsideDue = b.Pending, now
			e.pump(l, now)
		}
	}
	e.ready.Store(true)
	return nil
}

// storageError is what a client is told when the journal failed.
func storageError(err error) error {
	if errors.As(err, new(*outcome.Error)) {
		return err
	}
	return &outcome.Error{
		Code: outcome.StorageUnavailable, RetryAfter: again,
		Detail: "the write could not be stored, and was not sent", Err: err,
	}
}

// planOf returns the plan of a write that the journal kept.
func (e *Engine) planOf(r *Record) *Plan {
	if e.plans != nil {
		if p := e.plans(r.Route, r.Pool); p != nil {
			return p
		}
	}
	return &Plan{Route: r.Route, Pool: noPool(r.Pool)}
}

// noPool is a pool that is not configured any more: it has no members.
type noPool string

func (p noPool) Name() string                  { return string(p) }
func (noPool) Members() []*backend.Backend     { return nil }
func (noPool) Member(string) *backend.Backend  { return nil }
func (noPool) Withdraw(*pool.Waiter) bool      { return true }
func (noPool) LaggingAfter() (d time.Duration) { return d }
func (noPool) Acquire(*backend.Backend, *pool.Waiter) (l pool.Lease, ok bool) {
	return l, false
}

// backendOf returns the backend with that identity. One that the pool does not
// know is made up, and is not Present: its deliveries have to be taken out of
// the journal.
func backendOf(p Pool, id string) *backend.Backend {
	if b := p.Member(id); b != nil {
		return b
	}
	b := &backend.Backend{Pool: p.Name(), ID: id}
	b.SetState(backend.State{Presence: backend.Leaving})
	return b
}

// refill brings in what is due when l runs low and the journal has more, and
// returns when to look again; zero for when something else happens.
func (e *Engine) refill(l *lane, now time.Time) (wake time.Time) {
	if l.loading || l.outside == 0 || len(l.waiting.items)+l.running >= laneLow {
		return time.Time{}
	}
	if idle := len(l.waiting.items)+l.running == 0; l.outsideDue.After(now) && !(idle && l.busyThen) {
		return l.outsideDue
	}
	l.loading = true
	limit := len(l.waiting.items) + l.running + laneBatch
	e.work.Add(1)
	go e.load(l, now.Add(dueSoon), limit)
	return time.Time{}
}

// load reads for refill.
func (e *Engine) load(l *lane, before time.Time, limit int) {
	defer e.work.Done()
	since := e.beginRead()
	records, err := e.journal.Due(e.ctx, l.key.pool, l.key.backend, before, limit)
	e.mu.Lock()
	defer e.unlock()
	defer e.endRead()
	now := time.Now()
	brought := 0
	for i := range records {
		w, isNew := e.bring(&records[i], l.key.backend, since, now)
		if isNew {
			brought++
		}
		if w != nil {
			e.letGoFirst(w, l.key.backend, since, now)
		}
	}
	l.loading = false
	l.busyThen = brought == 0 && len(records) > 0 && len(l.waiting.items)+l.running > 0
	switch {
	case err != nil:
		l.outsideDue = now.Add(again)
	case brought > 0 || len(records) == limit:
		l.poll, l.outsideDue = 0, now
	default:
		l.poll = min(max(2*l.poll, dueSoon), maxPoll)
		l.outsideDue = now.Add(l.poll)
	}
	e.pump(l, now)
}

// departures tells which writes left memory while records were read from the
// journal: a read that began before may show them as they were, or not at all.
type departures struct {
	reads  int            // under way
	count  int            // of all that left during reads
	writes map[string]int // when each of them left, by count
	keys   map[Key]int    // when the last of each key did
}

// note adds a write that leaves.
func (d *departures) note(r *Record) {
	if d.reads == 0 {
		return
	}
	d.count++
	d.writes[r.ID] = d.count
	if r.Order != (Key{}) {
		d.keys[r.Order] = d.count
	}
}

// beginRead and endRead stand around a read of records from the journal. What
// has left memory by departures later than since is not what was read.
func (e *Engine) beginRead() (since int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.left.reads++
	return e.left.count
}

// endRead is called under the lock, when what was read has been looked at.
func (e *Engine) endRead() {
	if e.left.reads--; e.left.reads == 0 {
		clear(e.left.writes)
		clear(e.left.keys)
	}
}

// bring returns the write that a pending record from the journal stands for,
// and takes it into memory if it is outside, which isNew reports. It returns
// nil when the record is of no use. What has to wait for its turn in its key
// asks for it, but at the backend head.
func (e *Engine) bring(r *Record, head string, since int, now time.Time) (w *write, isNew bool) {
	if w := e.writes[r.ID]; w != nil {
		return w, false
	}
	if e.stopping || e.admitting[r.ID] {
		return nil, false
	}
	if e.left.writes[r.ID] > since {
		// As it was read it is out of date. If it is outside now, whoever put
		// it there has noted when it is due.
		return nil, false
	}
	w = e.revive(r)
	e.outside--
	for _, d := range w.deliveries {
		if s := w.verdict.deliveries[d.i]; s.State == DeliveryPending || s.State == DeliveryHeld || s.Reason == ReasonDamaged {
			d.lane.outside = max(0, d.lane.outside-1)
		}
	}
	e.enter(w, now)
	if w.chain != nil {
		// Others of its key may be outside, unless it was alone in the journal, is
		// alone here, and none has come and gone meanwhile.
		w.chain.partial = !r.Alone || len(w.chain.writes) > 1 || e.left.keys[r.Order] > since
	}
	if r.State != WritePending { // the journal found it damaged, and parked it
		for i, s := range w.verdict.deliveries {
			if s.Reason == ReasonDamaged {
				w.pending++ // as which it was counted
				w.parked--
				w.verdict.moves = append(w.verdict.moves, move{i, ReasonDamaged})
			}
		}
	}
	for _, d := range w.deliveries {
		s := w.verdict.deliveries[d.i]
		switch {
		case s.State != DeliveryPending && s.State != DeliveryHeld:
		case d.lane.removed || w.plan.Pool.Member(s.Backend) == nil:
			w.removeAt(d.i)
		case s.State == DeliveryPending:
			e.queue(d, now, s.Backend == head)
		}
	}
	e.applyAside(w, now)
	if w.gone {
		return nil, true
	}
	return w, true
}

// revive returns the write that r stands for.
func (e *Engine) revive(r *Record) *write {
	w := &write{
		plan: e.planOf(r), record: *r, size: r.Write.Size(), request: requestOf(r),
		out: make([]bool, len(r.Deliveries)), ready: make(chan struct{}), told: true,
	}
	w.expires = r.Clock.Add(w.plan.MaxAge)
	w.verdict = newVerdict(w.plan, append([]Delivery(nil), r.Deliveries...))
	w.verdict.rejected = r.State == WriteRejected
	w.deliveries = make([]*delivery, len(r.Deliveries))
	for i := range w.verdict.deliveries {
		s := &w.verdict.deliveries[i]
		if s.State == DeliveryPending && r.Seq <= e.before {
			s.Unknown = true // nobody knows whether an attempt was under way when the process ended
		}
		w.deliveries[i] = &delivery{write: w, i: i, lane: e.lane(backendOf(w.plan.Pool, s.Backend))}
	}
	w.pending, w.parked = w.counts()
	return w
}

// enter takes w into memory.
func (e *Engine) enter(w *write, now time.Time) {
	e.writes[w.record.ID] = w
	e.held += w.size
	e.enchain(w)
	if w.plan.MaxAge > 0 {
		e.expiry.push(w)
		e.armExpiry(now)
	}
}

// leave takes w out of memory: it is settled, or kept outside. With unsettled
// the journal still has something of it that others of its key wait for.
func (e *Engine) leave(w *write, unsettled bool) {
	w.gone = true
	delete(e.writes, w.record.ID)
	e.held -= w.size
	e.expiry.remove(w)
	e.unchain(w, unsettled)
	e.left.note(&w.record)
}

// queue schedules a pending delivery that has just come into memory: at once,
// or when its turn in its key comes. With first that is now.
func (e *Engine) queue(d *delivery, now time.Time, first bool) {
	w := d.write
	s := &w.verdict.deliveries[d.i]
	if latest := now.Add(w.plan.Backoff.Cap + w.plan.Backoff.Jitter); s.Next.After(latest) {
		s.Next = latest // the clock was set back, or the plan's cap is lower now
	}
	switch after := w.plan.Pool.LaggingAfter(); {
	case s.Attempts > 0:
		d.since, d.hasFailed = now, true
	case after > 0:
		d.since = w.record.Created.Add(after)
	}
	d.lane.lag.watch(d)
	d.blocked = w.chain != nil
	if d.blocked {
		if !first {
			e.advance(w, s.Backend, now)
		}
		return
	}
	d.lane.add(d, s.Next)
}

// shed puts w outside if memory is short and nothing of it is at work.
func (e *Engine) shed(w *write) {
	full := e.window.writes > 0 && len(e.writes) > e.window.writes || e.window.bytes > 0 && e.held > e.window.bytes
	if !full || w.gone || w.waiting || w.reporting > 0 || e.stopping {
		return
	}
	for _, d := range w.deliveries {
		if first, ok := d.lane.waiting.min(); w.verdict.running[d.i] || ok && first == d {
			return // the oldest stays: it is the one that tries at a backend that cannot be reached
		}
	}
	for _, d := range w.deliveries {
		s := w.verdict.deliveries[d.i]
		if s.State != DeliveryPending && s.State != DeliveryHeld {
			continue
		}
		d.lane.remove(d)
		d.lane.lag.drop(d)
		d.lane.keepOutside(s.Next)
	}
	e.outside++
	e.leave(w, true)
}
