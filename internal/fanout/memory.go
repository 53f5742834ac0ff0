package fanout

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
)

// How much a Memory remembers of settled writes: the newest settledKept of
// them, none longer than settledFor. Bodies and fields go at once. 10,000
// records of three deliveries are some 10 MiB.
const (
	settledKept = 10_000
	settledFor  = 24 * time.Hour
)

// Memory is the Journal that lasts as long as the process. Writes that are
// settled, those that ended parked included, stay readable by id: the newest
// 10,000, for at most 24 hours.
type Memory struct {
	mu      sync.Mutex
	seq     uint64
	records map[string]*Record
	settled []settledAt // oldest first
}

type settledAt struct {
	id string
	at time.Time
}

// NewMemory returns an empty Memory.
func NewMemory() *Memory { return &Memory{records: make(map[string]*Record)} }

// Admit stores a copy of r.
func (m *Memory) Admit(_ context.Context, r *Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seq++
	r.Seq = m.seq
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
	for _, d := range c.Deliveries {
		i := slices.IndexFunc(r.Deliveries, func(o Delivery) bool { return o.Backend == d.Backend })
		if i >= 0 {
			r.Deliveries[i] = d
		}
	}
	if r.State == WritePending && c.State != WritePending {
		r.Write = Write{Method: r.Write.Method, Target: r.Write.Target}
		now := time.Now()
		m.settled = append(m.settled, settledAt{c.ID, now})
		m.forget(now)
	}
	r.State = c.State
}

// forget drops the settled records that are too many or too old.
func (m *Memory) forget(now time.Time) {
	for len(m.settled) > settledKept ||
		len(m.settled) > 0 && now.Sub(m.settled[0].at) >= settledFor {
		delete(m.records, m.settled[0].id)
		m.settled = m.settled[1:]
	}
}

// Flush has nothing to do.
func (m *Memory) Flush(context.Context) error { return nil }

// Pending returns copies of the pending records.
func (m *Memory) Pending(_ context.Context, after uint64, limit int) ([]Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []Record
	for _, r := range m.records {
		if r.State == WritePending && r.Seq > after {
			found = append(found, r.copy())
		}
	}
	slices.SortFunc(found, func(a, b Record) int { return cmp.Compare(a.Seq, b.Seq) })
	return found[:min(len(found), limit)], nil
}

// Find returns a copy of the record with that id.
func (m *Memory) Find(id string) (Record, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget(time.Now())
	r := m.records[id]
	if r == nil {
		return Record{}, false, nil
	}
	return r.copy(), true, nil
}

// copy returns a Record that shares nothing with r that can change.
func (r *Record) copy() Record {
	c := *r
	c.Deliveries = slices.Clone(r.Deliveries)
	return c
}
