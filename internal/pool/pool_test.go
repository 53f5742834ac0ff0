package pool

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"lb/internal/backend"
	"lb/internal/balance"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixture is a pool of n backends named a, b, c that writes down its changes.
type fixture struct {
	*Pool
	backends []*backend.Backend

	mu      sync.Mutex
	changes []string
}

func newFixture(t testing.TB, n int) *fixture {
	t.Helper()
	factory, err := balance.For("roundrobin")
	require.NoError(t, err)
	f := &fixture{}
	for i := range n {
		f.backends = append(f.backends, &backend.Backend{Pool: "p", ID: fmt.Sprintf("%c", 'a'+i), Weight: 1})
	}
	f.Pool = New("p", factory, NewBudget(0, 0), f.backends, func(c Change) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.changes = append(f.changes, fmt.Sprintf("%s %s>%s %v", c.Backend.ID, c.From.Word(), c.To.Word(), c.For))
	})
	t.Cleanup(f.Close)
	return f
}

// told returns the changes since the last call.
func (f *fixture) told() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	changes := f.changes
	f.changes = nil
	return changes
}

// failed is what a carrier does when a dial fails.
func (f *fixture) failed(b *backend.Backend) {
	b.DialFailed()
	f.DialFailed(b)
}

// answered is what a carrier does when a new connection brings an answer.
func (f *fixture) answered(b *backend.Backend) {
	b.DialSucceeded()
	f.Reached(b)
}

func ids(backends []*backend.Backend) (s string) {
	for _, b := range backends {
		s += b.ID
	}
	return s
}

// serving returns who gets the next requests, as often as there are backends.
func (f *fixture) serving() (s string) {
	for range f.backends {
		b := f.TryAcquire(new(balance.Query))
		if b == nil {
			return s + "-"
		}
		s += b.ID
		b.End()
	}
	return s
}

func TestEjectionAndReadmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 3)
		a := f.backends[0]
		require.Equal(t, "abc", f.serving())
		require.Zero(t, f.RetryAfter())

		for _, out := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
			out *= time.Second
			f.failed(a)
			require.Equal(t, []string{fmt.Sprintf("a up>ejected %v", out)}, f.told())
			require.Equal(t, "bc", ids(f.Members().Eligible))
			require.Equal(t, "abc", ids(f.Members().All))
			require.NotContains(t, f.serving(), "a")
			require.Equal(t, out, f.RetryAfter())

			time.Sleep(out - time.Nanosecond)
			synctest.Wait()
			require.NotContains(t, f.serving(), "a", "a nanosecond before %v are over", out)
			require.Empty(t, f.told())
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			require.Contains(t, f.serving(), "a", "after %v", out)
			require.Equal(t, []string{"a ejected>up 0s"}, f.told())
			require.Zero(t, f.RetryAfter())
		}

		f.answered(a)
		require.Empty(t, f.told(), "it serves already")
		f.failed(a)
		require.Equal(t, []string{"a up>ejected 1s"}, f.told(), "after an answer the next failure is the first again")
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
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, []string{"a ejected>up 0s"}, f.told())
		f.failed(f.backends[0])
		require.Equal(t, []string{"a up>ejected 2s"}, f.told())
	})
}

func TestReachedEndsTheEjectionAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 2)
		a := f.backends[0]
		f.failed(a)
		f.answered(a)
		require.Equal(t, []string{"a up>ejected 1s", "a ejected>up 0s"}, f.told())
		require.Equal(t, "ab", ids(f.Members().Eligible))

		// The timer of the ejection that ended early must not end the next.
		time.Sleep(500 * time.Millisecond)
		f.failed(a)
		require.Equal(t, []string{"a up>ejected 1s"}, f.told())
		time.Sleep(time.Second - time.Nanosecond)
		synctest.Wait()
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
		f.Reached(a) // no dial has succeeded since
		require.Equal(t, "b", ids(f.Members().Eligible))
		require.Empty(t, f.told())
		f.Reached(f.backends[1]) // and somebody else's answer says nothing about a
		require.Equal(t, "b", ids(f.Members().Eligible))

		time.Sleep(time.Second)
		synctest.Wait()
		f.Reached(a)
		f.failed(a)
		require.Equal(t, []string{"a ejected>up 0s", "a up>ejected 2s"}, f.told(), "the failures in a row were not forgotten")
	})
}

func TestLastResort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 3)
		f.failed(f.backends[0])
		f.failed(f.backends[1])
		require.Equal(t, "ccc", f.serving())
		time.Sleep(300 * time.Millisecond)
		f.failed(f.backends[2])
		require.Empty(t, f.Members().Eligible, "nobody is eligible")
		got := f.serving()
		require.ElementsMatch(t, []rune("abc"), []rune(got), "so everybody merely ejected serves, in rotation: %s", got)
		require.Equal(t, 700*time.Millisecond, f.RetryAfter(), "the first to come back")

		f.answered(f.backends[1])
		require.Equal(t, "bbb", f.serving(), "one that is well takes all")
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
				require.Equal(t, []string{"a ejected>up 0s", "a up>ejected 2s"}, told)
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
			require.Equal(t, []string{"a ejected>up 0s"}, f.told())
			f.Close()
		}
	})
}

func TestChangesAreToldInOrderAndWithoutALock(t *testing.T) {
	f := newFixture(t, 1)
	first, goOn := make(chan struct{}), make(chan struct{})
	tell := f.onChange
	f.onChange = func(c Change) {
		if c.To.Gate == backend.GateEjected {
			close(first)
			<-goOn
		}
		_ = f.RetryAfter() // needs the lock
		tell(c)
	}
	var slow sync.WaitGroup
	slow.Go(func() { f.failed(f.backends[0]) })
	<-first
	f.answered(f.backends[0]) // does not wait for whoever writes the log
	require.Equal(t, "a", ids(f.Members().Eligible))
	close(goOn)
	slow.Wait()
	require.Equal(t, []string{"a up>ejected 1s", "a ejected>up 0s"}, f.told())
}

func TestCloseLeavesNoTimerAndServesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 2)
		f.failed(f.backends[0])
		f.told()
		f.Close()
		f.failed(f.backends[1])
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Empty(t, f.told(), "nothing changes any more")
		require.Equal(t, "bb", f.serving())
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
				if b := f.TryAcquire(new(balance.Query)); b != nil {
					b.End()
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
	require.Zero(t, f.suspects.Load())
	ejected := make(map[byte]int)
	for _, c := range f.told() {
		if c[2:] == "up>ejected 1s" {
			ejected[c[0]]++
		} else {
			require.Equal(t, "ejected>up 0s", c[2:])
			ejected[c[0]]--
		}
	}
	for id, n := range ejected {
		require.Zero(t, n, "%c went out as often as it came back", id)
	}
}

func TestAnEmptyPool(t *testing.T) {
	f := newFixture(t, 0)
	require.Nil(t, f.TryAcquire(new(balance.Query)))
	require.Zero(t, f.RetryAfter())
}

func TestTheHotPathDoesNotAllocate(t *testing.T) {
	f := newFixture(t, 3)
	var q balance.Query
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		q.Reset()
		b := f.TryAcquire(&q)
		f.Budget.Deposit()
		f.Reached(b)
		b.End()
	}))
}

func BenchmarkTryAcquire(b *testing.B) {
	f := newFixture(b, 3)
	var q balance.Query
	b.ReportAllocs()
	for b.Loop() {
		q.Reset()
		f.TryAcquire(&q).End()
	}
}
