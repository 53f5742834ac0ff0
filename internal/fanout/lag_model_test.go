package fanout

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/outcome"
)

// witness is a journal that remembers when it heard what.
type witness struct {
	*Memory
	mu       sync.Mutex
	admitted []Record
	changes  []witnessed
}

type witnessed struct {
	at     time.Time
	change Change
}

func (w *witness) Admit(ctx context.Context, r *Record) error {
	err := w.Memory.Admit(ctx, r)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.admitted = append(w.admitted, r.copy())
	return err
}

func (w *witness) Update(c Change) {
	w.Memory.Update(c)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.changes = append(w.changes, witnessed{time.Now(), c})
}

// expected says when a backend must have begun to lag and caught up. It knows
// all that happened and looks at all of it at each instant.
func (w *witness) expected(id string, after time.Duration, until time.Time) []lagEvent {
	type fate struct {
		Delivery
		created time.Time
		failed  bool
	}
	fates := map[string]*fate{}
	moments := slices.Clone(w.changes)
	for _, r := range w.admitted {
		i := slices.IndexFunc(r.Deliveries, func(d Delivery) bool { return d.Backend == id })
		fates[r.ID] = &fate{Delivery: r.Deliveries[i], created: r.Created}
		if old := r.Created.Add(after); after > 0 && !old.After(until) {
			moments = append(moments, witnessed{at: old})
		}
	}
	slices.SortStableFunc(moments, func(a, b witnessed) int { return a.at.Compare(b.at) })
	var events []lagEvent
	var was bool
	for _, m := range moments {
		for _, d := range m.change.Deliveries {
			if f := fates[m.change.ID]; d.Backend == id {
				f.failed = f.failed || d.Attempts > f.Attempts && d.State == DeliveryPending
				f.Delivery = d
			}
		}
		is := false
		for _, f := range fates {
			old := after > 0 && m.at.Sub(f.created) >= after
			is = is || f.State == DeliveryPending && (f.failed || old)
		}
		if is != was {
			events = append(events, lagEvent{at: m.at, backend: id, lagging: is})
		}
		was = is
	}
	return events
}

// moody is a Sender that answers as it likes, when it likes.
type moody struct {
	mu  sync.Mutex
	rng *rand.Rand
}

func (s *moody) draw(n int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rng.Int64N(n)
}

func (s *moody) Send(ctx context.Context, b *backend.Backend, _ Request) (Response, error) {
	mood := s.draw(12)
	if mood == 0 {
		b.DialFailed()
		return Response{}, &outcome.DialError{Address: b.Address, Err: syscall.ECONNREFUSED}
	}
	b.DialSucceeded()
	select {
	case <-after(time.Duration(s.draw(3 * int64(time.Second)))):
	case <-ctx.Done():
		return Response{}, ctx.Err()
	}
	switch mood {
	case 1:
		return Response{}, &outcome.DialError{Address: b.Address, Err: syscall.EMFILE}
	case 2:
		return Response{}, syscall.ECONNRESET
	case 3, 4:
		return Response{Status: 500}, nil
	case 5, 6:
		return Response{Status: 400}, nil
	}
	return Response{Status: 201}, nil
}

// TestLagAgainstTheNaiveDefinition lets writes of two routes come and go at
// random, and operators too. All times have nanoseconds, so that no two things
// happen at once by chance.
func TestLagAgainstTheNaiveDefinition(t *testing.T) {
	told, seeds := 0, uint64(60)
	if raced {
		seeds = 12
	}
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 1))
		after := []time.Duration{0, 1500 * ms, 2500*ms + 7}[seed%3]
		w, sender := &witness{Memory: NewMemory()}, &moody{rng: rand.New(rand.NewPCG(seed, 2))}
		bubble(t, []string{"a", "b", "c"}, func(l *lab) {
			l.pool.after = after
			for name := range l.b {
				l.limit(name, rng.IntN(4)) // 0 is none
			}
			l.plan.Wait, l.plan.AttemptTimeout, l.plan.MaxAttempts = 0, 2900*ms+3, 4
			l.plan.Backoff.Cap = 4 * time.Second
			other := *l.plan
			other.Route, other.Reject, other.MaxAge = "change", nil, 8*time.Second+11
			plans := []*Plan{l.plan, &other}
			// Rare enough for the backends to catch up now and then.
			for range 12 + rng.IntN(12) {
				l.plan = plans[rng.IntN(2)]
				for range 1 + rng.IntN(3) {
					l.mustPost("/x")
				}
				l.sleep(time.Duration(rng.Int64N(int64(8 * time.Second))))
				name := []string{"a", "b", "c"}[rng.IntN(3)]
				if l.enable(name); rng.IntN(4) == 0 {
					l.maintain(name)
				}
			}
			l.sleep(time.Duration(rng.Int64N(int64(5 * time.Second))))
			for name := range l.b {
				var heard []lagEvent
				for _, e := range l.events.lags {
					if e.backend == name {
						heard = append(heard, lagEvent{at: e.at, backend: name, lagging: e.lagging})
					}
				}
				require.Equal(t, w.expected(name, after, time.Now()), heard, "seed %d", seed)
				told += len(heard)
			}
		}, func(o *Options) {
			o.Journal, o.Sender = w, sender
			o.Jitter = func(most time.Duration) time.Duration { return time.Duration(sender.draw(int64(most) + 1)) }
		})
	}
	require.Greater(t, told, 15*int(seeds), "too quiet to prove anything")
}
