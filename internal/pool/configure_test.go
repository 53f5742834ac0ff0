package pool

import (
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/balance"
	"lb/internal/breaker"
	"lb/internal/outcome"
)

// configure changes the fixture's settings as do says.
func (f *fixture) configure(do func(*Settings)) {
	s := *f.settings.Load()
	s.Policy = nil
	if s.Breaker != nil {
		own := *s.Breaker // equal, as a file that is read anew
		s.Breaker = &own
	}
	do(&s)
	f.Configure(s)
}

// breaking sets one of a breaker's limits.
func breaking(do func(*breaker.Settings)) func(*Settings) {
	return func(s *Settings) { do(s.Breaker) }
}

func nothing(*Settings) {}

// Whoever configures a pool with what it has changes nothing: not a rotation,
// not a word, not a trial, not what was counted.
func TestAnEqualConfigurationChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 4, withBreaker, slowly(10*time.Second), func(o *Options) { o.Limits.Total = 9 })
		a, b, c := f.backends[0], f.backends[1], f.backends[2]
		f.fails(a, 3)
		f.failed(b)
		pass(time.Second)
		f.answered(b) // and is in its slow start
		f.fails(c, 2)
		pass(9 * time.Second)
		trial := f.trials(t, a, 1)[0]
		held := f.acquire(f.backends[3])
		f.told()
		share, figures, after := b.Share(), c.Recent.Figures(time.Now()), f.RetryAfter()

		f.configure(nothing)

		require.Empty(t, f.told())
		require.Equal(t, share, b.Share())
		require.Equal(t, figures, c.Recent.Figures(time.Now()))
		require.Equal(t, after, f.RetryAfter())
		require.EqualValues(t, 2, f.queue.total.Load())
		second := f.trials(t, a, 1)[0]
		require.True(t, f.spent(a), "no trial is given out anew")
		ends(trial, outcome.Success)
		ends(second, outcome.Success)
		require.Equal(t, []string{"a trial>up 0s"}, f.told(), "those that passed count")
		ends(held, outcome.Success)
		require.Zero(t, f.queue.total.Load())
	})
}

func TestTheRotationGoesOn(t *testing.T) {
	f := newFixture(t, 3)
	got := ""
	for range 7 {
		l := f.lease(t)
		got += l.Backend.ID
		ends(l, outcome.Success)
		f.configure(nothing)
	}
	require.Equal(t, "abcabca", got)

	first, err := balance.New(balance.Spec{Name: "first"})
	require.NoError(t, err)
	f.configure(func(s *Settings) { s.Policy = first })
	for range 2 {
		f.configure(nothing) // keeps it
		l := f.lease(t)
		require.Equal(t, "a", l.Backend.ID)
		ends(l, outcome.Success)
	}
}

func TestAClosedBreakerMeetsItsNewLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 3, withBreaker)
		a := f.backends[0]
		f.fails(a, 2)
		f.configure(breaking(func(s *breaker.Settings) { s.Consecutive = 5 }))
		f.fails(a, 2)
		require.Empty(t, f.told())
		f.configure(breaking(func(s *breaker.Settings) { s.Consecutive = 2 }))
		require.Empty(t, f.told(), "what has happened is judged with what happens next")
		f.fails(a, 1)
		require.Equal(t, []string{"a up>broken 10s"}, f.told())
	})
}

func TestAnOpenBreakerKeepsItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 3, withBreaker)
		a := f.backends[0]
		f.fails(a, 3)
		f.told()
		f.configure(breaking(func(s *breaker.Settings) { s.Open, s.MaxOpen, s.HalfOpen = time.Second, 15*time.Second, 1 }))
		pass(10*time.Second - 1)
		require.Empty(t, f.told())
		pass(1)
		require.Equal(t, []string{"a broken>trial 0s"}, f.told())
		ends(f.trials(t, a, 1)[0], outcome.Failure)
		require.Equal(t, []string{"a trial>broken 15s"}, f.told(), "twice as long, and the new bound")
		f.configure(breaking(func(s *breaker.Settings) { s.MaxOpen = 5 * time.Second }))
		pass(15 * time.Second)
		f.told()
		ends(f.trials(t, a, 1)[0], outcome.Failure)
		require.Equal(t, []string{"a trial>broken 5s"}, f.told(), "a bound below the last time")
	})
}

func TestAHalfOpenBreakerStartsItsNewTrials(t *testing.T) {
	for name, c := range map[string]struct{ before, passed, after int }{
		"more":             {2, 1, 4},
		"fewer":            {3, 1, 1},
		"as many as have":  {3, 2, 2},
		"fewer, none used": {3, 0, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, 3, func(o *Options) {
					o.Breaker = limits()
					o.Breaker.HalfOpen = c.before
				})
				a := f.backends[0]
				f.fails(a, 3)
				pass(10 * time.Second)
				for _, l := range f.trials(t, a, c.passed) {
					ends(l, outcome.Success)
				}
				f.told()
				f.configure(breaking(func(s *breaker.Settings) { s.HalfOpen = c.after }))
				require.Empty(t, f.told())
				fresh := f.trials(t, a, c.after)
				require.True(t, f.spent(a))
				for _, l := range fresh[1:] {
					ends(l, outcome.Success)
				}
				require.Empty(t, f.told())
				ends(fresh[0], outcome.Success)
				require.Equal(t, []string{"a trial>up 0s"}, f.told())
			})
		})
	}
}

// Who was out by the breaker alone is back; an ejection goes on.
func TestABreakerThatIsRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 6, slowly(time.Minute), func(o *Options) {
			o.Breaker = limits()
			o.MaxOpenShare = 1
		})
		a, b, c, d := f.backends[0], f.backends[1], f.backends[2], f.backends[3]
		f.fails(a, 3)
		pass(10 * time.Second)
		trial := f.trials(t, a, 1)[0]
		f.fails(b, 3)
		f.fails(c, 3)
		f.failed(c)
		f.failed(d)
		f.told()

		f.configure(func(s *Settings) { s.Breaker = nil })
		require.Equal(t, []string{"a trial>up 0s", "b broken>up 0s", "c broken>ejected 1s"}, f.told())
		require.Equal(t, "abef", ids(f.Members().Eligible))
		require.Empty(t, f.Status(a).Breaker)
		require.Equal(t, firstShare, b.Share(), "as whoever comes back")
		require.Zero(t, f.tripped)
		ends(trial, outcome.Failure) // is nobody's any more
		f.fails(a, 20)
		require.Empty(t, f.told())
		pass(time.Second)
		require.ElementsMatch(t, []string{"c ejected>trial 0s", "d ejected>trial 0s"}, f.told())
		ends(f.trials(t, c, 1)[0], outcome.Failure)
		ends(f.trials(t, c, 1)[0], outcome.Failure) // given back each time
		pass(time.Minute)
		f.told()

		f.configure(func(s *Settings) { s.Breaker = limits() })
		require.Empty(t, f.told(), "added closed")
		require.Equal(t, "closed", f.Status(a).Breaker)
		f.fails(b, 3)
		require.Equal(t, []string{"b up>broken 10s"}, f.told())
		pass(10 * time.Second)
		for _, l := range f.trials(t, b, 2) {
			ends(l, outcome.Success)
		}
		require.Equal(t, []string{"b broken>trial 0s", "b trial>up 0s"}, f.told())
	})
}

// Of a total outage that breakers made, those who wait hear at once.
func TestWhoWaitsHearsOfTheConfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 1, func(o *Options) { o.Limits = Limits{Total: 1, Queue: 5, Timeout: time.Hour} })
		held := f.lease(t)
		got := make(chan Lease, 1)
		go func() {
			q := new(balance.Query)
			l, ok := f.TryAcquire(q)
			if !ok {
				l, _ = f.Wait(q, new(Waiter), time.Time{}, nil)
			}
			got <- l
		}()
		synctest.Wait()
		f.configure(func(s *Settings) { s.Limits = Limits{Total: 1, Timeout: time.Second} })
		synctest.Wait()
		require.Equal(t, 1, f.Depth(), "who waits goes on waiting")
		f.configure(func(s *Settings) { s.Limits.Total = 2 })
		l := <-got
		require.NotNil(t, l.Backend)
		ends(l, outcome.Success)
		ends(held, outcome.Success)
	})
}

func TestTheWindowIsSetAnewIfItChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 3, withBreaker)
		a := f.backends[0]
		figures := func() backend.Figures { return a.Recent.Figures(time.Now()) }
		f.fails(a, 2)
		f.configure(breaking(func(s *breaker.Settings) { s.Ratio = 0.9 }))
		require.Equal(t, backend.Figures{Total: 2, Failed: 2, Row: 2}, figures())
		f.configure(breaking(func(s *breaker.Settings) { s.Window = time.Minute }))
		require.Equal(t, backend.Figures{Row: 2}, figures(), "a row has no window")
		f.attempt(a, outcome.Success)
		pass(50 * time.Second)
		require.Equal(t, 1, figures().Total)
		f.configure(func(s *Settings) { s.Breaker = nil })
		f.attempt(a, outcome.Success)
		pass(11 * time.Second)
		require.Zero(t, figures().Total, "the default without a breaker")
	})
}

func TestMaxOpenShareChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 4, withBreaker)
		f.fails(f.backends[0], 3)
		f.fails(f.backends[1], 3)
		f.fails(f.backends[2], 3)
		require.Len(t, f.told(), 2)
		f.configure(func(s *Settings) { s.MaxOpenShare = 1 })
		f.fails(f.backends[2], 1)
		require.Equal(t, []string{"c up>broken 10s"}, f.told())
		f.configure(func(s *Settings) { s.MaxOpenShare = 0 })
		require.Empty(t, f.told(), "those that are open stay so")
	})
}

func TestSlowStartsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 3, slowly(10*time.Second))
		a, b := f.backends[0], f.backends[1]
		back := func(one *backend.Backend) {
			f.failed(one)
			f.answered(one)
		}
		back(a)
		f.configure(func(s *Settings) { s.SlowStart = 20 * time.Second })
		pass(5 * time.Second)
		back(b)
		require.InDelta(t, 550, a.Share(), 1, "as long as it was to be when it began")
		pass(6 * time.Second)
		require.Equal(t, backend.FullShare, a.Share())
		require.InDelta(t, 370, b.Share(), 1)
		f.configure(func(s *Settings) { s.SlowStart = 0 })
		require.Equal(t, backend.FullShare, b.Share())
		pass(5 * time.Second)
		require.Equal(t, backend.FullShare, b.Share())
		back(a)
		require.Equal(t, backend.FullShare, a.Share())
	})
}

// The whole pool out by its breakers and ejections, and then no breaker: the
// first that is back calls the ejected ones.
func TestARemovalThatEndsATotalOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 3, func(o *Options) {
			o.Breaker = limits()
			o.MaxOpenShare = 1
		})
		f.fails(f.backends[0], 3)
		f.fails(f.backends[1], 3)
		f.failed(f.backends[2])
		f.told()
		require.Empty(t, f.Members().Eligible)
		f.configure(func(s *Settings) { s.Breaker = nil })
		require.Equal(t, []string{"a broken>up 0s", "c ejected>trial 0s", "b broken>up 0s"}, f.told())
		require.Equal(t, "ab", ids(f.Members().Eligible))
	})
}

// Configurations change all the time while everybody is at work: nothing is lost
// and the books are right in the end.
func TestConfiguredWhileInUse(t *testing.T) {
	const clients, each = 30, 400
	f := newFixture(t, 4, withBreaker)
	policies := make([]balance.Factory, 0, 3)
	for _, name := range []string{"roundrobin", "least_conn", "p2c"} {
		p, err := balance.New(balance.Spec{Name: name})
		require.NoError(t, err)
		policies = append(policies, p)
	}
	done := make(chan struct{})
	var changing, working sync.WaitGroup
	changing.Go(func() {
		random := rand.New(rand.NewPCG(7, 7))
		for {
			select {
			case <-done:
				return
			default:
			}
			s := Settings{MaxOpenShare: 0.5, SlowStart: time.Duration(random.IntN(3)) * time.Millisecond}
			s.Limits = Limits{Total: 20 * random.IntN(2), Queue: 100, Timeout: time.Minute}
			if random.IntN(3) > 0 {
				s.Breaker = &breaker.Settings{
					Consecutive: 2 + random.IntN(3), Ratio: 0.6, MinRequests: 10, Window: time.Duration(1+random.IntN(2)) * time.Second,
					Open: time.Millisecond, MaxOpen: 4 * time.Millisecond, HalfOpen: 1 + random.IntN(3),
				}
			}
			if random.IntN(2) > 0 {
				s.Policy = policies[random.IntN(len(policies))]
			}
			f.Configure(s)
			f.Budget.Configure(random.Float64(), random.Float64())
			_ = f.Status(f.backends[0])
		}
	})
	for client := range uint64(clients) {
		working.Go(func() {
			random := rand.New(rand.NewPCG(client, 8))
			for range each {
				q := new(balance.Query)
				l, ok := f.TryAcquire(q)
				if !ok {
					var refusal *outcome.Error
					if l, refusal = f.Wait(q, new(Waiter), time.Time{}, nil); refusal != nil {
						continue
					}
				}
				f.Budget.Deposit()
				_ = f.Budget.Withdraw()
				if random.IntN(20) == 0 {
					l.Answered(outcome.Unsent, time.Now(), 0)
					l.End(outcome.Unsent, time.Now())
					continue
				}
				finishAtRandom(random, l)
			}
		})
	}
	working.Wait()
	close(done)
	changing.Wait()
	require.Zero(t, f.queue.total.Load())
	require.Zero(t, f.waiting.Load())
	for _, b := range f.backends {
		require.Zero(t, b.InFlight(), b.ID)
	}
	f.configure(func(s *Settings) { s.Breaker = nil })
	require.Zero(t, f.tripped)
	f.Close()
	replay(t, f)
}
