package fanout

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/balance"
	"lb/internal/outcome"
	"lb/internal/pool"
)

// limit sets how many may be in flight at a backend.
func (l *lab) limit(name string, n int) { l.pool.SetLimit(l.b[name], n) }

// take has somebody else take a slot of a backend; the returned function gives
// it back.
func (l *lab) take(name string) (end func()) {
	l.t.Helper()
	lease, ok := l.pool.Acquire(l.b[name], &pool.Waiter{})
	require.True(l.t, ok)
	return func() { lease.End(outcome.Undecided, time.Now()) }
}

// slotsFree requires that no slot is taken, or waited for, at the end of f.
func (l *lab) slotsFree() {
	l.t.Helper()
	synctest.Wait()
	for _, b := range l.b {
		l.pool.free(l.t, b)
	}
	l.engine.mu.Lock()
	defer l.engine.mu.Unlock()
	for _, ln := range l.engine.lanes {
		require.Nil(l.t, ln.asked)
	}
}

func TestNoMoreAttemptsThanSlots(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(l *lab) {
		l.plan.Wait = 0
		l.limit("a", 2)
		l.fake.set("a", ok().in(time.Second))
		var all []Answer
		for i := range 7 {
			all = append(all, l.mustPost(fmt.Sprint("/", i)))
		}
		l.sleep(0)
		require.Len(t, l.calls("a"), 2)
		require.Len(t, l.calls("b"), 7, "it has no limit, and waits for nobody")
		l.sleep(4 * time.Second)
		for _, a := range all {
			require.Equal(t, "done a=done b=done", l.states(a.ID))
			require.Equal(t, 1, l.status(a.ID).Deliveries[0].Attempts, "to wait is no attempt")
		}
		require.Equal(t, 2, l.fake.most["a"])
		l.slotsFree()
	})
}

func TestTheTotalBoundsAttempts(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(l *lab) {
		l.pool.SetLimits(pool.Limits{Total: 1})
		l.fake.set("a", ok().in(time.Second))
		l.fake.set("b", ok().in(time.Second))
		for range 3 {
			require.Equal(t, 201, l.mustPost("/x").Status)
		}
		require.Equal(t, 6*time.Second, l.passed(), "one after the other")
		l.slotsFree()
	})
}

func TestTheSlotGoesToWhoIsFirstByThen(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		l.plan.Wait = 0
		l.limit("a", 1)
		l.fake.set("a", says(500), ok())
		l.mustPost("/old") // fails, and is due again after 1 s
		l.sleep(0)
		end := l.take("a")
		l.mustPost("/new")
		l.sleep(2 * time.Second)
		require.Equal(t, "/old", l.targets("a"))
		l.fake.set("a")
		end()
		l.sleep(0)
		require.Equal(t, "/old /old /new", l.targets("a"))
		require.Equal(t, 2*time.Second, l.passed())
		l.slotsFree()
	})
}

func TestWhoWaitsForASlotIsBehindByAgeAlone(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		l.plan.Wait = 0
		l.pool.after = 5 * time.Second
		l.limit("a", 1)
		end := l.take("a")
		l.sleep(time.Second)
		a := l.mustPost("/x")
		l.sleep(4 * time.Second)
		require.Empty(t, l.lags())
		l.sleep(time.Second)
		require.Equal(t, []string{"6s a lags"}, l.lags())
		require.Contains(t, l.reasons()[0], "older than 5s")
		require.Zero(t, l.status(a.ID).Deliveries[0].Attempts)
		end()
		l.sleep(0)
		require.Equal(t, "done a=done", l.states(a.ID))
		l.slotsFree()
	})
}

// What waited is not there any more, or may not go now: nobody keeps the slot.
func TestASlotThatNobodyWantsIsGivenBack(t *testing.T) {
	for name, change := range map[string]func(l *lab, id string){
		"skipped":     func(l *lab, id string) { require.NoError(l.t, l.skip(id, "a")) },
		"too old":     func(l *lab, _ string) { l.sleep(24 * time.Hour) },
		"maintenance": func(l *lab, _ string) { l.maintain("a") },
		"expired":     func(l *lab, _ string) { l.b["a"].SetState(backend.State{Presence: backend.Expired}) },
		"unreachable": func(l *lab, _ string) { l.b["a"].DialFailed() },
		"cancelled": func(l *lab, _ string) {
			l.b["a"].SetState(backend.State{Presence: backend.Leaving})
			require.NoError(l.t, l.engine.Cancel(context.Background(), "users", "a"))
		},
		"stopped": func(l *lab, _ string) {
			l.engine.Stop(context.Background())
			require.Zero(l.t, l.passed(), "it waits for no slot")
		},
	} {
		for _, atOnce := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " at once: ", atOnce), func(t *testing.T) {
				bubble(t, []string{"a"}, func(l *lab) {
					l.plan.Wait = 0
					l.limit("a", 1)
					if name == "unreachable" { // the oldest would try all the same
						l.fake.set("a", resets())
						l.mustPost("/old")
						l.sleep(0)
					}
					before := len(l.calls("a"))
					end := l.take("a")
					a := l.mustPost("/x")
					l.sleep(0)
					if atOnce { // the grant is on its way already
						end()
						end = func() {}
					}
					change(l, a.ID)
					if atOnce {
						l.sleep(0)
						return // either may have been first; the bubble sees what is left over
					}
					end()
					l.sleep(0)
					require.Len(t, l.calls("a"), before)
					l.slotsFree()
				})
			})
		}
	}
}

func TestAllSlotsThatComeFreeAreUsed(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		l.plan.Wait = 0
		l.limit("a", 2)
		l.fake.set("a", ok().in(time.Second))
		first, second := l.take("a"), l.take("a")
		for range 3 {
			l.mustPost("/x")
		}
		first()
		second()
		l.sleep(0)
		require.Len(t, l.calls("a"), 2)
		l.sleep(2 * time.Second)
		l.atRest()
		l.slotsFree()
	})
}

// A grant that is on its way when things change.
func TestAGrantThatComesTooLate(t *testing.T) {
	for name, test := range map[string]struct {
		change func(l *lab) // with the engine's lock held
		want   []string
	}{
		"another backend": {func(l *lab) {
			l.leave("a", backend.Leaving)
			l.engine.rejoin(l.engine.lane(l.b["a"]), l.comeBack("a", "elsewhere:1"), time.Now())
		}, []string{"elsewhere:1"}},
		"stopping": {func(l *lab) { l.engine.stopping = true }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, []string{"a"}, func(l *lab) {
				l.plan.Wait = 0
				l.limit("a", 1)
				old, end := l.b["a"], l.take("a")
				l.mustPost("/x")
				l.engine.mu.Lock()
				end()
				test.change(l)
				l.engine.mu.Unlock()
				l.sleep(0)
				require.Equal(t, test.want, l.addresses("a"))
				require.Zero(t, old.InFlight())
				l.slotsFree()
			})
		})
	}
}

func TestPlansOverOnePoolShareItsSlots(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		l.plan.Wait = 0
		other := *l.plan
		other.Pool = &struct{ *fakePool }{l.pool} // as another generation has it
		plans := []*Plan{l.plan, &other}
		l.limit("a", 1)
		l.fake.set("a", ok().in(time.Second))
		for i := range 6 {
			l.plan = plans[i%2]
			l.mustPost(fmt.Sprint("/", i))
		}
		l.sleep(6 * time.Second)
		require.Equal(t, "/0 /1 /2 /3 /4 /5", l.targets("a"))
		require.Equal(t, 1, l.fake.most["a"])
		l.atRest()
		l.slotsFree()
	})
}

// Requests and attempts stand in one line for the one slot of a backend.
func TestReadsAndDeliveriesBothGetAhead(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		l.plan.Wait = 0
		l.limit("a", 1)
		l.pool.SetLimits(pool.Limits{Queue: 100, Timeout: time.Hour})
		l.fake.set("a", ok().in(100*ms))
		reads := 0
		ctx, cancel := context.WithCancel(context.Background())
		for range 5 {
			go func() {
				for ctx.Err() == nil {
					q := &balance.Query{}
					lease, ok := l.pool.TryAcquire(q)
					if !ok {
						var refused *outcome.Error
						lease, refused = l.pool.Wait(q, &pool.Waiter{}, time.Time{}, ctx.Done())
						if refused != nil {
							return
						}
					}
					reads++ // one at a time
					time.Sleep(100 * ms)
					lease.End(outcome.Success, time.Now())
				}
			}()
		}
		for range 20 {
			l.mustPost("/x")
		}
		l.sleep(6*time.Second + ms)
		require.InDelta(t, 10, len(l.calls("a")), 1, "each sixth slot is theirs")
		require.InDelta(t, 50, reads, 2)
		cancel()
		l.sleep(time.Minute)
		l.atRest()
		l.slotsFree()
	})
}

// However the end of the engine and that of the wait meet, no slot is lost.
func TestStopWhileSlotsComeFree(t *testing.T) {
	for n := range 50 {
		bubble(t, []string{"a", "b"}, func(l *lab) {
			l.plan.Wait = 0
			ends := []func(){}
			for _, name := range []string{"a", "b"} {
				l.limit(name, 1)
				ends = append(ends, l.take(name))
			}
			for range 3 {
				l.mustPost("/x")
			}
			stopped := make(chan struct{})
			go func() {
				defer close(stopped)
				time.Sleep(time.Duration(n%3) * time.Nanosecond)
				l.stopNow()
			}()
			time.Sleep(time.Nanosecond)
			for _, end := range ends {
				end()
			}
			<-stopped
			for _, b := range l.b {
				require.Zero(t, b.InFlight())
			}
			l.slotsFree()
		})
	}
}

// BenchmarkSubmitUnderALimit is BenchmarkSubmit to backends with more slots than
// are ever asked for.
func BenchmarkSubmitUnderALimit(b *testing.B) { benchmarkSubmit(b, 1<<20) }
