package pool

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/outcome"
)

func TestEjectionAndReadmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 3)
		a := f.backends[0]
		require.Equal(t, "abcabc", f.serving())
		require.Zero(t, f.RetryAfter())

		from := "up"
		for _, out := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
			out *= time.Second
			f.failed(a)
			require.Equal(t, []string{fmt.Sprintf("a %s>ejected %v", from, out)}, f.told())
			require.Equal(t, "bc", ids(f.Members().Eligible))
			require.Equal(t, "abc", ids(f.Members().All))
			require.NotContains(t, f.serving(), "a")
			require.Equal(t, out, f.RetryAfter())

			pass(out - time.Nanosecond)
			require.NotContains(t, f.serving(), "a", "a nanosecond before %v are over", out)
			require.Empty(t, f.told())
			pass(time.Nanosecond)
			require.Equal(t, []string{"a ejected>trial 0s"}, f.told())
			require.Equal(t, "ejected", a.State().Word())
			require.Equal(t, "bc", ids(f.Members().Eligible), "one request may try, and no policy counts on it")
			require.Contains(t, f.serving(), "a", "after %v", out)
			require.Zero(t, f.RetryAfter())
			from = "trial"
		}

		f.answered(a)
		require.Equal(t, []string{"a trial>up 0s"}, f.told())
		require.Equal(t, "abc", ids(f.Members().Eligible))
		f.failed(a)
		require.Equal(t, []string{"a up>ejected 1s"}, f.told(), "after an answer the next failure is the first again")
	})
}

func TestTheTrialAfterAnEjectionIsOneRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 3)
		a := f.backends[0]
		f.failed(a)
		pass(time.Second)
		l := f.lease(t)
		for l.Backend != a {
			l.End(outcome.Success, time.Now())
			l = f.lease(t)
		}
		require.NotContains(t, f.serving(), "a", "it is under way")
		l.Answered(outcome.Starved, time.Now(), 0)
		l.End(outcome.Starved, time.Now())
		require.Contains(t, f.serving(), "a", "lb itself was the reason, so another one may try")

		l = f.lease(t)
		for l.Backend != a {
			l.End(outcome.Success, time.Now())
			l = f.lease(t)
		}
		pass(trialPatience - time.Second)
		require.NotContains(t, f.serving(), "a")
		pass(time.Second)
		require.Contains(t, f.serving(), "a", "a trial that hangs does not keep the others away for ever")
		a.DialSucceeded()
		ends(l, outcome.Success)
		require.Equal(t, "abc", ids(f.Members().Eligible), "it got through after all")
	})
}

func TestABurstOfFailuresCountsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 2)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { f.failed(f.backends[0]) })
		}
		wg.Wait()
		require.Equal(t, []string{"a up>ejected 1s"}, f.told())
		pass(time.Second)
		require.Equal(t, []string{"a ejected>trial 0s"}, f.told())
		f.failed(f.backends[0])
		require.Equal(t, []string{"a trial>ejected 2s"}, f.told())
	})
}

func TestAnAnswerEndsTheEjectionAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 2)
		a := f.backends[0]
		for _, c := range []outcome.Class{outcome.Success, outcome.Failure, outcome.Reset, outcome.Invalid, outcome.Timeout} {
			f.failed(a)
			a.DialSucceeded()
			f.attempt(a, c)
			require.Equal(t, []string{"a up>ejected 1s", "a ejected>up 0s"}, f.told(), c)
			require.False(t, f.watches[a].timer.Stop(), "there is nothing left to wait for")
			require.Equal(t, "ab", ids(f.Members().Eligible))
		}

		// The timer of the ejection that ended early must not end the next.
		pass(500 * time.Millisecond)
		f.failed(a)
		require.Equal(t, []string{"a up>ejected 1s"}, f.told())
		pass(time.Second - time.Nanosecond)
		require.Equal(t, "b", ids(f.Members().Eligible))
		require.Empty(t, f.told())
	})
}

func TestAnAnswerOverAnOldConnectionProvesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 2)
		a := f.backends[0]
		f.failed(a)
		f.told()
		f.attempt(a, outcome.Success) // no dial has succeeded since
		require.Equal(t, "b", ids(f.Members().Eligible))
		require.Empty(t, f.told())
		f.attempt(f.backends[1], outcome.Success) // and somebody else's answer says nothing about a
		require.Equal(t, "b", ids(f.Members().Eligible))

		pass(time.Second)
		f.attempt(a, outcome.Success)
		require.Equal(t, []string{"a ejected>trial 0s", "a trial>up 0s"}, f.told(),
			"once the time out is over an answer is enough: with connections that are kept nobody may dial for long")
		f.failed(a)
		require.Equal(t, []string{"a up>ejected 2s"}, f.told(), "the failures in a row were not forgotten")
	})
}

func TestTheFirstToComeBackCallsTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 4)
		for range 3 { // so that the times out are long
			for _, b := range f.backends[:3] {
				f.failed(b)
			}
			pass(4 * time.Second)
		}
		f.failed(f.backends[0])
		f.failed(f.backends[1])
		f.SetHealth(f.backends[2], backend.HealthDown, "its checks fail")
		f.failed(f.backends[3])
		f.told()
		f.answered(f.backends[3])
		require.Equal(t, []string{"d ejected>up 0s", "a ejected>trial 0s", "b ejected>trial 0s"}, f.told(),
			"after a total outage one must not carry everything")
		require.Equal(t, backend.GateTrial, f.backends[2].State().Gate, "down or not")

		f.failed(f.backends[0])
		require.Equal(t, []string{"a trial>ejected 1s"}, f.told(), "not for as long as in the outage: it may be the next to come back")
		f.answered(f.backends[1])
		require.Equal(t, []string{"b trial>up 0s"}, f.told(), "who comes back second calls nobody")
	})
}

func TestAProbeThatGotThroughShortensAnEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 2)
		a := f.backends[0]
		f.Accepts(a)
		require.Empty(t, f.told())
		f.failed(a)
		f.Accepts(f.backends[1])
		require.Equal(t, []string{"a up>ejected 1s"}, f.told())
		f.Accepts(a)
		f.Accepts(a)
		require.Equal(t, []string{"a ejected>trial 0s"}, f.told())
		require.Equal(t, "b", ids(f.Members().Eligible))
		pass(time.Second)
		require.Empty(t, f.told(), "the timer that would have ended it is off")
		f.failed(a)
		require.Equal(t, []string{"a trial>ejected 1s"}, f.told())
	})
}

func TestAFailureAtTheVeryEndOfAnEjectionIsOneChange(t *testing.T) {
	// A request that was sent as a last resort fails in the instant in which
	// the ejection is over: whichever comes first, no change is told twice and
	// the backend stays out for the new time.
	synctest.Test(t, func(t *testing.T) {
		for range 200 {
			f := newFixture(t, 1)
			a := f.backends[0]
			f.failed(a)
			f.told()
			done := make(chan struct{})
			time.AfterFunc(time.Second, func() { f.failed(a); close(done) })
			<-done
			synctest.Wait()
			require.Equal(t, backend.GateEjected, a.State().Gate)
			require.Equal(t, 2*time.Second, f.RetryAfter())
			switch told := f.told(); len(told) {
			case 0: // the failure came first
			default:
				require.Equal(t, []string{"a ejected>trial 0s", "a trial>ejected 2s"}, told)
			}
			pass(2 * time.Second)
			require.Equal(t, []string{"a ejected>trial 0s"}, f.told())
			f.Close()
		}
	})
}
