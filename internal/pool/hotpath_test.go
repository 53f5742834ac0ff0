package pool

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/balance"
	"lb/internal/breaker"
	"lb/internal/outcome"
)

func TestTheHotPathDoesNotAllocate(t *testing.T) {
	never := func(o *Options) {
		o.Breaker = &breaker.Settings{Ratio: 1, MinRequests: 1, Window: 10 * time.Second, Open: time.Second, MaxOpen: time.Second, HalfOpen: 1}
	}
	for name, with := range map[string][]func(*Options){"without a breaker": nil, "with one": {never}} {
		f := newFixture(t, 3, with...)
		var q balance.Query
		now := time.Now()
		for _, b := range f.backends {
			for range 10 {
				f.attempt(b, outcome.Success) // so that the failures below do not trip
			}
		}
		for _, c := range []outcome.Class{outcome.Success, outcome.Failure, outcome.Reset, outcome.ClientGone} {
			require.Zero(t, testing.AllocsPerRun(1000, func() {
				q.Reset()
				l, _ := f.TryAcquire(&q)
				f.Budget.Deposit()
				l.Answered(c, now, time.Millisecond)
				l.End(c, now)
			}), "%s: %s", name, c)
		}
		require.Zero(t, testing.AllocsPerRun(1000, func() {
			q.Reset()
			l, _ := f.TryAcquire(&q)
			l.Answered(outcome.Success, now, time.Millisecond)
			l.End(outcome.Cut, now)
		}), "%s: a response that breaks off", name)
		require.Empty(t, f.told())
	}
}

// BenchmarkAttempt is what one attempt costs on its way: pick, answer, end.
func BenchmarkAttempt(b *testing.B) {
	attempt := func(f *fixture, q *balance.Query, now time.Time) {
		q.Reset()
		l, _ := f.TryAcquire(q)
		l.Answered(outcome.Success, now, time.Millisecond)
		l.End(outcome.Success, now)
	}
	for _, test := range []struct {
		name    string
		ejected bool
	}{{"all well", false}, {"one ejected", true}} {
		fixtureOf := func(b *testing.B) (*fixture, time.Time) {
			f := newFixture(b, 3, withBreaker)
			if test.ejected {
				for range 6 {
					f.failed(f.backends[0])
					f.Accepts(f.backends[0])
				}
				f.failed(f.backends[0]) // out for longer than this takes
			}
			return f, time.Now()
		}
		b.Run(test.name+"/serial", func(b *testing.B) {
			f, now := fixtureOf(b)
			var q balance.Query
			b.ReportAllocs()
			for b.Loop() {
				now = now.Add(10 * time.Microsecond) // so that no slice of Recent fills up
				attempt(f, &q, now)
			}
		})
		b.Run(test.name+"/parallel", func(b *testing.B) {
			f, now := fixtureOf(b)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				var q balance.Query
				now := now
				for pb.Next() {
					now = now.Add(10 * time.Microsecond)
					attempt(f, &q, now)
				}
			})
		})
	}
}
