package fanout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/outcome"
)

const ms = time.Millisecond

func seconds(s ...float64) []time.Duration {
	var ds []time.Duration
	for _, x := range s {
		ds = append(ds, time.Duration(x*float64(time.Second)))
	}
	return ds
}

func TestEveryBackendGetsTheSameWrite(t *testing.T) {
	bubble(t, []string{"a", "b", "c"}, func(l *lab) {
		a := l.mustPost("/register?x=1")
		require.Equal(t, Answer{ID: a.ID, Status: 201, Body: []byte{}, Acked: 3, Total: 3, Backend: "a"}, a)
		require.Len(t, a.ID, 34)
		want := Request{
			Method: "POST", Target: "/register?x=1", Host: "example.org", Body: []byte("username=ada"),
			Fields: []Field{{"X-Request-Id", "r1"}}, Key: a.ID, FanoutID: a.ID,
		}
		for name, b := range l.b {
			require.Equal(t, []Request{want}, l.calls(name))
			require.Zero(t, b.InFlight())
		}
		require.Equal(t, "done a=done b=done c=done", l.states(a.ID))
		require.Equal(t, []Count{{Pool: "users"}}, l.engine.Counts())
	})
}

func TestTheClientsKeyGoesOut(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		a, err := l.engine.Submit(context.Background(), l.plan, Write{Method: "POST", Target: "/x", Key: "mine"})
		require.NoError(t, err)
		require.Equal(t, "mine", l.calls("a")[0].Key)
		require.Equal(t, a.ID, l.calls("a")[0].FanoutID)
	})
}

func TestIDsDiffer(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		require.NotEqual(t, l.mustPost("/x").ID, l.mustPost("/x").ID)
	})
}

func TestRetriesFollowTheFormulaUnderTheSameKey(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(l *lab) {
		l.fake.set("b", says(500), resets(), says(200), says(429), ok())
		a := l.mustPost("/x")
		require.Equal(t, 15*time.Second, l.passed())
		require.Equal(t, 201, a.Status)
		require.Equal(t, seconds(0, 1, 3, 7, 15), l.times("b"))
		require.Len(t, l.calls("a"), 1)
		for _, r := range l.calls("b") {
			require.Equal(t, l.calls("a")[0], r)
		}
	})
}

func TestJitterIsAddedToEachWait(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		l.fake.set("a", says(500), says(500), ok())
		l.mustPost("/x")
		require.Equal(t, []time.Duration{0, 1100 * ms, 3200 * ms}, l.times("a"))
	}, func(o *Options) { o.Jitter = whole })
}

func TestRetryAfterIsHonouredUpToTheCap(t *testing.T) {
	asks := func(d time.Duration) step { return step{status: 503, retryAfter: d} }
	bubble(t, []string{"a"}, func(l *lab) {
		l.plan.Wait = time.Hour
		// less than the formula, more than it, more than the cap
		l.fake.set("a", asks(500*ms), asks(10*time.Second), asks(time.Hour), ok())
		l.mustPost("/x")
		require.Equal(t, seconds(0, 1, 11, 75), l.times("a"))
	})
}

func TestAnAttemptHasItsTime(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		l.fake.set("a", hangs(), says(409))
		a := l.mustPost("/x")
		require.Equal(t, seconds(0, 11), l.times("a"))
		require.Equal(t, 409, a.Status, "the attempt that timed out may have brought it")
		require.Equal(t, "done a=done", l.states(a.ID))
	})
}

func TestStarvedAttemptsCountForNothing(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		l.plan.MaxAttempts = 1
		l.fake.set("a", starves(), starves(), starves(), ok())
		a := l.mustPost("/x")
		require.Equal(t, seconds(0, 1, 2, 3), l.times("a"))
		require.Equal(t, 1, l.status(a.ID).Deliveries[0].Attempts)
		require.False(t, l.b["a"].Unreachable())
	})
}

func TestParkedAfterMaxAttemptsThatReachedTheBackend(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		l.plan.MaxAttempts = 3
		l.fake.set("a", refuses(), says(500), refuses(), says(500), says(500))
		a := l.mustPost("/x") // the client need not wait for what will not come
		require.True(t, a.Pending)
		require.Equal(t, seconds(0, 1, 3, 7, 15), l.times("a"))
		require.Equal(t, 15*time.Second, l.passed())
		require.Equal(t, "parked a=parked", l.states(a.ID))
		require.Equal(t, []Count{{Pool: "users", Parked: 1}}, l.engine.Counts())
		l.sleep(time.Hour)
		require.Len(t, l.calls("a"), 5)
	})
}

func TestParkedAfterMaxAge(t *testing.T) {
	bubble(t, []string{"a", "b", "c"}, func(l *lab) {
		l.plan.MaxAge = 100 * time.Second
		l.plan.AttemptTimeout = time.Hour
		l.fake.set("a", says(500)) // waits for a retry at 127 s
		l.fake.set("b", says(400)) // is held
		l.fake.set("c", says(500).in(110*time.Second))
		a := l.mustPost("/x")
		l.sleep(70*time.Second - ms)
		require.Equal(t, "pending a=pending b=held c=pending", l.states(a.ID))
		require.Equal(t, []Count{{Pool: "users", Pending: 3}}, l.engine.Counts())
		l.sleep(ms)
		require.Equal(t, "pending a=parked b=parked c=pending", l.states(a.ID))
		require.Equal(t, []Count{{Pool: "users", Pending: 1, Parked: 2}}, l.engine.Counts())
		l.sleep(10 * time.Second)
		require.Equal(t, "parked a=parked b=parked c=parked", l.states(a.ID))
		require.Len(t, l.calls("a"), 7)
	})
}

func TestManyExpireTogether(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		l.plan.MaxAge = time.Minute
		l.plan.Wait = time.Second
		l.fake.set("a", refuses())
		l.b["a"].DialFailed()
		for range 3*expireBatch - 5 {
			l.mustPost("/x")
		}
		l.sleep(30 * time.Second)
		late := l.mustPost("/late")
		l.sleep(30 * time.Second)
		require.Equal(t, []Count{{Pool: "users", Pending: 1, Parked: 3*expireBatch - 5}}, l.engine.Counts())
		l.sleep(30 * time.Second)
		require.Equal(t, "parked a=parked", l.states(late.ID))
	})
}

func TestOverloaded(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		overloaded := func() {
			t.Helper()
			_, err := l.post("/x")
			var e *outcome.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, outcome.Overloaded, e.Code)
			require.Equal(t, time.Second, e.RetryAfter)
		}
		l.fake.set("a", ok().in(5*time.Second))
		l.plan.MaxPending = 2
		first := l.postAside("/x")
		l.sleep(time.Second)
		l.postAside("/x")
		overloaded()
		require.Len(t, l.calls("a"), 2, "nothing half-admitted")
		require.Equal(t, []Count{{Pool: "users", Pending: 2}}, l.engine.Counts())
		<-first
		l.postAside("/x")
		overloaded()

		l.sleep(time.Minute)
		l.plan.MaxPending = 0
		one := int64(len("/x") + len("example.org") + len("username=ada") + len("X-Request-Id") + len("r1"))
		l.plan.MaxPendingBytes = 2*one - 1
		l.postAside("/x")
		overloaded()
		l.plan.MaxPendingBytes++
		require.NotNil(t, l.postAside("/x"))
		overloaded()
		l.sleep(time.Minute)
		require.Equal(t, usage{}, *l.engine.usage["register"], "all is given back")
	})
}

func TestNoBackend(t *testing.T) {
	bubble(t, nil, func(l *lab) {
		_, err := l.post("/x")
		var e *outcome.Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, outcome.NoBackend, e.Code)
	})
}

func TestAClientThatLeavesChangesNothing(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(l *lab) {
		l.fake.set("b", says(500), ok())
		ctx, cancel := context.WithCancel(context.Background())
		left := make(chan error, 1)
		go func() {
			_, err := l.engine.Submit(ctx, l.plan, Write{Method: "POST", Target: "/x"})
			left <- err
		}()
		synctest.Wait()
		cancel()
		require.ErrorIs(t, <-left, context.Canceled)
		l.sleep(time.Minute)
		require.Equal(t, seconds(0, 1), l.times("b"))
		require.Equal(t, "done a=done b=done", l.states(l.calls("a")[0].FanoutID))

		_, err := l.engine.Submit(ctx, l.plan, Write{Method: "POST", Target: "/x"})
		require.ErrorIs(t, err, context.Canceled)
		require.Len(t, l.calls("a"), 1, "it had left before")
	})
}

func TestEvents(t *testing.T) {
	bubble(t, []string{"a", "b", "c"}, func(l *lab) {
		l.fake.set("a", says(500), ok())
		l.fake.set("b", refuses(), starves(), ok())
		l.fake.set("c", hangs(), says(409))
		l.mustPost("/x")
		require.Equal(t, []string{
			"attempt register a failure 500 false",
			"attempt register a success 201 true",
			"attempt register b starved 0 false",
			"attempt register b success 201 true",
			"attempt register b unsent 0 false",
			"attempt register c success 409 true",
			"attempt register c timeout 0 false",
			"decided register done 11s",
			"settled r1 a done  2 201 1s",
			"settled r1 b done  2 201 2s",
			"settled r1 c done  2 409 11s",
		}, l.events.sorted())
	})
}

// A scrape that follows the answer must find it counted.
func TestEventsComeBeforeTheAnswer(t *testing.T) {
	slow := &slowEvents{}
	bubble(t, []string{"a", "b", "c"}, func(l *lab) {
		l.mustPost("/x")
		require.Equal(t, 3*time.Second, l.passed())
		require.Equal(t, map[string]bool{"a": true, "b": true, "c": true}, slow.told)
	}, func(o *Options) { o.Events = slow })
}

// slowEvents is told of attempts by c at once, b in 2 s and a in 3 s.
type slowEvents struct {
	noEvents
	mu   sync.Mutex
	told map[string]bool
}

func (s *slowEvents) Attempt(_ *Plan, b *backend.Backend, _ outcome.Outcome, _ bool) {
	time.Sleep(map[string]time.Duration{"a": 3, "b": 2}[b.ID] * time.Second)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.told == nil {
		s.told = map[string]bool{}
	}
	s.told[b.ID] = true
}

func TestEventsOfARejection(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(l *lab) {
		l.fake.set("a", refuses())
		l.fake.set("b", says(400).in(time.Second/2))
		l.mustPost("/x")
		require.Equal(t, []string{
			"attempt register a unsent 0 false",
			"attempt register b failure 400 false",
			"decided register rejected 500ms",
			"settled r1 a cancelled rejected 1 0 500ms",
		}, l.events.sorted())
		require.Equal(t, []Count{{Pool: "users"}}, l.engine.Counts())
		l.sleep(time.Hour)
		require.Len(t, l.calls("a"), 1, "nothing more is sent")
	})
}

func TestStatusIsTheContracts(t *testing.T) {
	bubble(t, []string{"a", "b", "c", "d"}, func(l *lab) {
		l.fake.set("a", ok().in(time.Second/4))
		l.fake.set("b", says(500).in(time.Second/8))
		l.fake.set("c", hangs())
		l.fake.set("d", refuses())
		l.plan.Wait = time.Second / 2
		a := l.mustPost("/x?secret")
		text, err := json.Marshal(l.status(a.ID))
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintf(`{"id":%q,"state":"pending","created":"2000-01-01T00:00:00Z","deliveries":[`+
			`{"backend":"a","state":"done","attempts":1,"last_status":201,"next_attempt":null},`+
			`{"backend":"b","state":"pending","attempts":1,"last_status":500,"next_attempt":"2000-01-01T00:00:01.125Z"},`+
			`{"backend":"c","state":"pending","attempts":0,"last_status":null,"next_attempt":null},`+
			`{"backend":"d","state":"pending","attempts":1,"last_status":null,"next_attempt":"2000-01-01T00:00:01Z"}]}`,
			a.ID), string(text))
		_, found, err := l.engine.Status(t.Context(), "nonsense")
		require.NoError(t, err)
		require.False(t, found)
	})
}

// flaky is a journal that fails on command.
type flaky struct {
	*Memory
	admit, flush error
	flushing     func()
	flushed      int
}

func (j *flaky) Admit(ctx context.Context, r *Record) error {
	if j.admit != nil {
		return j.admit
	}
	return j.Memory.Admit(ctx, r)
}

func (j *flaky) Flush(context.Context) error {
	j.flushed++
	if j.flushing != nil {
		j.flushing()
	}
	return j.flush
}

func TestNothingIsSentThatTheJournalDidNotTake(t *testing.T) {
	j := &flaky{Memory: NewMemory(), admit: errors.New("disk full")}
	bubble(t, []string{"a"}, func(l *lab) {
		_, err := l.post("/x")
		require.ErrorIs(t, err, j.admit)
		require.Empty(t, l.calls("a"))
		require.Empty(t, l.engine.Counts())
		require.Equal(t, usage{}, *l.engine.usage["register"])
	}, func(o *Options) { o.Journal = j })
}

func TestARejectionIsRecordedBeforeItIsTold(t *testing.T) {
	j := &flaky{Memory: NewMemory()}
	bubble(t, []string{"a"}, func(l *lab) {
		j.flushing = func() { time.Sleep(time.Second) }
		l.fake.set("a", says(400))
		a := l.mustPost("/x")
		require.True(t, a.Rejected)
		require.Equal(t, time.Second, l.passed())

		l.plan.Wait = time.Second / 2
		require.True(t, l.mustPost("/x").Pending, "not safe yet when the wait is over")

		l.plan.Wait = time.Minute
		l.sleep(time.Minute)
		j.flush = errors.New("fsync failed")
		_, err := l.post("/x")
		require.ErrorIs(t, err, j.flush)

		l.fake.set("a")
		require.Equal(t, 201, l.mustPost("/x").Status)
		require.Equal(t, 3, j.flushed, "a success waits for nothing")
	}, func(o *Options) { o.Journal = j })
}

func TestStopLetsRunningAttemptsEnd(t *testing.T) {
	bubble(t, []string{"a", "b", "c", "d"}, func(l *lab) {
		l.fake.set("a", ok().in(2*time.Second))
		l.fake.set("b", says(500).in(2*time.Second))
		l.fake.set("c", hangs())
		l.fake.set("d", says(500))
		answers := l.postAside("/register?password=x")
		l.sleep(time.Second / 2)
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		left := l.engine.Stop(ctx)
		require.Equal(t, 3500*ms, l.passed())
		id := left[0].ID
		want := func(backend string, attempts, last int) Pending {
			return Pending{
				ID: id, RequestID: "r1", Route: "register", Method: "POST", Path: "/register", Backend: backend,
				State: DeliveryPending, Attempts: attempts, LastStatus: last, Age: 3500 * ms,
			}
		}
		require.Equal(t, []Pending{want("b", 1, 500), want("c", 1, 0), want("d", 1, 500)}, left)
		require.Equal(t, Answer{}, <-answers, "the client got an error")
		require.Equal(t, left, l.stopNow(), "again")
		_, err := l.post("/x")
		var e *outcome.Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, outcome.Overloaded, e.Code)
		require.Equal(t, left, l.stopNow(), "and it was not admitted")
		require.NotContains(t, l.events.sorted(), "attempt register c client_gone 0 false", "lb itself cut it")
		l.sleep(time.Hour)
		require.Len(t, l.fake.calls, 4)
	})
}

func TestStopReturnsAtOnceWhenNothingRuns(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		l.fake.set("a", says(500))
		l.plan.Wait = time.Second / 2
		for i := range 3 {
			l.mustPost(fmt.Sprint("/", i))
		}
		at := l.passed()
		left := l.engine.Stop(context.Background())
		require.Equal(t, at, l.passed())
		require.Len(t, left, 3)
		for i, p := range left {
			require.Equal(t, fmt.Sprint("/", i), p.Path, "in the order of admission")
		}
	})
}

func TestRunEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &backend.Backend{Pool: "p", ID: "a"}
		fake := newFake()
		fake.set("a", hangs())
		e := New(Options{Sender: fake})
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		go func() { _, _ = e.Submit(context.Background(), &Plan{Pool: newFakePool(b), Wait: time.Minute}, Write{}) }()
		require.NoError(t, e.Run(ctx))
		require.Zero(t, b.InFlight())
		require.Len(t, e.Stop(context.Background()), 1)
	})
}

func TestIDsGrowAndDoNotRepeat(t *testing.T) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	last := ""
	for range 1000 {
		first, second := newID(at), newID(at)
		require.NotEqual(t, first, second)
		require.Equal(t, first[:8], second[:8])
		require.Greater(t, first, last)
		last = max(first, second)
		at = at.Add(97 * time.Hour)
	}
}
