package pool

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/balance"
	"lb/internal/outcome"
)

// ways are the ways in which a slot comes free, or somebody comes who has one:
// what to do while a is full, and b, which has a free slot, is kept away because
// it is behind.
var ways = map[string]func(f *fixture, held Lease){
	"success":    func(_ *fixture, held Lease) { ends(held, outcome.Success) },
	"error":      func(_ *fixture, held Lease) { ends(held, outcome.Failure) },
	"cancel":     func(_ *fixture, held Lease) { held.End(outcome.ClientGone, time.Now()) },
	"timeout":    func(_ *fixture, held Lease) { ends(held, outcome.Timeout) },
	"disconnect": func(_ *fixture, held Lease) { ends(held, outcome.Reset) },
	"a response that breaks off": func(_ *fixture, held Lease) {
		held.Answered(outcome.Success, time.Now(), time.Millisecond)
		held.End(outcome.Cut, time.Now())
	},
	"a failed dial": func(f *fixture, held Lease) {
		f.backends[0].DialFailed()
		held.Answered(outcome.Unsent, time.Now(), time.Millisecond)
	},
	"expiry": func(f *fixture, _ Lease) {
		f.SetPresence(f.backends[0], backend.Expired, "it was not heard of")
	},
	"a new backend": func(f *fixture, _ Lease) {
		n := &backend.Backend{Pool: "p", ID: "n"}
		f.Replace([]*backend.Backend{n, f.backends[0], f.backends[1]})
		f.Replace([]*backend.Backend{f.backends[0], f.backends[1], n})
	},
	"a raised limit": func(f *fixture, _ Lease) { f.SetLimit(f.backends[0], 2) },
	"a limit that is lifted": func(f *fixture, _ Lease) {
		f.SetLimit(f.backends[0], 0)
	},
	"a member that leaves": func(f *fixture, _ Lease) { f.Replace(f.backends[1:]) },
	"an operator":          func(f *fixture, _ Lease) { f.SetAdmin(f.backends[0], backend.Draining, "an operator") },
	"its checks":           func(f *fixture, _ Lease) { f.SetHealth(f.backends[0], backend.HealthDown, "its checks") },
}

func TestEveryWayASlotComesFreeForEveryPolicy(t *testing.T) {
	for _, policy := range balance.Names() {
		for way, free := range ways {
			for _, total := range []int{0, 100} {
				t.Run(policy+"/"+way, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						f := newFixture(t, 2, policed(t, policy), limited(1, Limits{Total: total, Queue: 5, Timeout: time.Hour}))
						f.SetSync(f.backends[1], backend.LaggingExcluded, "it lags")
						held := f.lease(t)
						got := make(chan Lease, 1)
						go func() {
							q := balance.Query{Key: 77}
							l, e := f.request(t.Context(), &q, new(Waiter))
							if e != nil {
								t.Error(e)
							}
							got <- l
						}()
						synctest.Wait()
						require.Equal(t, 1, f.Depth())
						free(f, held)
						synctest.Wait()
						require.Zero(t, f.Depth())
						l := <-got
						ends(l, outcome.Success)
					})
				})
			}
		}
	}
}

// What else a pool gives back or hands out.
func TestOtherThingsThatWakeTheQueue(t *testing.T) {
	waits := func(t *testing.T, f *fixture) (granted func() bool) {
		t.Helper()
		var done atomic.Bool
		go func() {
			l, e := f.request(t.Context(), new(balance.Query), new(Waiter))
			if e == nil {
				done.Store(true)
				l.End(outcome.ClientGone, time.Now())
			}
		}()
		synctest.Wait()
		require.False(t, done.Load())
		return func() bool {
			synctest.Wait()
			return done.Load()
		}
	}
	queue := Limits{Queue: 5, Timeout: time.Hour}
	t.Run("a raised total", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, 1, func(o *Options) { o.Limits = Limits{Total: 1, Queue: 5, Timeout: time.Hour} })
			l := f.lease(t)
			granted := waits(t, f)
			f.SetLimits(Limits{Total: 2, Queue: 5, Timeout: time.Hour})
			require.True(t, granted())
			f.SetLimits(Limits{Total: 1, Queue: 5, Timeout: time.Hour})
			granted = waits(t, f)
			ends(l, outcome.Success)
			require.True(t, granted(), "and one that is given back")
		})
	})
	t.Run("another policy", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, 2, policed(t, "first"), limited(1, queue))
			l := f.lease(t)
			granted := waits(t, f)
			policy, err := balance.New(balance.Spec{Name: "last"})
			require.NoError(t, err)
			f.SetPolicy(policy)
			require.True(t, granted())
			ends(l, outcome.Success)
		})
	})
	t.Run("an ejection that is over", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, 2, limited(1, queue))
			l := f.acquire(f.backends[0])
			f.failed(f.backends[1])
			granted := waits(t, f)
			pass(time.Second)
			require.True(t, granted())
			ends(l, outcome.Success)
		})
	})
	t.Run("a trial that is given back", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, 2, limited(1, queue))
			f.SetLimit(f.backends[1], 2)
			l := f.acquire(f.backends[0])
			f.failed(f.backends[1])
			pass(time.Second)
			trial := f.acquire(f.backends[1])
			require.NotZero(t, trial.trial)
			granted := waits(t, f)
			trial.Answered(outcome.Failure, time.Now(), time.Millisecond)
			require.True(t, granted(), "before the slot is")
			trial.End(outcome.Failure, time.Now())
			trial = f.acquire(f.backends[1])
			granted = waits(t, f)
			trial.End(outcome.ClientGone, time.Now())
			require.True(t, granted())
			ends(l, outcome.Success)
		})
	})
	t.Run("a breaker that closes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, 2, withBreaker, limited(2, queue))
			f.SetLimit(f.backends[1], 4)
			one, two := f.acquire(f.backends[0]), f.acquire(f.backends[0])
			f.fails(f.backends[1], 3)
			pass(10 * time.Second)
			trials := []Lease{f.acquire(f.backends[1]), f.acquire(f.backends[1])}
			granted := waits(t, f)
			for i := range trials {
				require.False(t, granted())
				trials[i].Answered(outcome.Success, time.Now(), time.Millisecond)
			}
			require.True(t, granted())
			for _, l := range append(trials, one, two) {
				l.End(outcome.Success, time.Now())
			}
		})
	})
	t.Run("trials that nobody brought back", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, 2, limited(1, queue))
			f.SetLimit(f.backends[1], 2)
			l := f.acquire(f.backends[0])
			f.failed(f.backends[1])
			pass(time.Second)
			trial := f.acquire(f.backends[1])
			granted := waits(t, f)
			pass(trialPatience)
			require.True(t, granted())
			ends(l, outcome.Success)
			trial.End(outcome.ClientGone, time.Now())
		})
	})
}
