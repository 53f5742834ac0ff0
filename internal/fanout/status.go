package fanout

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"
)

// Status is what /.lb/fanout/{id} shows.
type Status struct {
	ID         string           `json:"id"`
	State      State            `json:"state"`
	Created    time.Time        `json:"created"`
	Deliveries []DeliveryStatus `json:"deliveries"`
}

// DeliveryStatus is one backend's part of a Status.
type DeliveryStatus struct {
	Backend string        `json:"backend"`
	State   DeliveryState `json:"state"`
	// Attempts counts those that failed to connect too.
	Attempts int `json:"attempts"`
	// LastStatus is the last status that the backend answered with.
	LastStatus *int `json:"last_status"`
	// NextAttempt is nil while an attempt runs, while the backend is absent or in
	// maintenance, and when none is to come. For a delivery that waits for an unreachable backend it is the next try of
	// the backend's oldest one.
	NextAttempt *time.Time `json:"next_attempt"`
}

// Status returns where the write with that id stands, and false if there is
// none or it was forgotten. An error is the journal's.
func (e *Engine) Status(ctx context.Context, id string) (Status, bool, error) {
	r, found, err := e.Find(ctx, id)
	if err != nil || !found {
		return Status{}, false, err
	}
	return newStatus(&r), true, nil
}

func newStatus(r *Record) Status {
	s := Status{ID: r.ID, State: r.State, Created: shown(r.Created), Deliveries: make([]DeliveryStatus, len(r.Deliveries))}
	for i, d := range r.Deliveries {
		s.Deliveries[i] = DeliveryStatus{Backend: d.Backend, State: d.State, Attempts: d.Attempts}
		if d.LastStatus != 0 {
			s.Deliveries[i].LastStatus = new(d.LastStatus)
		}
		if !d.Next.IsZero() {
			s.Deliveries[i].NextAttempt = new(shown(d.Next))
		}
	}
	return s
}

// shown returns t as people and scripts get it: UTC, whole milliseconds.
func shown(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

// Count is how many deliveries of one pool are where.
type Count struct {
	Pool string
	// Pending are on their way, held ones included. Parked were given up, and
	// no operator has settled them.
	Pending, Parked int
}

// Counts returns one Count for each pool that has had a fan-out, by name.
func (e *Engine) Counts() []Count {
	e.mu.Lock()
	defer e.mu.Unlock()
	counts := make([]Count, 0, len(e.pools))
	for _, c := range e.pools {
		counts = append(counts, *c)
	}
	slices.SortFunc(counts, func(a, b Count) int { return strings.Compare(a.Pool, b.Pool) })
	return counts
}

// Pending is a delivery that was not settled when the engine stopped.
type Pending struct {
	ID, RequestID, Route, Method string
	// Path is the request target without its query, which may hold secrets.
	Path     string
	Backend  string
	State    DeliveryState
	Attempts int
	// LastStatus is the last status the backend answered with, 0 for none.
	LastStatus int
	// Age runs from the admission.
	Age time.Duration
}

// leftOver lists what is pending, in the order of admission, then of config.
func (e *Engine) leftOver() []Pending {
	e.mu.Lock()
	defer e.mu.Unlock()
	writes := make([]*write, 0, len(e.writes))
	for _, w := range e.writes {
		writes = append(writes, w)
	}
	slices.SortFunc(writes, func(a, b *write) int { return cmp.Compare(a.record.Seq, b.record.Seq) })
	now := time.Now()
	var left []Pending
	for _, w := range writes {
		path, _, _ := strings.Cut(w.record.Write.Target, "?")
		for _, d := range w.verdict.deliveries {
			if d.State != DeliveryPending && d.State != DeliveryHeld {
				continue
			}
			left = append(left, Pending{
				ID: w.record.ID, RequestID: w.record.Write.RequestID, Route: w.record.Route,
				Method: w.record.Write.Method, Path: path, Backend: d.Backend, State: d.State,
				Attempts: d.Attempts, LastStatus: d.LastStatus, Age: now.Sub(w.record.Created),
			})
		}
	}
	return left
}
