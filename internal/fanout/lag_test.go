package fanout

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
)

// lags are the calls of Lagging so far, in words: "2s a lags", "3s a is in sync".
func (l *lab) lags() []string {
	l.events.mu.Lock()
	defer l.events.mu.Unlock()
	var words []string
	for _, e := range l.events.lags {
		word := "is in sync"
		if e.lagging {
			word = "lags"
		}
		words = append(words, fmt.Sprint(e.at.Sub(l.start), " ", e.backend, " ", word))
	}
	return words
}

func (l *lab) reasons() []string {
	l.events.mu.Lock()
	defer l.events.mu.Unlock()
	var reasons []string
	for _, e := range l.events.lags {
		reasons = append(reasons, e.reason)
	}
	return reasons
}

func TestAFailedAttemptLagsUntilTheSuccess(t *testing.T) {
	for name, test := range map[string]struct {
		first step
		want  []string
	}{
		"refused":  {refuses(), []string{"0s a lags", "1s a is in sync"}},
		"reset":    {resets(), []string{"0s a lags", "1s a is in sync"}},
		"status":   {says(500), []string{"0s a lags", "1s a is in sync"}},
		"timeout":  {hangs(), []string{"10s a lags", "11s a is in sync"}},
		"lb's own": {starves(), nil},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, []string{"a", "b"}, func(l *lab) {
				l.fake.set("a", test.first, ok())
				l.mustPost("/x")
				l.sleep(time.Hour)
				require.Equal(t, test.want, l.lags())
			})
		})
	}
}

func TestASlowAttemptLagsWhileItRuns(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(l *lab) {
		l.pool.after = 2 * time.Second
		l.fake.set("a", ok().in(2*time.Second+1))
		l.fake.set("b", ok().in(2*time.Second-1))
		require.Equal(t, 201, l.mustPost("/x").Status)
		require.Equal(t, []string{"2s a lags", "2.000000001s a is in sync"}, l.lags())
		require.Equal(t, []string{"a delivery is older than 2s; 1 pending", "no delivery is behind any more"}, l.reasons())
	})
}

func TestWhatWaitsAgesToo(t *testing.T) {
	for name, out := range map[string]func(*lab){
		"in maintenance": func(l *lab) { l.maintain("a") },
		"starved":        func(l *lab) { l.fake.set("a", starves()) },
		"all are running": func(l *lab) {
			l.fake.set("a", hangs())
			for range laneWidth {
				l.postAside("/before")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, []string{"a"}, func(l *lab) {
				l.plan.Wait, l.plan.AttemptTimeout = time.Minute, 0
				l.pool.after = 2 * time.Second
				out(l)
				l.postAside("/x")
				l.sleep(2*time.Second - 1)
				require.Empty(t, l.lags())
				l.sleep(1)
				require.Equal(t, []string{"2s a lags"}, l.lags())
			})
		})
	}
}

func TestAgeCountsFromTheAdmission(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		l.plan.Wait = 0
		l.pool.after = 3 * time.Second
		l.fake.set("a", starves(), starves(), ok().in(3*time.Second))
		l.mustPost("/x") // tries at 0 s, 1 s and 2 s
		l.sleep(time.Minute)
		require.Equal(t, []string{"3s a lags", "5s a is in sync"}, l.lags())
	})
}

// slowJournal takes a while to admit.
type slowJournal struct{ *Memory }

func (j slowJournal) Admit(ctx context.Context, r *Record) error {
	time.Sleep(3 * time.Second)
	return j.Memory.Admit(ctx, r)
}

func TestWhatIsOldWhenItStartsLagsAtOnce(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		l.pool.after = 2 * time.Second
		l.fake.set("a", ok().in(time.Second))
		l.mustPost("/x")
		require.Equal(t, []string{"3s a lags", "4s a is in sync"}, l.lags())
	}, func(o *Options) { o.Journal = slowJournal{NewMemory()} })
}

func TestAgeDoesNotMatterUnlessAsked(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		l.maintain("a")
		l.mustPost("/x")
		l.sleep(time.Hour)
		require.Empty(t, l.lags())
	})
}

func TestWritesOfTwoRoutesLagTogether(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(l *lab) {
		l.plan.Wait = 0
		l.fake.set("a", says(500), ok())
		l.mustPost("/x") // until 1 s
		l.sleep(time.Second / 2)
		other := *l.plan
		other.Route = "change"
		l.plan = &other
		l.mustPost("/y") // until 1.5 s
		l.sleep(time.Minute)
		require.Equal(t, []string{"0s a lags", "1.5s a is in sync"}, l.lags())
	})
}

func TestTheLastOfManyEndsTheLag(t *testing.T) {
	const many = 3 * laneWidth
	bubble(t, []string{"a"}, func(l *lab) {
		l.plan.Wait = 0
		l.pool.after = 10 * time.Second
		l.fake.set("a", refuses())
		for range many {
			l.mustPost("/x")
			l.sleep(0)
		}
		l.sleep(20 * time.Second) // tried at 0 s, 1 s, 3 s, 7 s, 15 s
		require.Equal(t, []string{"0s a lags"}, l.lags())
		require.Equal(t, "an attempt failed; 1 pending", l.reasons()[0])
		l.fake.set("a", ok().in(time.Second))
		// The oldest tries at 31 s, and the poll finds its dial; then one lane's
		// width goes each second.
		l.sleep(time.Minute)
		require.Equal(t, []string{"0s a lags", "34.25s a is in sync"}, l.lags())
		require.Equal(t, []Count{{Pool: "users"}}, l.engine.Counts())
	})
}

func TestWhatIsYoungDoesNotKeepUpALag(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		l.plan.Wait = 0
		l.pool.after = 5 * time.Second
		l.fake.set("a", says(500), ok())
		l.mustPost("/x")
		l.sleep(0)
		l.fake.set("a", ok().in(6*time.Second))
		l.sleep(time.Second / 2)
		l.mustPost("/y") // from 0.5 s to 6.5 s
		l.sleep(0)
		l.fake.set("a")
		l.sleep(time.Minute)
		require.Equal(t, []string{"0s a lags", "1s a is in sync", "5.5s a lags", "6.5s a is in sync"}, l.lags())
	})
}

func TestParkedIsNotLagging(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Plan)
		want   []string
	}{
		"attempts": {func(p *Plan) { p.MaxAttempts = 3 }, []string{"0s a lags", "3s a is in sync"}},
		"age":      {func(p *Plan) { p.MaxAge = 5 * time.Second }, []string{"0s a lags", "5s a is in sync"}},
		"at once":  {func(p *Plan) { p.MaxAttempts = 1 }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, []string{"a", "b"}, func(l *lab) {
				l.plan.Wait = 0
				test.change(l.plan)
				l.fake.set("a", says(500))
				a := l.mustPost("/x")
				l.sleep(time.Hour)
				require.Equal(t, "parked a=parked b=done", l.states(a.ID))
				require.Equal(t, test.want, l.lags())
			})
		})
	}
}

func TestCancelledIsNotLagging(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(l *lab) {
		l.fake.set("a", refuses())
		l.fake.set("b", says(400).in(time.Second/2))
		require.True(t, l.mustPost("/x").Rejected)
		require.Equal(t, []string{"0s a lags", "500ms a is in sync"}, l.lags())
	})
}

func TestHeldIsNotLagging(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(l *lab) {
		l.plan.Wait = 0
		l.pool.after = 2 * time.Second
		l.fake.set("a", ok().in(3*time.Second))
		l.fake.set("b", says(400))
		a := l.mustPost("/x")
		l.sleep(2 * time.Second)
		require.Equal(t, "pending a=pending b=held", l.states(a.ID))
		require.Equal(t, []string{"2s a lags"}, l.lags())
		l.sleep(time.Second)
		// a has accepted it, so that b is asked again: what is pending counts
		// with all of its age.
		require.ElementsMatch(t, []string{"2s a lags", "3s a is in sync", "3s b lags"}, l.lags())
		l.sleep(time.Hour)
		require.Equal(t, "parked a=done b=parked", l.states(a.ID))
		require.Equal(t, "10s b is in sync", l.lags()[3])
		require.Len(t, l.lags(), 4)
	})
}

func TestARefusalAfterTheAcceptanceIsAFailure(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(l *lab) {
		l.fake.set("b", says(400).in(time.Second), ok())
		require.Equal(t, 201, l.mustPost("/x").Status)
		require.Equal(t, []string{"1s b lags", "2s b is in sync"}, l.lags())
	})
}

// slowLag takes a second to hear that somebody lags, and hears nothing else.
type slowLag struct {
	noEvents
	lab   *lab
	mu    sync.Mutex
	heard []string
}

func (s *slowLag) Lagging(_ string, b *backend.Backend, lagging bool, _ string) {
	s.lab.engine.Counts() // the engine is not locked
	began := s.lab.passed()
	time.Sleep(time.Second)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard = append(s.heard, fmt.Sprint(b.ID, " ", lagging, " ", began, "-", s.lab.passed()))
}

func TestLaggingIsToldInOrder(t *testing.T) {
	slow := &slowLag{}
	bubble(t, []string{"a"}, func(l *lab) {
		slow.lab = l
		l.plan.Wait = 0
		l.plan.Backoff.Base, l.plan.Backoff.Cap = 100*ms, 100*ms
		l.fake.set("a", says(500), ok())
		l.mustPost("/x")
		l.sleep(200 * ms)
		l.mustPost("/y")
		l.sleep(time.Minute)
		require.Equal(t, []string{"a true 0s-1s", "a false 1s-2s", "a true 2s-3s", "a false 3s-4s"}, slow.heard)
	}, func(o *Options) { o.Events = slow })
}

// asleep reports whether nothing will wake a backend's lane by time alone.
func (l *lab) asleep(name string) bool {
	l.engine.mu.Lock()
	defer l.engine.mu.Unlock()
	lane := l.engine.lanes[laneKey{"users", name}]
	return lane.timer == nil || !lane.timer.Stop()
}

func TestNobodyLooksWhenNothingCanLag(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		l.pool.after = 2 * time.Second
		l.mustPost("/x")
		require.True(t, l.asleep("a"), "nothing is pending")

		l.fake.set("a", hangs())
		l.postAside("/y")
		l.sleep(3 * time.Second)
		require.Equal(t, []string{"2s a lags"}, l.lags())
		require.True(t, l.asleep("a"), "only the attempt's end can change anything")
	})
}

func TestNothingLagsAfterTheStop(t *testing.T) {
	bubble(t, []string{"a", "b", "c"}, func(l *lab) {
		l.pool.after = 2 * time.Second
		l.fake.set("a", hangs())
		l.fake.set("b", says(500).in(time.Second))
		l.maintain("c")
		l.postAside("/x")
		stopped := make(chan []Pending)
		go func() { stopped <- l.engine.Stop(context.Background()) }()
		for _, passed := range []time.Duration{0, 1100 * ms, 2 * time.Second} {
			l.sleep(passed)
			for name := range l.b {
				require.True(t, l.asleep(name), name)
			}
		}
		l.stopNow()
		require.Len(t, <-stopped, 3)
		l.sleep(time.Hour)
		require.Empty(t, l.lags())
	})
}

func TestStopWaitsForWhatIsBeingTold(t *testing.T) {
	slow := &slowLag{}
	bubble(t, []string{"a"}, func(l *lab) {
		slow.lab = l
		l.pool.after = 2 * time.Second
		l.fake.set("a", hangs())
		l.postAside("/x")
		l.sleep(2500 * ms)
		l.stopNow()
		require.Equal(t, 3*time.Second, l.passed())
		require.Equal(t, []string{"a true 2s-3s"}, slow.heard)
	}, func(o *Options) { o.Events = slow })
}
