package probe

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/health"
)

// fake is a check whose backend does as told.
type fake struct {
	began  list[time.Time]
	answer func(ctx context.Context) error // nil is well at once
}

// list grows in one goroutine and is read in another.
type list[T any] struct {
	mu sync.Mutex
	of []T
}

func (l *list[T]) add(item T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.of = append(l.of, item)
}

func (l *list[T]) all() []T {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clip(l.of)
}

// starts returns when the probes began.
func (f *fake) starts() []time.Time { return f.began.all() }

func (f *fake) Probe(ctx context.Context, _ string) error {
	f.began.add(time.Now())
	if f.answer == nil {
		return nil
	}
	return f.answer(ctx)
}

func hangs(ctx context.Context) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

var schedule = Schedule{Interval: 2 * time.Second, Timeout: time.Second, Rise: 2, Fall: 3}

// run runs a loop until the end of the test's bubble, and returns it and what
// it has reported so far.
func run(t *testing.T, o Options) (l *Loop, results func() []Result) {
	t.Helper()
	var reported list[Result]
	o.Report = reported.add
	l = New(o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return l, reported.all
}

// pass lets time pass until all loops wait again.
func pass(d time.Duration) {
	time.Sleep(d) // the bubble's clock: it takes no time
	synctest.Wait()
}

// The first probe is at once, the second at a random time within an interval,
// and each further one follows after 90 to 100 % of an interval.
func TestPhaseAndJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// No more loops: the race detector gives up on bubbles with very many
		// timers (https://go.dev/issue/78156).
		const loops, buckets = 300, 10
		var checks [loops]*fake
		for i := range checks {
			checks[i] = &fake{}
			run(t, Options{Check: checks[i], Schedule: schedule})
		}
		began := time.Now()
		pass(14 * time.Second)
		var phases, jitters [buckets]int
		for _, c := range checks {
			starts := c.starts()
			require.Equal(t, began, starts[0])
			phase := starts[1].Sub(began)
			require.LessOrEqual(t, phase, 2*time.Second)
			phases[min(buckets-1, phase*buckets/(2*time.Second))]++
			for i := 2; i < len(starts); i++ {
				gap := starts[i].Sub(starts[i-1])
				require.GreaterOrEqual(t, gap, 1800*time.Millisecond)
				require.LessOrEqual(t, gap, 2*time.Second)
				jitters[min(buckets-1, (gap-1800*time.Millisecond)*buckets/(200*time.Millisecond))]++
			}
			require.GreaterOrEqual(t, len(starts), 8)
		}
		for i := range buckets {
			require.InDelta(t, loops/buckets, phases[i], 28, "phases %v", phases) // over five standard deviations
			require.InDelta(t, loops*6.3/buckets, jitters[i], 90, "jitters %v", jitters)
		}
	})
}

// A probe that takes part of the interval shifts nothing; one that takes longer
// is followed at once.
func TestStartToStart(t *testing.T) {
	for took, least := range map[time.Duration]time.Duration{900 * time.Millisecond: 1800 * time.Millisecond, 5 * time.Second: 5 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			c := &fake{answer: func(context.Context) error {
				time.Sleep(took)
				return nil
			}}
			o := Options{Check: c, Schedule: schedule}
			o.Schedule.Timeout = 10 * time.Second
			_, results := run(t, o)
			pass(time.Minute)
			starts := c.starts()
			for i := 2; i < len(starts); i++ {
				gap := starts[i].Sub(starts[i-1])
				require.GreaterOrEqual(t, gap, least)
				require.LessOrEqual(t, gap, max(least, 2*time.Second))
			}
			require.NotEmpty(t, results())
			for i, r := range results() {
				require.Equal(t, took, r.Took)
				require.Equal(t, starts[i].Add(took), r.At)
			}
		})
	}
}

// A backend that hangs from some moment on is down within fall × interval +
// timeout.
func TestAHungBackendIsDownInTime(t *testing.T) {
	const bound = 3*2*time.Second + time.Second
	for range 100 {
		synctest.Test(t, func(t *testing.T) {
			var hung atomic.Bool
			c := &fake{answer: func(ctx context.Context) error {
				if hung.Load() {
					return hangs(ctx)
				}
				return nil
			}}
			l, results := run(t, Options{Check: c, Schedule: schedule})
			pass(7 * time.Second)
			require.Equal(t, health.Up, l.State().Verdict)
			hung.Store(true)
			since := time.Now()
			pass(bound)
			require.Equal(t, health.Down, l.State().Verdict)
			changes := 0
			for _, r := range results() {
				if r.Changed && r.Verdict == health.Down {
					require.LessOrEqual(t, r.At.Sub(since), bound)
					require.EqualError(t, r.Err, "no answer within 1s")
					require.Equal(t, time.Second, r.Took)
					changes++
				}
			}
			require.Equal(t, 1, changes)
		})
	}
}

func TestResultsAndState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ill := errors.New("status 503, wants 200-399")
		answers := []error{nil, ill, nil, ill, ill, ill, ill, ErrStarved, nil, ErrStarved, nil, nil, nil}
		next := 0
		c := &fake{answer: func(context.Context) error {
			err := answers[next]
			next++
			return err
		}}
		l, results := run(t, Options{Check: c, Schedule: schedule})
		const ill1, starved1 = "status 503, wants 200-399", "lb could not probe"
		for i, want := range []struct {
			verdict  health.Verdict
			changed  bool
			ok, fail int
			why      string
		}{
			{health.Up, true, 1, 0, ""},
			{health.Up, false, 0, 1, ill1},
			{health.Up, false, 1, 0, ""},
			{health.Up, false, 0, 1, ill1},
			{health.Up, false, 0, 2, ill1},
			{health.Down, true, 0, 3, ill1},
			{health.Down, false, 0, 4, ill1},
			{health.Down, false, 0, 4, starved1}, // counts for nothing
			{health.Down, false, 1, 0, starved1}, // why it is not up yet
			{health.Down, false, 1, 0, starved1},
			{health.Up, true, 2, 0, ""},
			{health.Up, false, 3, 0, ""},
		} {
			synctest.Wait()
			require.Len(t, results(), i+1)
			got := results()[i]
			require.Equal(t, Result{OK: answers[i] == nil, Err: answers[i], At: got.At, Verdict: want.verdict, Changed: want.changed}, got, "probe %d", i)
			require.Equal(t, State{
				Verdict: want.verdict, ConsecutiveOK: want.ok, ConsecutiveFail: want.fail, LastProbe: got.At, LastError: want.why,
			}, l.State(), "probe %d", i)
			l.Wake() // no time passes, so it alone says when the next probe is
		}
	})
}

func TestInitialVerdict(t *testing.T) {
	for initial, want := range map[health.Initial]health.Verdict{
		health.InitialProbe: health.Unknown, health.InitialUp: health.Up, health.InitialDown: health.Down,
	} {
		require.Equal(t, State{Verdict: want}, New(Options{Schedule: Schedule{Initial: initial}}).State())
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, results := run(t, Options{Check: &fake{answer: hangs}, Schedule: schedule})
		pass(999 * time.Millisecond)
		require.False(t, closed(l.First()), "the first probe runs")
		pass(time.Millisecond)
		require.True(t, closed(l.First()), "it has ended")
		require.Len(t, results(), 1, "and been reported")
		pass(time.Minute)

		l, results = run(t, Options{Check: &fake{}, Schedule: schedule, Paused: func() bool { return true }})
		synctest.Wait()
		require.True(t, closed(l.First()), "there is to be none while paused")
		require.Empty(t, results())

		l = New(Options{Check: &fake{answer: hangs}, Schedule: schedule, Report: func(Result) { panic("a probe that was cut off says nothing") }})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			l.Run(ctx)
			close(ended)
		}()
		synctest.Wait()
		require.False(t, closed(l.First()))
		cancel()
		synctest.Wait()
		require.True(t, closed(ended))
		require.True(t, closed(l.First()), "nor once Run has ended")
		require.Equal(t, State{}, l.State())

		for range 50 {
			l = New(Options{Check: &fake{}, Schedule: schedule})
			l.Run(ctx) // has ended already
			require.True(t, closed(l.First()))
		}
	})
}

func TestWake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fake{}
		o := Options{Check: c, Schedule: schedule}
		o.Schedule.Interval = time.Hour
		l, results := run(t, o)
		pass(2 * time.Hour)
		n := len(c.starts())
		l.Wake()
		synctest.Wait()
		require.Len(t, c.starts(), n+1)
		require.Equal(t, time.Now(), c.starts()[n], "now")
		l.Wake()
		l.Wake()
		l.Wake()
		synctest.Wait()
		require.LessOrEqual(t, len(c.starts()), n+3)
		n = len(c.starts())
		pass(54*time.Minute - time.Nanosecond)
		require.Len(t, c.starts(), n, "the next one is counted from there")
		pass(6*time.Minute + time.Nanosecond)
		require.Len(t, c.starts(), n+1)
		require.Len(t, results(), n+1)
	})
}

func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ill := errors.New("ill")
		var paused, broken atomic.Bool
		broken.Store(true)
		c := &fake{answer: func(context.Context) error {
			if broken.Load() {
				return ill
			}
			return nil
		}}
		l, results := run(t, Options{Check: c, Schedule: schedule, Paused: paused.Load})
		pass(10 * time.Second)
		require.Equal(t, health.Down, l.State().Verdict)

		paused.Store(true)
		pass(2 * time.Second)
		n, last := len(c.starts()), l.State().LastProbe
		pass(time.Hour)
		require.Len(t, c.starts(), n, "maintenance: no probes")
		l.Wake()
		synctest.Wait()
		require.Len(t, c.starts(), n, "not even when woken")
		require.Equal(t, State{LastProbe: last}, l.State(), "all else is forgotten")

		broken.Store(false)
		paused.Store(false)
		l.Wake()
		synctest.Wait()
		require.Len(t, c.starts(), n+1)
		require.Equal(t, time.Now(), c.starts()[n], "woken, it probes now")
		r := results()[n]
		require.Equal(t, health.Up, r.Verdict, "one probe decides")
		require.True(t, r.Changed, "the last report was down")

		paused.Store(true)
		pass(4 * time.Second)
		n = len(c.starts())
		paused.Store(false)
		pass(2 * time.Second)
		require.Greater(t, len(c.starts()), n, "nobody needs to wake it")
		require.Equal(t, health.Up, results()[n].Verdict)
		require.False(t, results()[n].Changed, "the last report was up: unknown in between is no news")
	})
}

// Maintenance may begin and end while one probe hangs: the loop sees nothing of
// it, and what the backend was before must not count all the same.
func TestForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		c := &fake{answer: func(ctx context.Context) error {
			if broken.Load() {
				return hangs(ctx)
			}
			return nil
		}}
		l, results := run(t, Options{Check: c, Schedule: schedule})
		pass(10 * time.Second)
		require.Equal(t, health.Up, l.State().Verdict)

		broken.Store(true)
		l.Wake()
		synctest.Wait()
		n := len(results())
		pass(schedule.Timeout / 2)
		l.Forget()
		pass(schedule.Timeout / 2)
		require.Len(t, results(), n, "what was under way is not reported")
		pass(schedule.Timeout)
		require.Len(t, results(), n+1, "the next one follows at once")
		require.Equal(t, health.Down, results()[n].Verdict, "and decides")

		broken.Store(false)
		l.Wake()
		synctest.Wait()
		require.Equal(t, health.Down, l.State().Verdict, "only the next one: from then on it takes two to come back")
	})
}

// A pool that comes back from maintenance as one spreads again.
func TestPhaseAfterAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const loops = 50
		var paused atomic.Bool
		paused.Store(true)
		var checks [loops]*fake
		var woken [loops]*Loop
		for i := range checks {
			checks[i] = &fake{}
			woken[i], _ = run(t, Options{Check: checks[i], Schedule: schedule, Paused: paused.Load})
		}
		probed := func() (n int) {
			for _, c := range checks {
				n += len(c.starts())
			}
			return n
		}
		for range 2 {
			pass(time.Minute)
			before := probed()
			paused.Store(false)
			for _, l := range woken {
				l.Wake()
			}
			synctest.Wait()
			require.Equal(t, before+loops, probed())
			pass(time.Second)
			require.InDelta(t, before+loops*3/2, probed(), 20, "half of them within half an interval")
			paused.Store(true)
		}
	})
}

// With initial up, a pause brings a backend that was down back up: the next
// report says that this is a change.
func TestChangedIsAgainstTheLastReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var paused atomic.Bool
		c := &fake{answer: func(context.Context) error { return errors.New("ill") }}
		o := Options{Check: c, Schedule: schedule, Paused: paused.Load}
		o.Schedule.Initial = health.InitialUp
		l, results := run(t, o)
		pass(10 * time.Second)
		require.Equal(t, health.Down, l.State().Verdict)
		paused.Store(true)
		pass(2 * time.Second)
		n := len(results())
		c.answer = nil
		paused.Store(false)
		l.Wake()
		synctest.Wait()
		require.Equal(t, health.Up, results()[n].Verdict)
		require.True(t, results()[n].Changed)
	})
}

// One backend that hangs delays no other.
func TestAHungProbeDelaysNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		run(t, Options{Check: &fake{answer: hangs}, Schedule: Schedule{Interval: time.Second, Timeout: time.Hour}})
		c := &fake{}
		run(t, Options{Check: c, Schedule: schedule})
		pass(time.Minute)
		require.GreaterOrEqual(t, len(c.starts()), 30)
	})
}
