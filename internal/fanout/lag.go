package fanout

import (
	"fmt"
	"time"

	"lb/internal/backend"
)

// lag tells whether one backend is behind on its deliveries. It decides only,
// as the lane that it belongs to.
//
// A pending delivery, waiting or running, puts its backend behind from the
// first of its attempts that failed, or from the age of Pool.LaggingAfter. What
// is held, done, cancelled or parked does not. A parked delivery is missing at
// its backend until an operator acts, which may be never; lagging speaks of
// what is on its way, so that one lost write does not keep the reads away from
// a backend for ever. Parking has its own state, count and log line.
type lag struct {
	pending queue[*delivery] // those that put it behind, now or in time, by since
	lagging bool             // as of the last turn
}

func newLag() lag {
	return lag{pending: queue[*delivery]{
		less:  func(a, b *delivery) bool { return a.since.Before(b.since) },
		place: func(d *delivery) *int { return &d.aging },
	}}
}

// watch notes that d is pending; doing it again changes nothing.
func (g *lag) watch(d *delivery) {
	if !d.since.IsZero() && !g.pending.has(d) {
		g.pending.push(d)
	}
}

// failed notes that an attempt of d, which stays pending, has failed.
func (g *lag) failed(d *delivery, now time.Time) {
	d.hasFailed = true
	if d.since.IsZero() || d.since.After(now) {
		g.pending.remove(d)
		d.since = now
		g.pending.push(d)
	}
}

// drop notes that d is not pending any more.
func (g *lag) drop(d *delivery) { g.pending.remove(d) }

// turn brings lagging up to date, and reports whether that changed it. With
// more there are deliveries that it does not know, in the journal alone: who
// is behind stays so.
func (g *lag) turn(now time.Time, more bool) bool {
	first, ok := g.pending.min()
	lagging := ok && !first.since.After(now) || g.lagging && more
	changed := lagging != g.lagging
	g.lagging = lagging
	return changed
}

// wake returns when time alone will put the backend behind; zero for never.
func (g *lag) wake() time.Time {
	first, ok := g.pending.min()
	if !ok || g.lagging {
		return time.Time{}
	}
	return first.since
}

// lagChange is a change that Events has not been told yet.
type lagChange struct {
	backend *backend.Backend
	lagging bool
	reason  string
}

// lagChange describes what lag.turn has just changed.
func (l *lane) lagChange() lagChange {
	c := lagChange{backend: l.backend, lagging: l.lag.lagging, reason: "no delivery is behind any more"}
	if !c.lagging {
		return c
	}
	first, _ := l.lag.pending.min()
	if first.hasFailed {
		c.reason = "an attempt failed"
	} else {
		c.reason = fmt.Sprintf("a delivery is older than %s", first.since.Sub(first.write.record.Created))
	}
	c.reason += fmt.Sprintf("; %d pending", len(l.waiting.items)+l.running+l.outside)
	return c
}
