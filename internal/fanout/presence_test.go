package fanout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/outcome"
)

// leave takes a backend out of the pool; it may come back.
func (l *lab) leave(name string, word backend.Presence) {
	b := l.b[name]
	l.pool.SetPresence(b, word, "it went")
	left := slices.DeleteFunc(slices.Clone(l.pool.Members()), func(m *backend.Backend) bool { return m == b })
	l.pool.have(left, append(slices.Clone(l.pool.absent), b))
}

// forget has nobody wait for a backend that left.
func (l *lab) forget(name string) {
	l.pool.have(l.pool.Members(), slices.DeleteFunc(slices.Clone(l.pool.absent), func(b *backend.Backend) bool { return b.ID == name }))
}

// comeBack brings a backend back under its id, as another object.
func (l *lab) comeBack(name, address string) *backend.Backend {
	b := &backend.Backend{Pool: "users", ID: name, Address: address}
	l.b[name] = b
	l.pool.have(append(slices.Clone(l.pool.Members()), b), slices.DeleteFunc(slices.Clone(l.pool.absent), func(b *backend.Backend) bool { return b.ID == name }))
	return b
}

func (l *lab) cancel(name string) {
	l.t.Helper()
	require.NoError(l.t, l.engine.Cancel(context.Background(), "users", name))
	synctest.Wait()
}

// addresses are where the attempts at a backend went.
func (l *lab) addresses(name string) (all []string) {
	l.fake.mu.Lock()
	defer l.fake.mu.Unlock()
	for _, c := range l.fake.calls {
		if c.backend == name {
			all = append(all, c.address)
		}
	}
	return all
}

func TestWhoIsAbsentHasItsDeliveriesKept(t *testing.T) {
	for _, word := range []backend.Presence{backend.Expired, backend.Leaving} {
		bubble(t, []string{"a", "b"}, func(l *lab) {
			l.plan.Wait = 0
			l.fake.set("b", says(500))
			before := l.mustPost("/before")
			l.sleep(0)
			l.leave("b", word)
			l.sleep(time.Hour)
			require.Len(t, l.calls("b"), 1, "the retry waits")
			require.Nil(t, l.status(before.ID).Deliveries[1].NextAttempt, "nobody knows when it is back")
			meanwhile := l.mustPost("/meanwhile")
			l.sleep(0)
			require.Equal(t, "done a=done", l.states(meanwhile.ID), "new writes are for who is there")

			l.fake.set("b")
			l.engine.Rejoin(l.comeBack("b", "elsewhere:1"))
			l.sleep(0)
			require.Equal(t, time.Hour, l.passed(), "at once")
			require.Equal(t, "done a=done b=done", l.states(before.ID))
			require.Equal(t, []string{"b:1", "elsewhere:1"}, l.addresses("b"))
			require.Equal(t, "/before /before", l.targets("b"))
			l.mustPost("/after")
			l.sleep(0)
			require.Equal(t, []string{"b:1", "elsewhere:1", "elsewhere:1"}, l.addresses("b"))
			l.slotsFree()
		})
	}
}

func TestTheSameObjectMayComeBack(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		l.plan.Wait = 0
		l.fake.set("a", says(500), ok())
		a := l.mustPost("/x")
		l.sleep(0)
		l.pool.SetPresence(l.b["a"], backend.Expired, "silent")
		l.sleep(time.Minute)
		l.pool.SetPresence(l.b["a"], backend.Present, "heard of")
		l.engine.Rejoin(l.b["a"])
		l.sleep(0)
		require.Equal(t, "done a=done", l.states(a.ID))
		require.Equal(t, time.Minute, l.passed())
	})
}

func TestAttemptsUnderWayEndWhereTheyBegan(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		l.plan.Wait = 0
		l.fake.set("a", says(500).in(5*time.Second), ok())
		a := l.mustPost("/x")
		l.sleep(time.Second)
		old := l.b["a"]
		l.leave("a", backend.Leaving)
		fresh := l.comeBack("a", "elsewhere:1")
		l.engine.Rejoin(fresh)
		l.mustPost("/y")
		l.sleep(time.Second)
		require.EqualValues(t, 1, old.InFlight())
		require.Zero(t, fresh.InFlight()-1, "the new write is there")
		l.sleep(10 * time.Second)
		require.Zero(t, old.InFlight())
		require.Equal(t, []string{"a:1", "elsewhere:1", "elsewhere:1", "elsewhere:1"}, l.addresses("a"))
		require.Equal(t, 2, l.status(a.ID).Deliveries[0].Attempts)
		l.slotsFree()
		l.atRest()
	})
}

func TestAWaitForASlotEndsWithTheBackendItWasFor(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		l.plan.Wait = 0
		l.limit("a", 1)
		old, end := l.b["a"], l.take("a")
		a := l.mustPost("/x")
		l.sleep(time.Second)
		l.leave("a", backend.Leaving)
		l.engine.Rejoin(l.comeBack("a", "elsewhere:1"))
		l.sleep(0)
		require.Equal(t, "done a=done", l.states(a.ID))
		require.Equal(t, []string{"elsewhere:1"}, l.addresses("a"))
		end()
		l.sleep(0)
		require.Zero(t, old.InFlight())
		l.slotsFree()
	})
}

func TestWhoComesBackIsToldToLag(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		l.plan.Wait = 0
		l.fake.set("a", says(500))
		l.mustPost("/x")
		l.sleep(500 * ms)
		require.Equal(t, []string{"0s a lags"}, l.lags())
		l.leave("a", backend.Leaving)
		l.engine.Rejoin(l.comeBack("a", "elsewhere:1"))
		require.Equal(t, []string{"0s a lags", "500ms a lags"}, l.lags(), "it is another backend, and knows nothing of that")
		l.engine.Rejoin(l.b["a"])
		require.Len(t, l.lags(), 2, "and is told once")
	})
}

func TestAfterARestartWhoIsAbsentIsWaitedFor(t *testing.T) {
	both(t, []string{"a", "b", "c"}, func(l *lab, _ *hooked) {
		l.fake.set("b", says(500))
		l.fake.set("c", says(500))
		var all []Answer
		for i := range 5 {
			all = append(all, l.put("ada", fmt.Sprint("/", i)))
		}
		l.leave("b", backend.Leaving)
		l.leave("c", backend.Leaving)
		l.forget("c")
		l.reopen()
		l.sleep(10 * time.Minute)
		before := len(l.calls("b"))
		require.Equal(l.t, 1, before)
		require.Equal(l.t, 5, l.told("settled  c cancelled removed"), "c is unknown")
		l.fake.set("b")
		l.engine.Rejoin(l.comeBack("b", "elsewhere:1"))
		l.sleep(10 * time.Minute)
		for _, a := range all {
			require.Equal(l.t, "done a=done b=done c=cancelled", l.states(a.ID))
		}
		require.Len(l.t, l.calls("b"), before+5)
		require.Equal(l.t, "elsewhere:1", l.addresses("b")[before])
		l.atRest()
	})
}

// One that is unknown when the engine starts, and comes later.
func TestWhoWasUnknownMayCome(t *testing.T) {
	both(t, []string{"a", "b"}, func(l *lab, _ *hooked) {
		l.fake.set("b", says(500))
		l.put("ada", "/0")
		l.leave("b", backend.Leaving)
		l.forget("b")
		l.reopen()
		l.sleep(time.Minute)
		require.Equal(l.t, 1, l.told("settled  b cancelled removed"))
		l.fake.set("b")
		l.comeBack("b", "elsewhere:1") // and nobody says so
		a := l.put("ada", "/1")
		l.sleep(0)
		require.Equal(l.t, "done a=done b=done", l.states(a.ID))
		require.Equal(l.t, "elsewhere:1", l.addresses("b")[1])
		l.atRest()
	})
}

func TestCancelSettlesAllThatIsOnItsWay(t *testing.T) {
	both(t, []string{"a", "b", "c"}, func(l *lab, h *hooked) {
		l.fake.set("b", says(500))
		var all []Answer
		for i := range 40 {
			all = append(all, l.put(fmt.Sprint(i%4), fmt.Sprint("/", i)))
		}
		l.leave("b", backend.Leaving)
		sent, asked := len(l.calls("c")), h.calls["Head"]
		l.cancel("b")
		l.cancel("b") // twice is once
		require.Equal(l.t, asked, h.calls["Head"], "nobody asks who is next there")
		for _, a := range all {
			require.Equal(l.t, "done a=done b=cancelled c=done", l.states(a.ID))
			r, found, err := l.engine.journal.Find(context.Background(), a.ID)
			require.NoError(l.t, err)
			require.True(l.t, found)
			require.Equal(l.t, ReasonRemoved, r.Deliveries[1].Reason)
		}
		require.Equal(l.t, 40, l.told("settled  b cancelled removed"))
		require.Equal(l.t, 40, l.told("decided register done"))
		require.Equal(l.t, []Count{{Pool: "users"}}, l.engine.Counts())
		require.Len(l.t, l.calls("c"), sent)
		l.atRest()

		l.fake.set("b")
		l.engine.Rejoin(l.comeBack("b", "elsewhere:1"))
		a := l.put("1", "/after")
		l.sleep(time.Minute)
		require.Equal(l.t, "done a=done c=done b=done", l.states(a.ID))
		require.Equal(l.t, []Count{{Pool: "users"}}, l.engine.Counts())
	})
}

// The journal has what nobody has asked for yet since the start.
func TestCancelReachesWhatTheJournalAloneHas(t *testing.T) {
	durable(t, []string{"a", "b"}, 1, func(l *lab, h *hooked) {
		l.plan.OrderBy = OrderBy{}
		l.fake.set("a", says(500))
		l.fake.set("b", says(500))
		var all []Answer
		for i := range 2*cancelPage + 3 {
			all = append(all, l.put("ada", fmt.Sprint("/", i)))
		}
		l.leave("b", backend.Expired)
		l.reopen()
		l.cancel("b")
		for _, a := range all {
			require.Equal(l.t, "pending a=pending b=cancelled", l.states(a.ID))
		}
		l.engine.mu.Lock()
		require.LessOrEqual(l.t, len(l.engine.writes), 2, "the window holds")
		l.engine.mu.Unlock()
		l.fake.set("a")
		l.sleep(time.Hour)
		for _, a := range all {
			require.Equal(l.t, "done a=done b=cancelled", l.states(a.ID))
		}
		require.Equal(l.t, len(all), l.told("settled  b cancelled removed"))
		l.atRest()
	})
}

func TestCancelAnswersWhoWaits(t *testing.T) {
	for name, test := range map[string]struct {
		a    step
		want string
	}{
		"the others have it":   {ok(), "done a=done b=cancelled"},
		"the other refuses it": {says(400).in(time.Second), "rejected a=held b=cancelled"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, []string{"a", "b"}, func(l *lab) {
				l.fake.set("a", test.a)
				l.limit("b", 1)
				end := l.take("b")
				answers := l.postAside("/x")
				l.sleep(500 * ms)
				l.pool.SetPresence(l.b["b"], backend.Leaving, "forced out")
				l.cancel("b")
				l.sleep(500 * ms)
				select {
				case a := <-answers:
					require.Equal(t, test.want, l.states(a.ID))
				default:
					require.Fail(t, "the client still waits")
				}
				end()
				l.slotsFree()
				l.atRest()
			})
		})
	}
}

func TestCancelLeavesAnAttemptItsEnd(t *testing.T) {
	for name, test := range map[string]struct {
		play step
		want string
	}{
		"it succeeds": {ok().in(time.Second), "done a=done"},
		"it fails":    {says(500).in(time.Second), "cancelled a=cancelled"},
		"it is held":  {says(400).in(time.Second), "rejected a=held"},
		"it is cut":   {step{after: time.Second, err: outcome.ErrWithdrawn}, "cancelled a=cancelled"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, []string{"a"}, func(l *lab) {
				l.fake.set("a", test.play)
				answers := l.postAside("/x")
				l.pool.SetPresence(l.b["a"], backend.Leaving, "forced out")
				l.cancel("a")
				l.engine.Rejoin(l.comeBack("a", "elsewhere:1"))
				l.sleep(time.Second)
				a := <-answers
				require.Equal(t, test.want, l.states(a.ID))
				require.Equal(t, time.Second, l.passed())
				l.sleep(time.Hour)
				require.Len(t, l.calls("a"), 1, "it is not for who came back")
				l.atRest()
				l.slotsFree()
			})
		})
	}
}

// A write that was on its way into the journal is not for who was removed
// meanwhile, but for who is back.
func TestAWriteThatCancelMissed(t *testing.T) {
	for name, back := range map[string]bool{"gone": false, "back": true} {
		t.Run(name, func(t *testing.T) {
			durable(t, []string{"a", "b"}, 0, func(l *lab, h *hooked) {
				h.on("Admit", pause(time.Second))
				answers := l.postOf("ada", "/x")
				l.leave("b", backend.Leaving)
				l.cancel("b")
				want := "done a=done b=cancelled"
				if back {
					l.engine.Rejoin(l.comeBack("b", "elsewhere:1"))
					want = "done a=done b=done"
				}
				l.sleep(2 * time.Second)
				a := <-answers
				require.Equal(l.t, want, l.states(a.ID))
				l.atRest()
			})
		})
	}
}

// postOf submits a write of that key from a goroutine of its own.
func (l *lab) postOf(key, target string) <-chan Answer {
	answers := make(chan Answer, 1)
	go func() {
		a, _ := l.engine.Submit(context.Background(), l.plan, of(key, target))
		answers <- a
	}()
	synctest.Wait()
	return answers
}

func TestCancelKeepsWhatIsParked(t *testing.T) {
	both(t, []string{"a", "b"}, func(l *lab, _ *hooked) {
		l.plan.MaxAttempts = 1
		l.fake.set("b", says(500))
		first := l.put("ada", "/1")
		second := l.put("ada", "/2") // behind it
		l.leave("b", backend.Leaving)
		l.cancel("b")
		require.Equal(l.t, "parked a=done b=parked", l.states(first.ID))
		require.Equal(l.t, "done a=done b=cancelled", l.states(second.ID))
		require.ErrorContains(l.t, l.retry(first.ID, "b"), "no member of the pool any more")
		require.NoError(l.t, l.skip(first.ID, "b"))
		l.atRest()
	})
}

func TestCancelThatFails(t *testing.T) {
	durable(t, []string{"a", "b"}, 0, func(l *lab, h *hooked) {
		l.fake.set("b", says(500))
		a := l.put("ada", "/1")
		l.leave("b", backend.Leaving)
		h.on("Flush", func(*Record) error { return errors.New("I/O error") })
		var e *outcome.Error
		require.ErrorAs(l.t, l.engine.Cancel(context.Background(), "users", "b"), &e)
		require.Equal(l.t, outcome.StorageUnavailable, e.Code)
		h.on("Flush", nil)
		l.cancel("b")
		require.Equal(l.t, "done a=done b=cancelled", l.states(a.ID))

		ended, cancel := context.WithCancel(context.Background())
		cancel()
		l.fake.set("a", says(500))
		l.put("ada", "/2")
		require.ErrorIs(l.t, l.engine.Cancel(ended, "users", "a"), context.Canceled)
		l.stopNow()
		require.ErrorAs(l.t, l.engine.Cancel(context.Background(), "users", "a"), &e)
		require.Equal(l.t, outcome.Overloaded, e.Code, "a stopped engine changes nothing any more")
	})
}

// What came later is for who came back.
func TestCancelGoesNoFurtherThanItBegan(t *testing.T) {
	durable(t, []string{"a", "b"}, 1, func(l *lab, h *hooked) {
		l.fake.set("b", says(500))
		var all []Answer
		for i := range 5 {
			all = append(all, l.put("ada", fmt.Sprint("/", i)))
		}
		require.NoError(l.t, l.engine.cancelOutside(context.Background(), "users", "b", 3))
		l.sleep(0)
		require.Equal(l.t, "done a=done b=cancelled", l.states(all[2].ID))
		require.Equal(l.t, "pending a=done b=pending", l.states(all[3].ID))
	})
}

// A write to nobody else.
func TestCancelMayLeaveNobody(t *testing.T) {
	durable(t, []string{"a"}, 0, func(l *lab, h *hooked) {
		l.plan.Wait = time.Minute
		h.on("Admit", pause(time.Second))
		answers := l.postOf("ada", "/x")
		l.leave("a", backend.Leaving)
		l.cancel("a")
		l.sleep(time.Second)
		a := <-answers
		require.True(l.t, a.Pending)
		require.Equal(l.t, time.Second, l.passed(), "the client does not wait for nothing")
		require.Equal(l.t, "cancelled a=cancelled", l.states(a.ID))
		require.Equal(l.t, 1, l.told("decided register cancelled"))
		l.atRest()
	})
}

func TestCancelOfWhoIsUnknown(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		l.cancel("nobody")
		require.NoError(t, l.engine.Cancel(context.Background(), "nowhere", "a"))
		require.Equal(t, 201, l.mustPost("/x").Status)
	})
}
