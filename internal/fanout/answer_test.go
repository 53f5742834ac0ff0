package fanout

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
)

func TestTheFirstSuccessInConfigOrderAnswers(t *testing.T) {
	bubble(t, []string{"a", "b", "c"}, func(l *lab) {
		for i, name := range []string{"a", "b", "c"} { // c is the first to answer
			l.fake.set(name, step{status: 201, body: name}.in(time.Duration(3-i)*time.Second))
		}
		for ack, want := range map[Ack]struct {
			backend string
			acked   int
			after   time.Duration
		}{
			AckAll:    {"a", 3, 3 * time.Second},
			AckQuorum: {"b", 2, 2 * time.Second},
			AckFirst:  {"c", 1, time.Second},
		} {
			l.plan.Ack = ack
			begun := l.passed()
			a := l.mustPost("/x")
			require.Equal(t, want.after, l.passed()-begun, ack)
			require.Equal(t, want.backend, a.Backend, ack)
			require.Equal(t, want.backend, string(a.Body), ack)
			require.Equal(t, want.acked, a.Acked, ack)
			require.Equal(t, 3, a.Total, ack)
			l.sleep(time.Minute)
			require.Equal(t, "done a=done b=done c=done", l.states(a.ID), "the rest goes on")
		}
	})
}

func TestQuorumIsMoreThanHalf(t *testing.T) {
	for n, want := range map[int]int{1: 1, 2: 2, 3: 2, 4: 3, 5: 3} {
		require.Equal(t, want, AckQuorum.need(n))
		require.Equal(t, n, AckAll.need(n))
		require.Equal(t, 1, AckFirst.need(n))
	}
}

func TestASuccessThatIsA409AnswersLast(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(l *lab) {
		l.fake.set("a", resets(), says(409))
		a := l.mustPost("/x")
		require.Equal(t, "b", a.Backend)
		require.Equal(t, 201, a.Status)
	})
}

func TestPendingAfterWait(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(l *lab) {
		l.fake.set("b", says(500), says(500), says(500), says(500), says(500), ok())
		a := l.mustPost("/x")
		require.Equal(t, Answer{ID: a.ID, Pending: true, Status: 202, Acked: 1, Total: 2}, a)
		require.Equal(t, 30*time.Second, l.passed())
		l.sleep(time.Minute)
		require.Equal(t, "done a=done b=done", l.states(a.ID))
	})
}

func TestPendingAtOnceForWhatWasOut(t *testing.T) {
	for name, out := range map[string]func(*backend.Backend){
		"unreachable": (*backend.Backend).DialFailed,
		"ineligible":  func(b *backend.Backend) { b.SetState(backend.State{Gate: backend.GateEjected}) },
		"on trial":    func(b *backend.Backend) { b.SetState(backend.State{Gate: backend.GateTrial}) },
		"excluded":    func(b *backend.Backend) { b.SetState(backend.State{Sync: backend.LaggingExcluded}) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, []string{"a", "b", "c"}, func(l *lab) {
				out(l.b["b"])
				l.fake.set("a", ok().in(time.Second))
				l.fake.set("b", refuses())
				a := l.mustPost("/x")
				require.True(t, a.Pending)
				require.Equal(t, 2, a.Acked)
				require.Equal(t, time.Second, l.passed(), "as soon as all others have it")
			})
		})
	}
}

func TestNotAtOnceForWhatWentOutLater(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(l *lab) {
		l.fake.set("b", refuses())
		require.True(t, l.mustPost("/x").Pending)
		require.Equal(t, 30*time.Second, l.passed())
		require.True(t, l.mustPost("/x").Pending, "the next one knows")
		require.Equal(t, 30*time.Second, l.passed())
	})
}

func TestWhoMerelyLagsIsNotOut(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(l *lab) {
		l.b["b"].SetState(backend.State{Sync: backend.Lagging})
		l.fake.set("b", ok().in(time.Second))
		require.Equal(t, 2, l.mustPost("/x").Acked)
		require.Equal(t, time.Second, l.passed())
	})
}

func TestAllOut(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(l *lab) {
		l.b["a"].DialFailed()
		l.b["b"].DialFailed()
		l.fake.set("a", ok().in(time.Second))
		l.fake.set("b", refuses())
		a := l.mustPost("/x")
		require.Equal(t, Answer{ID: a.ID, Pending: true, Status: 202, Total: 2}, a)
		require.Zero(t, l.passed())
		l.sleep(time.Second)
		require.Equal(t, "pending a=done b=pending", l.states(a.ID))
	})
}

func TestOneThatWasOutMayStillComplete(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(l *lab) {
		l.b["b"].DialFailed() // but it is back
		l.fake.set("a", ok().in(time.Second))
		require.Equal(t, 201, l.mustPost("/x").Status)
	})
}

func TestQuorumWithoutEnoughBackends(t *testing.T) {
	bubble(t, []string{"a", "b", "c"}, func(l *lab) {
		l.plan.Ack = AckQuorum
		for _, name := range []string{"b", "c"} {
			l.b[name].DialFailed()
			l.fake.set(name, refuses())
		}
		a := l.mustPost("/x")
		require.True(t, a.Pending)
		require.Equal(t, 1, a.Acked)
		require.Zero(t, l.passed())
	})
}

func TestOneHeldAndOneOutIsNotDecided(t *testing.T) {
	bubble(t, []string{"a", "b", "c"}, func(l *lab) {
		l.b["b"].SetState(backend.State{Gate: backend.GateEjected})
		l.fake.set("a", says(400))
		l.fake.set("b", says(500)) // it got something: not provably unsent
		l.fake.set("c", says(400))
		a := l.mustPost("/x")
		require.True(t, a.Pending)
		require.Equal(t, 30*time.Second, l.passed())
		require.Equal(t, "pending a=held b=pending c=held", l.states(a.ID))
	})
}

func TestRejectedIsTheFirstHeldInConfigOrder(t *testing.T) {
	bubble(t, []string{"a", "b", "c"}, func(l *lab) {
		l.fake.set("a", refuses())
		l.fake.set("b", says(409).in(2*time.Second))
		l.fake.set("c", says(400).in(time.Second))
		a := l.mustPost("/x")
		require.Equal(t, Answer{
			ID: a.ID, Rejected: true, Status: 409, Body: []byte("says 409"), Total: 3, Backend: "b",
		}, a)
		require.Equal(t, "rejected a=cancelled b=held c=held", l.states(a.ID))
		l.sleep(time.Hour)
		require.Equal(t, seconds(0, 1), l.times("a"), "nothing more is sent")
	})
}

// A fast refusal must not outrun the first attempts at the others.
func TestNoVerdictBeforeAllWereAsked(t *testing.T) {
	for range 100 {
		bubble(t, []string{"a", "b", "c", "d"}, func(l *lab) {
			l.fake.set("a", says(400))
			l.fake.set("b", says(400))
			l.fake.set("c", says(400))
			l.fake.set("d", ok().in(time.Second))
			answers := l.postAside("/x")
			l.sleep(time.Second)
			require.Empty(t, answers)
			require.Equal(t, "pending a=pending b=pending c=pending d=done", l.states(l.calls("d")[0].FanoutID))
		})
	}
}

func TestHeldIsRetriedThreeTimesOnceAccepted(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(l *lab) {
		l.fake.set("a", says(409))
		l.fake.set("b", ok().in(5*time.Second))
		a := l.mustPost("/x")
		require.Equal(t, seconds(0, 6, 8, 12), l.times("a"))
		require.True(t, a.Pending, "it will not be everywhere")
		require.Equal(t, 12*time.Second, l.passed())
		require.Equal(t, "parked a=parked b=done", l.states(a.ID))
		require.Contains(t, l.events.sorted(), "settled r1 a parked diverged 4 409 12s")
	})
}

func TestHeldThatHealsAnswers(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(l *lab) {
		l.fake.set("a", says(400), step{status: 201, body: "a"})
		l.fake.set("b", ok().in(time.Second))
		a := l.mustPost("/x")
		require.Equal(t, "a", string(a.Body))
		require.Equal(t, 2, a.Acked)
		require.Equal(t, 2*time.Second, l.passed())
	})
}

func TestOutThatRefusesIsStillOut(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(l *lab) {
		l.b["b"].SetState(backend.State{Gate: backend.GateEjected})
		l.fake.set("a", ok().in(time.Second))
		l.fake.set("b", says(400))
		a := l.mustPost("/x")
		require.True(t, a.Pending)
		require.Equal(t, time.Second, l.passed())
		l.sleep(time.Minute)
		require.Equal(t, "parked a=done b=parked", l.states(a.ID))
	})
}

func TestAnswersAreKeptOnlyWhileTheClientWaits(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(l *lab) {
		l.plan.Ack = AckFirst
		l.fake.set("b", ok().in(time.Second))
		l.mustPost("/x")
		l.engine.mu.Lock()
		require.Len(t, l.engine.writes, 1)
		for _, w := range l.engine.writes {
			require.Nil(t, w.answers)
			require.False(t, w.waiting)
		}
		l.engine.mu.Unlock()
		l.sleep(time.Second)
		l.engine.mu.Lock()
		defer l.engine.mu.Unlock()
		require.Empty(t, l.engine.writes)
	})
}
