package pool

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"lb/internal/backend"
	"lb/internal/balance"
	"lb/internal/breaker"
	"lb/internal/outcome"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixture is a pool of backends named a, b, c that writes down its changes.
type fixture struct {
	*Pool
	backends []*backend.Backend

	mu      sync.Mutex
	changes []Change
}

// limits are a breaker that is quick to try out.
func limits() *breaker.Settings {
	return &breaker.Settings{
		Consecutive: 3, Ratio: 0.5, MinRequests: 10, Window: 10 * time.Second,
		Open: 10 * time.Second, MaxOpen: time.Minute, HalfOpen: 2,
	}
}

func newFixture(t testing.TB, n int, with ...func(*Options)) *fixture {
	t.Helper()
	policy, err := balance.New(balance.Spec{Name: "roundrobin"})
	require.NoError(t, err)
	f := &fixture{}
	for i := range n {
		f.backends = append(f.backends, &backend.Backend{Pool: "p", ID: fmt.Sprintf("%c", 'a'+i)})
	}
	o := Options{
		Name: "p", Policy: policy, Budget: NewBudget(0, 0), Backends: f.backends, MaxOpenShare: 0.5,
		OnChange: func(c Change) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.changes = append(f.changes, c)
		},
	}
	for _, change := range with {
		change(&o)
	}
	f.Pool = New(o)
	t.Cleanup(f.Close)
	return f
}

func withBreaker(o *Options) { o.Breaker = limits() }

// told returns the changes since the last call: whose, from, to, for how long.
func (f *fixture) told() (told []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.changes {
		told = append(told, fmt.Sprintf("%s %s>%s %v", c.Backend.ID, word(c.From), word(c.To), c.For))
	}
	f.changes = nil
	return told
}

// word tells states apart that operators call by one word.
func word(s backend.State) string {
	if s.Gate != backend.GateOpen && s.Standing() != backend.Out {
		return [...]string{"", "trial", "ejected", "broken"}[s.Gate]
	}
	if s.Standing() == backend.Behind {
		return "behind"
	}
	return s.Word()
}

// lease begins a lease on whoever the policy picks.
func (f *fixture) lease(t testing.TB) Lease {
	t.Helper()
	l, ok := f.TryAcquire(new(balance.Query))
	require.True(t, ok)
	return l
}

// acquire begins a lease on b, which has a slot free.
func (f *fixture) acquire(b *backend.Backend) Lease {
	l, ok := f.Acquire(b, new(Waiter))
	if !ok {
		panic(b.ID + " has no slot free")
	}
	return l
}

// ends says how a lease's attempt went, and ends it.
func ends(l Lease, c outcome.Class) {
	l.Answered(c, time.Now(), time.Millisecond)
	l.End(c, time.Now())
}

// attempt makes one attempt at b that ends as c.
func (f *fixture) attempt(b *backend.Backend, c outcome.Class) { ends(f.acquire(b), c) }

// failed is an attempt whose dial fails.
func (f *fixture) failed(b *backend.Backend) {
	b.DialFailed()
	f.attempt(b, outcome.Unsent)
}

// answered is an attempt over a new connection that brings an answer.
func (f *fixture) answered(b *backend.Backend) {
	b.DialSucceeded()
	f.attempt(b, outcome.Success)
}

// fails makes n attempts at b that get bad answers.
func (f *fixture) fails(b *backend.Backend, n int) {
	for range n {
		f.attempt(b, outcome.Failure)
	}
}

func ids(backends []*backend.Backend) (s string) {
	for _, b := range backends {
		s += b.ID
	}
	return s
}

// serving returns who gets the next requests, twice as many as there are
// backends. They bring nothing, so that trials are given back.
func (f *fixture) serving() (s string) {
	for range 2 * len(f.backends) {
		l, ok := f.TryAcquire(new(balance.Query))
		if !ok {
			return s + "-"
		}
		s += l.Backend.ID
		l.End(outcome.ClientGone, time.Now())
	}
	return s
}

// pass lets time pass, and what it brings about happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestWhatSaysNothingChangesNothing(t *testing.T) {
	f := newFixture(t, 2, withBreaker)
	for _, c := range []outcome.Class{outcome.Undecided, outcome.Starved, outcome.ClientGone, outcome.ClientFault} {
		for range 20 {
			f.attempt(f.backends[0], c)
		}
	}
	l := f.acquire(f.backends[0])
	l.End(outcome.ClientGone, time.Now()) // without an answer
	require.Empty(t, f.told())
	require.Equal(t, backend.Figures{}, f.backends[0].Recent.Figures(time.Now()))
	_, n := f.backends[0].Heads.Quantiles(time.Now())
	require.Zero(t, n)
	require.Zero(t, f.backends[0].InFlight())
}

func TestWhenAnAttemptCounts(t *testing.T) {
	f := newFixture(t, 1)
	b, now := f.backends[0], time.Now()
	figures := func() backend.Figures { return b.Recent.Figures(now) }

	l := f.lease(t)
	require.EqualValues(t, 1, b.InFlight(), "from the pick on")
	l.Answered(outcome.Success, now, time.Millisecond)
	require.Zero(t, figures().Total, "it may still break off")
	l.End(outcome.Success, now)
	require.Equal(t, backend.Figures{Total: 1}, figures())
	require.Zero(t, b.InFlight())
	require.Equal(t, Lease{}, l)

	l = f.lease(t)
	l.Answered(outcome.Failure, now, time.Millisecond)
	require.Equal(t, backend.Figures{Total: 2, Failed: 1, Row: 1}, figures(), "what is bad counts at once")
	l.End(outcome.Failure, now)
	require.Equal(t, backend.Figures{Total: 2, Failed: 1, Row: 1}, figures(), "and once")

	l = f.lease(t)
	l.Answered(outcome.Success, now, time.Millisecond)
	l.End(outcome.Cut, now)
	require.Equal(t, backend.Figures{Total: 3, Failed: 2, Row: 2}, figures(), "it was well as far as its head")

	l = f.lease(t)
	l.Answered(outcome.Failure, now, time.Millisecond)
	l.End(outcome.Cut, now)
	require.Equal(t, backend.Figures{Total: 4, Failed: 3, Row: 3}, figures(), "bad twice is bad once")

	l = f.lease(t)
	l.Answered(outcome.Timeout, now, time.Minute)
	l.End(outcome.Timeout, now)
	_, heads := b.Heads.Quantiles(now)
	require.Equal(t, 4, heads, "of all that had a head")
}

func TestWhoIsNotProbedYetSaysSo(t *testing.T) {
	for _, health := range []backend.Health{backend.HealthUnknown, backend.HealthDown} {
		f := newFixture(t, 1, func(o *Options) { o.Backends[0].SetState(backend.State{Health: health}) })
		require.Equal(t, []string{"not probed yet"}, f.Status(f.backends[0]).Reasons)
	}
}

func TestLastResort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 3)
		f.failed(f.backends[0])
		f.failed(f.backends[1])
		require.Equal(t, "cccccc", f.serving())
		pass(300 * time.Millisecond)
		f.failed(f.backends[2])
		require.Empty(t, f.Members().Eligible, "nobody is eligible")
		got := f.serving()
		require.ElementsMatch(t, []rune("aabbcc"), []rune(got), "so everybody merely ejected serves, in rotation: %s", got)
		require.Equal(t, 700*time.Millisecond, f.RetryAfter(), "the first to come back")
		pass(700 * time.Millisecond)
		got = f.serving()
		require.ElementsMatch(t, []rune("aabbcc"), []rune(got), "on trial or not: %s", got)
	})
}

func TestWhoServesInWhosePlace(t *testing.T) {
	f := newFixture(t, 5, withBreaker)
	a, b, c, d, e := f.backends[0], f.backends[1], f.backends[2], f.backends[3], f.backends[4]
	f.SetHealth(a, backend.HealthDown, "its checks fail")
	f.SetAdmin(b, backend.Draining, "an operator drains it")
	f.SetSync(c, backend.LaggingExcluded, "it lags")
	f.failed(d)
	require.Equal(t, []string{"a up>down 0s", "b up>draining 0s", "c up>behind 0s", "d up>ejected 1s"}, f.told())
	only := func(want string) {
		t.Helper()
		for _, id := range f.serving() {
			require.Contains(t, want, string(id))
		}
	}
	only("e")
	f.failed(e)
	only("c") // rather old data than nobody
	f.SetAdmin(c, backend.Maintenance, "an operator works on it")
	only("de")
	f.Accepts(e)
	only("de") // on trial, without limit
	f.SetHealth(d, backend.HealthUnknown, "it is probed anew")
	f.SetHealth(e, backend.HealthDown, "its checks fail")
	require.Equal(t, "-", f.serving(), "never who is out")

	f.SetAdmin(c, backend.Enabled, "an operator is done")
	only("c")
	f.SetSync(c, backend.Lagging, "it catches up")
	require.Equal(t, "c", ids(f.Members().Eligible))
}

func TestPickersKeepTheOrderOfTheMembers(t *testing.T) {
	var offered []string
	f := newFixture(t, 4, func(o *Options) {
		policy := o.Policy
		o.Policy = func(serving []*backend.Backend, prev balance.Picker) balance.Picker {
			require.IsIncreasing(t, append([]string{""}, strings.Split(ids(serving), "")...))
			offered = append(offered, ids(serving))
			return policy(serving, prev)
		}
	})
	f.failed(f.backends[2])
	f.failed(f.backends[0])
	f.Accepts(f.backends[2])
	f.failed(f.backends[3])
	offered = nil
	f.failed(f.backends[1])
	require.Contains(t, offered, "abcd", "on trial or ejected")
}

func TestARetryGoesToWhoIsOnTrialBeforeItGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 2)
		a, b := f.backends[0], f.backends[1]
		f.failed(a)
		pass(time.Second)
		trial := f.acquire(a)
		require.NotZero(t, trial.trial)

		var q balance.Query
		l, ok := f.TryAcquire(&q)
		require.True(t, ok)
		require.Same(t, b, l.Backend)
		q.Exclude(b)
		q.Retry = true
		second, ok := f.TryAcquire(&q)
		require.True(t, ok)
		require.Same(t, a, second.Backend)
		require.Zero(t, second.trial)
		q.Exclude(a)
		_, ok = f.TryAcquire(&q)
		require.False(t, ok)
		for _, l := range []Lease{trial, l, second} {
			ends(l, outcome.Success)
		}
		require.Zero(t, a.InFlight()+b.InFlight())
	})
}

func TestARetryGoesToWhoIsEjectedBeforeItGivesUp(t *testing.T) {
	f := newFixture(t, 4)
	f.failed(f.backends[0])
	f.SetSync(f.backends[1], backend.LaggingExcluded, "it lags")
	f.SetHealth(f.backends[2], backend.HealthDown, "its checks fail")
	var q balance.Query
	var asked string
	for {
		l, ok := f.TryAcquire(&q)
		if !ok {
			break
		}
		asked += l.Backend.ID
		q.Exclude(l.Backend)
		q.Retry = true
		l.End(outcome.ClientGone, time.Now())
	}
	require.Len(t, asked, 3, asked)
	require.Equal(t, "d", asked[:1], "the eligible one first, then those who are merely kept away")
	require.NotContains(t, asked, "c", "never who is out")
	require.Equal(t, "dddddddd", f.serving(), "first tries go to the eligible one alone")
}

func TestWordsOfSeveralWriters(t *testing.T) {
	f := newFixture(t, 2, withBreaker)
	a := f.backends[0]
	f.SetAdmin(a, backend.Draining, "an operator drains it")
	f.SetHealth(a, backend.HealthDown, "its checks fail: 500")
	f.SetSync(a, backend.LaggingExcluded, "it is 12 s behind")
	f.failed(a)
	require.Equal(t, backend.State{
		Admin: backend.Draining, Health: backend.HealthDown, Gate: backend.GateEjected, Sync: backend.LaggingExcluded,
	}, a.State(), "none undoes what another one said")
	require.Len(t, f.told(), 4)
	f.SetHealth(a, backend.HealthDown, "its checks fail: time over")
	require.Empty(t, f.told(), "it was down before")
	reasons := f.Status(a).Reasons
	require.Len(t, reasons, 4)
	require.Equal(t, []string{"an operator drains it", "its checks fail: time over"}, reasons[:2], "the latest reason shows")
	require.Regexp(t, `^connect ejection: a dial failed; tried again in (1s|900ms)$`, reasons[2])
	require.Equal(t, "it is 12 s behind", reasons[3])

	require.Equal(t, Status{Reasons: []string{}, Breaker: "closed"}, f.Status(f.backends[1]))
	f.SetHealth(new(backend.Backend), backend.HealthDown, "a stranger")
	require.Empty(t, f.told())
}

func TestChangesAreToldInOrderAndWithoutALock(t *testing.T) {
	first, goOn := make(chan struct{}), make(chan struct{})
	var f *fixture
	f = newFixture(t, 1, func(o *Options) {
		tell := o.OnChange
		o.OnChange = func(c Change) {
			if c.To.Gate == backend.GateEjected {
				close(first)
				<-goOn
			}
			_ = f.RetryAfter() // needs the lock
			tell(c)
		}
	})
	var slow sync.WaitGroup
	slow.Go(func() { f.failed(f.backends[0]) })
	<-first
	f.answered(f.backends[0]) // does not wait for whoever writes the log
	require.Equal(t, "a", ids(f.Members().Eligible))
	close(goOn)
	slow.Wait()
	require.Equal(t, []string{"a up>ejected 1s", "a ejected>up 0s"}, f.told())
}

func TestWhoIsToldMayChangeSomething(t *testing.T) {
	var f *fixture
	f = newFixture(t, 2, func(o *Options) {
		tell := o.OnChange
		o.OnChange = func(c Change) {
			f.SetAdmin(c.Backend, backend.Draining, "whoever was told")
			tell(c)
		}
	})
	f.failed(f.backends[0])
	require.Equal(t, []string{"a up>ejected 1s", "a ejected>draining 0s"}, f.told())
}

func TestCloseLeavesNoTimerAndServesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 4, withBreaker, func(o *Options) { o.SlowStart = time.Hour })
		f.failed(f.backends[0])
		f.fails(f.backends[2], 3)
		f.failed(f.backends[3])
		f.answered(f.backends[3])
		f.told()
		f.Close()
		f.failed(f.backends[1])
		f.fails(f.backends[1], 5)
		f.SetAdmin(f.backends[1], backend.Draining, "too late")
		start := time.Now()
		pass(time.Hour)
		require.Equal(t, time.Hour, time.Since(start))
		require.Empty(t, f.told(), "nothing changes any more")
		require.NotContains(t, f.serving(), "-")
		for _, w := range f.watches {
			for _, timer := range []*time.Timer{w.timer, w.rampTimer} {
				require.False(t, timer != nil && timer.Stop(), "of %s", w.backend.ID)
			}
		}
	})
}

func TestChangesUnderConcurrency(t *testing.T) {
	f := newFixture(t, 4)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			b := f.backends[i%len(f.backends)]
			for range 300 {
				f.failed(b)
				if l, ok := f.TryAcquire(new(balance.Query)); ok {
					l.End(outcome.ClientGone, time.Now())
				} else {
					t.Error("somebody can always be tried")
				}
				f.answered(b)
				_ = f.RetryAfter()
			}
		})
	}
	wg.Wait()
	for _, b := range f.backends {
		f.answered(b)
		require.Zero(t, b.InFlight())
	}
	require.Equal(t, "abcd", ids(f.Members().Eligible))
	replay(t, f)
}

// replay checks that the told changes lead from one state to the next, up to
// the present ones.
func replay(t testing.TB, f *fixture) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	states := make(map[*backend.Backend]backend.State)
	for i, c := range f.changes {
		require.Equal(t, states[c.Backend], c.From, "change %d", i)
		require.NotEqual(t, c.From, c.To, "change %d", i)
		require.NotEmpty(t, c.Reason, "change %d: %+v", i, c)
		states[c.Backend] = c.To
	}
	for _, b := range f.backends {
		require.Equal(t, b.State(), states[b], b.ID)
	}
}

func TestAnEmptyPool(t *testing.T) {
	f := newFixture(t, 0)
	_, ok := f.TryAcquire(new(balance.Query))
	require.False(t, ok)
	require.Zero(t, f.RetryAfter())
}
