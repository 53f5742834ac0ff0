package pool

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/balance"
	"lb/internal/outcome"
)

// trials takes n trials of b, as requests would.
func (f *fixture) trials(t testing.TB, b *backend.Backend, n int) []Lease {
	t.Helper()
	leases := make([]Lease, n)
	for i := range leases {
		leases[i] = f.acquire(b)
		require.NotZero(t, leases[i].trial, "trial %d of %s", i, b.ID)
	}
	return leases
}

// spent reports whether b has no trial left.
func (f *fixture) spent(b *backend.Backend) bool {
	l := f.acquire(b)
	defer l.End(outcome.ClientGone, time.Now())
	return l.trial == 0
}

func TestABreakerOpensAndCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 3, withBreaker)
		a := f.backends[0]
		f.fails(a, 2)
		f.attempt(a, outcome.Success)
		f.fails(a, 2)
		require.Empty(t, f.told(), "a success breaks the row")
		f.fails(a, 1)
		require.Equal(t, []string{"a up>broken 10s"}, f.told())
		require.Equal(t, "bc", ids(f.Members().Eligible))
		require.Equal(t, 10*time.Second, f.RetryAfter())
		s := f.Status(a)
		require.Equal(t, []string{"breaker open: 3 failures in a row; tried again in 10s"}, s.Reasons)
		require.Equal(t, "open", s.Breaker)
		require.Equal(t, 2, s.BreakerNumber)

		pass(10*time.Second - 1)
		require.NotContains(t, f.serving(), "a")
		pass(1)
		require.Equal(t, []string{"a broken>trial 0s"}, f.told())
		require.Equal(t, []string{"breaker half-open: closes after 2 good requests"}, f.Status(a).Reasons)
		require.Zero(t, f.RetryAfter())

		two := f.trials(t, a, 2)
		require.True(t, f.spent(a))
		require.NotContains(t, f.serving(), "a")
		ends(two[0], outcome.Success)
		require.Empty(t, f.told(), "one is not all")
		require.True(t, f.spent(a), "and gives out no third")
		ends(two[1], outcome.Success)
		require.Equal(t, []string{"a trial>up 0s"}, f.told())
		require.Equal(t, backend.Figures{Total: 1}, a.Recent.Figures(time.Now()), "what was before is forgotten")
		require.Equal(t, "closed", f.Status(a).Breaker)
	})
}

func TestABreakerOpensByTheRatioInItsWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 2, withBreaker)
		a := f.backends[0]
		mixed := func(n int) {
			for range n {
				f.attempt(a, outcome.Success)
				f.fails(a, 1)
			}
		}
		mixed(4)
		pass(11 * time.Second)
		mixed(4)
		require.Empty(t, f.told(), "of 16 requests 8 are past the window")
		mixed(1)
		require.Equal(t, []string{"a up>broken 10s"}, f.told())
		require.Equal(t, "breaker open: 5 of 10 requests failed; tried again in 10s", f.Status(a).Reasons[0])
	})
}

func TestATrialThatFailsOpensItAgainForLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 2, withBreaker)
		a := f.backends[0]
		f.fails(a, 3)
		for _, open := range []string{"20s", "40s", "1m0s", "1m0s"} {
			pass(time.Minute)
			two := f.trials(t, a, 2)
			ends(two[0], outcome.Success)
			f.told()
			ends(two[1], outcome.Timeout)
			require.Equal(t, []string{"a trial>broken " + open}, f.told())
			require.Contains(t, f.Status(a).Reasons[0], "breaker open: a trial failed; tried again in")
		}
		pass(time.Minute)
		for _, l := range f.trials(t, a, 2) {
			ends(l, outcome.Success)
		}
		pass(59 * time.Second)
		f.told()
		f.fails(a, 3)
		require.Equal(t, []string{"a up>broken 1m0s"}, f.told(), "closed for less than it was open")
		pass(time.Minute)
		for _, l := range f.trials(t, a, 2) {
			ends(l, outcome.Success)
		}
		pass(time.Minute)
		f.told()
		f.fails(a, 3)
		require.Equal(t, []string{"a up>broken 10s"}, f.told())
	})
}

func TestOnlyTrialsCountInAHalfOpenBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 2, withBreaker)
		a := f.backends[0]
		old := []Lease{f.acquire(a), f.acquire(a), f.acquire(a), f.acquire(a)}
		f.fails(a, 3)
		pass(10 * time.Second)
		f.told()
		for _, l := range old[:3] {
			ends(l, outcome.Success)
		}
		ends(old[3], outcome.Failure)
		require.Empty(t, f.told(), "they began before it opened")

		two := f.trials(t, a, 2)
		others := []Lease{f.acquire(a), f.acquire(a)}
		require.Zero(t, others[0].trial, "a delivery goes to every backend")
		for range 3 {
			f.attempt(a, outcome.Failure)
		}
		ends(others[0], outcome.Success)
		ends(others[1], outcome.Success)
		require.Empty(t, f.told())

		two[0].End(outcome.ClientGone, time.Now()) // without an answer
		two[1].Answered(outcome.ClientGone, time.Now(), 0)
		two[1].End(outcome.ClientGone, time.Now())
		two = f.trials(t, a, 2) // both are there again
		require.True(t, f.spent(a))
		pass(time.Second)
		ends(two[0], outcome.Success)
		ends(two[1], outcome.Success)
		require.Equal(t, []string{"a trial>up 0s"}, f.told())
	})
}

func TestTrialsOfAnEarlierHalfOpenDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 2, withBreaker)
		a := f.backends[0]
		f.fails(a, 3)
		pass(10 * time.Second)
		first := f.trials(t, a, 2)
		ends(first[0], outcome.Failure)
		pass(20 * time.Second)
		f.told()
		second := f.trials(t, a, 2)
		ends(second[0], outcome.Success)
		ends(first[1], outcome.Success)
		require.Empty(t, f.told(), "it began before the breaker opened again")
		ends(second[1], outcome.Success)
		require.Equal(t, []string{"a trial>up 0s"}, f.told())

		f.fails(a, 3)
		pass(40 * time.Second)
		third := f.trials(t, a, 2)
		ends(third[0], outcome.Failure)
		pass(time.Minute)
		f.told()
		ends(third[1], outcome.Failure)
		require.Empty(t, f.told(), "neither does a bad one")
	})
}

// Trials are given out anew when the old ones bring nothing for a while. Those
// are still trials of the same half-open breaker: a backend that takes longer
// than that would never be found well again otherwise, nor one that hangs be
// found out.
func TestTrialsThatTakeLong(t *testing.T) {
	for _, test := range []struct {
		name  string
		class outcome.Class
		want  string
	}{
		{"and are well", outcome.Success, "a trial>up 0s"},
		{"and are bad", outcome.Timeout, "a trial>broken 20s"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, 2, withBreaker)
				a := f.backends[0]
				f.fails(a, 3)
				pass(10 * time.Second)
				first := f.trials(t, a, 2)
				pass(trialPatience - 1)
				require.True(t, f.spent(a))
				pass(1)
				second := f.trials(t, a, 2)
				require.True(t, f.spent(a))
				f.told()
				ends(first[0], test.class)
				ends(first[1], test.class)
				require.Equal(t, []string{test.want}, f.told())
				ends(second[0], outcome.ClientGone)
				ends(second[1], outcome.ClientGone)
			})
		})
	}
}

func TestNewTrialsAreAsManyAsAreMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 2, withBreaker)
		a := f.backends[0]
		f.fails(a, 3)
		pass(10 * time.Second)
		two := f.trials(t, a, 2)
		ends(two[0], outcome.Success)
		pass(trialPatience)
		last := f.trials(t, a, 1)
		require.True(t, f.spent(a), "one has passed already")
		f.told()
		ends(last[0], outcome.Success)
		require.Equal(t, []string{"a trial>up 0s"}, f.told())
		ends(two[1], outcome.Failure)
		require.Empty(t, f.told(), "late, and one failure as any other")
		require.Equal(t, 1, a.Recent.Figures(time.Now()).Failed)
	})
}

// A backend hung, its breaker opened, and it came back. What hung there is over
// only now, and is no news.
func TestWhatBeganBeforeABreakerOpenedDoesNotOpenItAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 2, withBreaker)
		a := f.backends[0]
		var hung []Lease
		for range 20 {
			hung = append(hung, f.acquire(a))
		}
		f.fails(a, 3)
		pass(10 * time.Second)
		for range 2 {
			f.attempt(a, outcome.Success)
		}
		require.Equal(t, []string{"a up>broken 10s", "a broken>trial 0s", "a trial>up 0s"}, f.told())
		before := a.Recent.Figures(time.Now())
		for _, l := range hung[:10] {
			ends(l, outcome.Timeout)
		}
		for _, l := range hung[10:] {
			l.Answered(outcome.Success, time.Now(), time.Minute)
			l.End(outcome.Cut, time.Now())
		}
		require.Empty(t, f.told())
		require.Equal(t, before, a.Recent.Figures(time.Now()))
		require.Zero(t, a.InFlight())

		f.fails(a, 3)
		require.Equal(t, []string{"a up>broken 20s"}, f.told(), "what began since counts")
	})
}

func TestMaxOpenShare(t *testing.T) {
	for _, test := range []struct {
		members int
		share   float64
		open    int // how many may be open when all fail
	}{
		{1, 1, 0}, {2, 0.5, 1}, {2, 0.49, 0}, {2, 1, 1}, {3, 0.5, 1}, {4, 0.5, 2}, {5, 1, 4}, {10, 0.3, 3}, {10, 0.7, 7}, {100, 0.29, 29}, {3, 0, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, test.members, withBreaker, func(o *Options) { o.MaxOpenShare = test.share })
			for range 2 {
				for _, b := range f.backends {
					f.fails(b, 4)
				}
			}
			require.Len(t, f.Members().Eligible, test.members-test.open, "%+v", test)

			// A half-open one still counts: it may be back, and may not.
			pass(10 * time.Second)
			for _, b := range f.Members().Eligible {
				f.fails(b, 4)
			}
			require.Len(t, f.Members().Eligible, test.members-test.open, "%+v", test)
		})
	}
}

func TestTheLastThatServesIsSpared(t *testing.T) {
	f := newFixture(t, 3, withBreaker, func(o *Options) { o.MaxOpenShare = 1 })
	f.SetAdmin(f.backends[0], backend.Maintenance, "an operator works on it")
	f.failed(f.backends[1])
	f.told()
	f.fails(f.backends[2], 20)
	require.Empty(t, f.told())
	f.answered(f.backends[1])
	f.fails(f.backends[2], 1)
	require.Equal(t, []string{"b ejected>up 0s", "c up>broken 10s"}, f.told(), "until another one serves")
}

func TestEjectionAndBreakerTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 2, withBreaker)
		a := f.backends[0]
		f.fails(a, 3)
		f.failed(a)
		require.Equal(t, []string{"a up>broken 10s"}, f.told(), "it is out already")
		require.Equal(t, []string{"breaker open: 3 failures in a row; tried again in 10s"}, f.Status(a).Reasons,
			"and out because of the breaker")
		f.Accepts(a)
		a.DialSucceeded()
		f.attempt(a, outcome.Success)
		require.Empty(t, f.told())
		require.Equal(t, []string{"breaker open: 3 failures in a row; tried again in 10s"}, f.Status(a).Reasons)

		pass(9500 * time.Millisecond)
		f.failed(a)
		pass(500 * time.Millisecond)
		require.Equal(t, []string{"a broken>ejected 500ms"}, f.told())
		require.Equal(t, []string{"connect ejection: a dial failed; tried again in 500ms"}, f.Status(a).Reasons)
		pass(500 * time.Millisecond)
		require.Equal(t, []string{"a ejected>trial 0s"}, f.told())
		require.Equal(t, []string{"connect ejection is over: one request may try"}, f.Status(a).Reasons)

		one := f.trials(t, a, 1)
		require.True(t, f.spent(a), "who cannot be reached is tried with one request")
		ends(one[0], outcome.Success)
		require.Equal(t, "half-open", f.Status(a).Breaker)
		require.Equal(t, []string{"breaker half-open: closes after 2 good requests"}, f.Status(a).Reasons,
			"over an old connection, but it works: what is left is the breaker")

		ends(f.trials(t, a, 1)[0], outcome.Success)
		require.Equal(t, []string{"a trial>up 0s"}, f.told(), "both got an answer, so the breaker is content, too")
	})
}

func TestAFailedDialDuringATrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 2, withBreaker)
		a := f.backends[0]
		f.fails(a, 3)
		pass(10 * time.Second)
		two := f.trials(t, a, 2)
		f.told()
		a.DialFailed()
		ends(two[0], outcome.Unsent)
		require.Equal(t, []string{"a trial>ejected 1s"}, f.told())
		ends(two[1], outcome.ClientGone)
		pass(time.Second)
		f.trials(t, a, 1)[0].End(outcome.ClientGone, time.Now())
		a.DialSucceeded()
		f.attempt(a, outcome.Success)
		require.Equal(t, "half-open", f.Status(a).Breaker)
		require.Equal(t, []string{"breaker half-open: closes after 2 good requests"}, f.Status(a).Reasons)
		ends(f.trials(t, a, 1)[0], outcome.Success)
		require.Equal(t, []string{"a ejected>trial 0s", "a trial>up 0s"}, f.told())
	})
}

func TestOthersAlternateAroundAHalfOpenBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 3, withBreaker)
		f.fails(f.backends[1], 3)
		pass(10 * time.Second)
		var leases []Lease
		var order string
		for range 11 {
			l, ok := f.TryAcquire(new(balance.Query))
			require.True(t, ok)
			order += l.Backend.ID
			leases = append(leases, l)
		}
		require.Equal(t, "abcabcacaca", order, "two trials at its turns, then an even share")
		for _, l := range leases {
			ends(l, outcome.Success)
		}
		require.Equal(t, "abc", ids(f.Members().Eligible))
	})
}
