package fanout

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
)

// How much a Memory remembers of settled writes: the newest settledKept of
// them, none longer than settledFor. Bodies and fields go at once, but for
// those that an operator may still want to send. 10,000 records of three
// deliveries are some 10 MiB.
const (
	settledKept = 10_000
	settledFor  = 24 * time.Hour
)

// Memory is the Journal that lasts as long as the process. Writes that are
// settled stay readable by id: the newest 10,000, for at most 24 hours; parked
// ones stay until an operator has settled them.
//
// Everything is in memory already, so an Engine over it has no need of a
// window, and what belongs to Backlog looks at every record.
type Memory struct {
	mu      sync.Mutex
	seq     uint64
	records map[string]*Record
	claims  map[Key]string
	settled []settledAt // oldest first
}

type settledAt struct {
	id string
	at time.Time
}

// NewMemory returns an empty Memory.
func NewMemory() *Memory {
	return &Memory{records: make(map[string]*Record), claims: make(map[Key]string)}
}

// Admit stores a copy of r.
func (m *Memory) Admit(_ context.Context, r *Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.Claim != (Key{}) {
		m.forget(time.Now())
		if id, taken := m.claims[r.Claim]; taken {
			return &Duplicate{m.records[id].copy()}
		}
		m.claims[r.Claim] = r.ID
	}
	if r.Seq == 0 {
		r.Seq = m.seq + 1
	}
	m.seq = max(m.seq, r.Seq)
	r.Alone = m.alone(r)
	kept := r.copy()
	m.records[r.ID] = &kept
	return nil
}

// Update applies c; one for an unknown id is ignored.
func (m *Memory) Update(c Change) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.records[c.ID]
	if r == nil {
		return
	}
	wasEnded := r.State.ended()
	r.apply(c)
	if !wasEnded && r.State.ended() {
		now := time.Now()
		m.settled = append(m.settled, settledAt{c.ID, now})
		m.forget(now)
	}
}

// apply brings r up to date.
func (r *Record) apply(c Change) {
	for _, d := range c.Deliveries {
		i := slices.IndexFunc(r.Deliveries, func(o Delivery) bool { return o.Backend == d.Backend })
		if i >= 0 {
			r.Deliveries[i] = d
		}
	}
	r.State = c.State
	if !c.Clock.IsZero() {
		r.Clock = c.Clock
	}
	if c.Reply != nil {
		r.Reply = c.Reply
	}
	r.Told = r.Told || c.Told
	if r.State.ended() {
		r.Write = Write{Method: r.Write.Method, Target: r.Write.Target, RequestID: r.Write.RequestID}
	}
}

// forget drops the settled records that are too many or too old.
func (m *Memory) forget(now time.Time) {
	for len(m.settled) > settledKept ||
		len(m.settled) > 0 && now.Sub(m.settled[0].at) >= settledFor {
		id := m.settled[0].id
		m.settled = m.settled[1:]
		r := m.records[id]
		if r == nil {
			continue
		}
		delete(m.records, id)
		delete(m.claims, r.Claim)
	}
}

// Flush has nothing to do.
func (m *Memory) Flush(context.Context) error { return nil }

// Find returns a copy of the record with that id.
func (m *Memory) Find(_ context.Context, id string) (Record, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget(time.Now())
	r := m.records[id]
	if r == nil {
		return Record{}, false, nil
	}
	return r.copy(), true, nil
}

// Due returns copies.
func (m *Memory) Due(_ context.Context, pool, backend string, before time.Time, limit int) ([]Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := func(r *Record) time.Time { return r.delivery(backend).Next }
	found := m.choose(func(r *Record) bool {
		d := r.delivery(backend)
		return r.Pool == pool && d != nil && d.State == DeliveryPending && !d.Next.After(before) &&
			(r.Order == Key{} || m.head(pool, backend, r.Order) == r)
	})
	slices.SortStableFunc(found, func(a, b *Record) int { return next(a).Compare(next(b)) })
	all := copies(found, limit)
	for i := range all {
		all[i].Alone = m.alone(&all[i])
	}
	return all, nil
}

// Head returns a copy.
func (m *Memory) Head(_ context.Context, pool, backend string, order Key) (Record, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.head(pool, backend, order); r != nil {
		c := r.copy()
		c.Alone = m.alone(&c)
		return c, true, nil
	}
	return Record{}, false, nil
}

func (m *Memory) head(pool, backend string, order Key) *Record {
	found := m.choose(func(r *Record) bool {
		d := r.delivery(backend)
		return r.Pool == pool && r.Order == order && d != nil && d.State.unsettled() && r.State != WriteRejected
	})
	if len(found) == 0 {
		return nil
	}
	return found[0]
}

// List returns copies.
func (m *Memory) List(_ context.Context, f Filter) ([]Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	found := m.choose(func(r *Record) bool {
		return r.Seq > f.After && (f.State == "" || r.State == f.State) && (f.Pool == "" || r.Pool == f.Pool)
	})
	return copies(found, f.Limit), nil
}

// Totals counts what there is.
func (m *Memory) Totals(context.Context) (Totals, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := Totals{Seq: m.seq}
	backends, routes := map[laneKey]*BackendTotal{}, map[string]*RouteTotal{}
	for _, r := range m.choose(func(*Record) bool { return true }) {
		for _, d := range r.Deliveries {
			key := laneKey{r.Pool, d.Backend}
			if backends[key] == nil {
				backends[key] = &BackendTotal{Pool: r.Pool, Backend: d.Backend}
			}
			switch {
			case d.State == DeliveryParked:
				backends[key].Parked++
			case d.State.unsettled() && r.State == WritePending:
				backends[key].Pending++
			}
		}
		if r.State != WritePending {
			continue
		}
		if routes[r.Route] == nil {
			routes[r.Route] = &RouteTotal{Route: r.Route}
		}
		routes[r.Route].Writes++
		routes[r.Route].Bytes += r.Write.Size()
	}
	for _, b := range backends {
		if b.Pending+b.Parked > 0 {
			t.Backends = append(t.Backends, *b)
		}
	}
	for _, r := range routes {
		t.Routes = append(t.Routes, *r)
	}
	return t, nil
}

// Oldest looks for the first of each.
func (m *Memory) Oldest(context.Context) ([]Oldest, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []Oldest
	for _, r := range m.choose(func(r *Record) bool { return r.State == WritePending || r.State == WriteParked }) {
		if !slices.ContainsFunc(found, func(o Oldest) bool { return o.Pool == r.Pool && o.State == r.State }) {
			found = append(found, Oldest{r.Pool, r.State, r.Created})
		}
	}
	return found, nil
}

// alone reports whether no other unsettled write shares r's order.
func (m *Memory) alone(r *Record) bool {
	return r.Order != Key{} && len(m.choose(func(o *Record) bool {
		return o.ID != r.ID && o.Pool == r.Pool && o.Order == r.Order && (o.State == WritePending || o.State == WriteParked)
	})) == 0
}

// choose returns the records that fit, by rising Seq.
func (m *Memory) choose(fits func(*Record) bool) []*Record {
	var found []*Record
	for _, r := range m.records {
		if fits(r) {
			found = append(found, r)
		}
	}
	slices.SortFunc(found, func(a, b *Record) int { return cmp.Compare(a.Seq, b.Seq) })
	return found
}

// delivery returns r's delivery to that backend, or nil.
func (r *Record) delivery(backend string) *Delivery {
	i := slices.IndexFunc(r.Deliveries, func(d Delivery) bool { return d.Backend == backend })
	if i < 0 {
		return nil
	}
	return &r.Deliveries[i]
}

func copies(found []*Record, limit int) []Record {
	found = found[:min(len(found), limit)]
	all := make([]Record, len(found))
	for i, r := range found {
		all[i] = r.copy()
	}
	return all
}

// copy returns a Record that shares nothing with r that can change.
func (r *Record) copy() Record {
	c := *r
	c.Deliveries = slices.Clone(r.Deliveries)
	return c
}
