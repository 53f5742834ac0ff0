package pool

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/balance"
	"lb/internal/breaker"
	"lb/internal/outcome"
)

func TestPresence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 3)
		a, b := f.backends[0], f.backends[1]
		require.Equal(t, "abc", ids(f.Members().Present()))
		f.SetPresence(a, backend.Expired, "it was not heard of for 30s")
		f.SetPresence(b, backend.Leaving, "it unregistered")
		require.Equal(t, "abc", ids(f.Members().All))
		require.Equal(t, "c", ids(f.Members().Present()))
		require.Equal(t, "cccccc", f.serving())
		require.Equal(t, []string{"it was not heard of for 30s"}, f.Status(a).Reasons)
		f.failed(f.backends[2])
		require.Equal(t, "cccccc", f.serving(), "who is not there is no last resort")
		f.SetPresence(a, backend.Present, "it is heard of again")
		require.Equal(t, "ac", ids(f.Members().Present()))
		require.Equal(t, []string{"a up>expired 0s", "b up>draining 0s", "c up>ejected 1s", "a expired>up 0s", "c ejected>trial 10s"}[:4], f.told()[:4])
	})
}

func TestReplaceKeepsWhatIsKnownOfThoseThatStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 4, withBreaker)
		a, b, c, d := f.backends[0], f.backends[1], f.backends[2], f.backends[3]
		f.fails(a, 3)
		f.failed(b)
		f.SetAdmin(c, backend.Draining, "an operator drains it")
		f.told()
		n := &backend.Backend{Pool: "p", ID: "n"}
		n.SetState(backend.State{Health: backend.HealthUnknown})
		all := []*backend.Backend{n, c, b, a}
		f.Replace(all)
		all[0] = nil // the pool has its own
		require.Equal(t, "ncba", ids(f.Members().All))
		require.Empty(t, f.told(), "nobody's state has changed")
		require.Equal(t, "open", f.Status(a).Breaker)
		require.Equal(t, backend.GateEjected, b.State().Gate)
		require.Equal(t, []string{"an operator drains it"}, f.Status(c).Reasons)
		require.Equal(t, []string{"not probed yet"}, f.Status(n).Reasons)
		require.Equal(t, []string{"it has left the pool"}, f.Status(d).Reasons)
		f.SetHealth(d, backend.HealthDown, "a stranger")
		f.SetHealth(n, backend.HealthUp, "its checks pass")
		require.Equal(t, []string{"n down>up 0s", "b ejected>trial 0s"}, f.told(), "the first that serves again")
		pass(10 * time.Second)
		require.Equal(t, "half-open", f.Status(a).Breaker)
	})
}

// What is in flight at a member that left ends as it should, and what it says is
// nobody's business any more.
func TestAMemberThatLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 3, withBreaker, limited(1, Limits{Total: 3, Queue: 5, Timeout: time.Minute}), slowly(time.Hour))
		a, b, c := f.backends[0], f.backends[1], f.backends[2]
		f.failed(a)
		f.failed(b)
		f.answered(b) // in its slow start
		onA, onB, onC := f.acquire(a), f.acquire(b), f.acquire(c)
		f.Replace([]*backend.Backend{c})
		f.told()
		require.Equal(t, backend.FullShare, b.Share())
		_ = f.Status(a)
		_ = f.RetryAfter()
		f.Accepts(a)
		got := make(chan string, 1)
		go func() {
			by, _ := f.call(0)
			got <- by
		}()
		delivered := make(chan Lease, 1)
		_, ok := f.Acquire(a, &Waiter{Granted: func(l Lease) { delivered <- l }})
		require.False(t, ok)
		synctest.Wait()
		ends(onA, outcome.Success)
		require.Same(t, a, (<-delivered).Backend, "what waited for it still gets it")
		a.End()
		ends(onB, outcome.Timeout)
		synctest.Wait()
		require.Equal(t, 1, f.Depth())
		ends(onC, outcome.Success)
		require.Equal(t, "c", <-got)
		require.Zero(t, a.InFlight()+b.InFlight()+c.InFlight())
		pass(time.Hour)
		require.Empty(t, f.told(), "its timers have stopped")

		f.Replace([]*backend.Backend{a, b, c})
		require.Equal(t, "abc", ids(f.Members().Eligible), "who comes back begins with an open gate")
		f.failed(a)
		require.Equal(t, backend.GateEjected, a.State().Gate)
	})
}

func TestABreakerThatLeavesMakesRoomForAnother(t *testing.T) {
	f := newFixture(t, 4, withBreaker) // at most two of four may be open
	for _, b := range f.backends[:3] {
		f.fails(b, 3)
	}
	require.Equal(t, "cd", ids(f.Members().Eligible))
	f.Replace(f.backends[1:])
	n := &backend.Backend{Pool: "p", ID: "n"}
	f.Replace(append(f.backends[1:4:4], n))
	f.fails(f.backends[2], 3)
	require.Equal(t, "dn", ids(f.Members().Eligible))
	f.fails(n, 3)
	require.Equal(t, "dn", ids(f.Members().Eligible))
	f.Replace([]*backend.Backend{f.backends[3], n})
	f.fails(n, 3)
	require.Equal(t, "d", ids(f.Members().Eligible))
	f.fails(f.backends[3], 3)
	require.Equal(t, "d", ids(f.Members().Eligible), "the last one is spared")
}

func TestAPoolThatGetsItsFirstMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 2)
		f.failed(f.backends[0])
		f.failed(f.backends[1])
		f.told()
		f.Replace(append(f.backends[:2:2], &backend.Backend{Pool: "p", ID: "n"}))
		require.Equal(t, []string{"a ejected>trial 0s", "b ejected>trial 0s"}, f.told())
		got := f.serving()
		require.Contains(t, got, "a", "who is on trial is picked again")
		require.Contains(t, got, "b")
		require.Contains(t, got, "n")
	})
}

func TestTraitsAndPolicyCountFromTheNextPickOn(t *testing.T) {
	f := newFixture(t, 2, policed(t, "weighted_roundrobin"))
	count := func() (n int) {
		for _, id := range f.serving() + f.serving() {
			if id == 'b' {
				n++
			}
		}
		return n
	}
	require.Equal(t, 4, count())
	f.SetTraits(f.backends[1], 3, map[string]string{"zone": "x"})
	require.Equal(t, 6, count())
	require.Equal(t, "x", f.backends[1].Labels()["zone"])
	first, err := balance.New(balance.Spec{Name: "first"})
	require.NoError(t, err)
	f.SetPolicy(first)
	require.Equal(t, "aaaa", f.serving())
	f.failed(f.backends[0])
	require.Equal(t, "bbbb", f.serving(), "and for all that are frozen later")
}

func TestTickAndSpeed(t *testing.T) {
	f := newFixture(t, 2, limited(1, Limits{Queue: 5}))
	a, b := f.backends[0], f.backends[1]
	now := time.Now()
	took := func(b *backend.Backend, c outcome.Class, d time.Duration) {
		l := f.acquire(b)
		l.Answered(c, now, d)
		l.End(c, now)
	}
	const ms = float64(time.Millisecond)
	took(a, outcome.Success, 80*time.Millisecond)
	require.InEpsilon(t, 80*ms, a.Speed.Average(), 1e-9)
	took(b, outcome.Success, 5*time.Millisecond)
	took(b, outcome.ClientGone, time.Second)
	took(b, outcome.Unsent, time.Second)
	require.InEpsilon(t, 5*ms, b.Speed.Average(), 1e-9, "what is not the backend's doing does not count")
	b.DialSucceeded()
	took(b, outcome.Failure, time.Millisecond)
	require.InEpsilon(t, 80*ms, b.Speed.Average(), 1e-9, "who fails fast is as slow as the slowest")
	took(b, outcome.Timeout, 200*time.Millisecond)
	require.InEpsilon(t, 200*ms, b.Speed.Average(), 1e-9, "or slower")
	took(a, outcome.Reset, 0)
	require.InEpsilon(t, 200*ms, a.Speed.Average(), 1e-9)

	now = now.Add(backend.SpeedDecay)
	f.Tick(now)
	require.InEpsilon(t, 200*ms/2.718281828, a.Speed.Average(), 1e-6)
	require.InEpsilon(t, 200*ms/2.718281828, float64(f.slowest.Load()), 1e-6, "the slowest is so no longer than it lasts")
	require.Zero(t, b.ErrorRate(), "the window is over")
	took(b, outcome.Failure, 0)
	took(b, outcome.Success, 0)
	f.Tick(now)
	require.InEpsilon(t, 0.5, b.ErrorRate(), 1e-9)
	require.Zero(t, b.Queued())
}

func TestTickTellsHowManyWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 1, limited(1, Limits{Queue: 5}))
		held := f.lease(t)
		for range 3 {
			go func() { _, _ = f.call(0) }()
		}
		synctest.Wait()
		f.Tick(time.Now())
		require.Equal(t, 3, f.backends[0].Queued())
		ends(held, outcome.Success)
		synctest.Wait()
		f.Tick(time.Now())
		require.Zero(t, f.backends[0].Queued())
	})
}

// many is a pool of 10,000 backends.
func many(b *testing.B, policy string) *fixture {
	b.Helper()
	f := &fixture{}
	for i := range 10_000 {
		f.backends = append(f.backends, &backend.Backend{Pool: "p", ID: fmt.Sprint("backend-", i)})
	}
	o := Options{
		Name: "p", Budget: NewBudget(0, 0), Backends: f.backends, MaxOpenShare: 0.5, Limits: Limits{Queue: 100},
		Breaker: &breaker.Settings{Consecutive: 1 << 30, Ratio: 1, MinRequests: 1 << 30, Window: 10 * time.Second, Open: time.Hour, MaxOpen: time.Hour, HalfOpen: 1},
	}
	policed(b, policy)(&o)
	f.Pool = New(o)
	b.Cleanup(f.Close)
	return f
}

// BenchmarkChange is what a change costs in a pool of 10,000 backends.
func BenchmarkChange(b *testing.B) {
	for _, policy := range balance.Names() {
		f := many(b, policy)
		i := 0
		next := func() *backend.Backend {
			i++
			return f.backends[i%len(f.backends)]
		}
		for name, change := range map[string]func(){
			"come and go": func() { f.Replace(f.backends[i%2:]); i++ },
			"state":       func() { f.SetHealth(next(), backend.Health(i/len(f.backends)%2), "its checks") },
			"limit":       func() { f.SetLimit(next(), 100+i%3) },
			"tick":        func() { f.Tick(time.Now()) },
		} {
			b.Run(policy+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					change()
				}
			})
		}
	}
}
