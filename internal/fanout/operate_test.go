package fanout

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/outcome"
)

func (l *lab) retry(id, name string) error { return l.engine.Retry(context.Background(), id, name) }
func (l *lab) skip(id, name string) error  { return l.engine.Skip(context.Background(), id, name) }

// told counts the events that begin so.
func (l *lab) told(prefix string) int {
	n := 0
	for _, word := range l.events.sorted() {
		if strings.HasPrefix(word, prefix) {
			n++
		}
	}
	return n
}

func TestWhatOperatorsMayDo(t *testing.T) {
	tests := []struct {
		name        string
		play        []step
		wait        time.Duration
		state       string // before
		retry, skip outcome.Code
		skipped     string // after the skip
	}{
		{"done", []step{ok()}, 0, "done a=done b=done", outcome.DeliverySettled, outcome.DeliverySettled, ""},
		{"rejected", []step{says(400)}, 0, "rejected a=held b=held", outcome.DeliverySettled, outcome.DeliverySettled, ""},
		{"parked", []step{says(500)}, time.Minute, "parked a=done b=parked", "", "", "done a=done b=skipped"},
		{"pending", []step{refuses()}, 0, "pending a=done b=pending", outcome.DeliverySettled, "", "done a=done b=skipped"},
		{"running", []step{hangs()}, 0, "pending a=done b=pending", outcome.DeliverySettled, outcome.DeliverySettled, ""},
		{"held", []step{says(400)}, 0, "pending a=pending b=held", outcome.DeliverySettled, "", "pending a=pending b=skipped"},
	}
	for _, tt := range tests {
		for _, restarted := range []bool{false, true} {
			name := tt.name
			if restarted {
				name += ", outside"
			}
			if restarted && tt.name == "running" {
				continue // it is not then
			}
			t.Run(name, func(t *testing.T) {
				durable(t, []string{"a", "b"}, 0, func(l *lab, h *hooked) {
					l.plan.MaxAttempts = 2
					l.fake.set("b", tt.play...)
					switch tt.name {
					case "rejected":
						l.fake.set("a", says(400))
					case "held":
						l.fake.set("a", says(500), refuses())
					}
					a := l.put("ada", "/1")
					l.sleep(tt.wait)
					require.Equal(l.t, tt.state, l.states(a.ID))
					if restarted {
						h.on("Due", func(*Record) error { return errors.New("I/O error") }) // it stays outside
						l.reopen()
						require.Empty(l.t, l.engine.writes)
					}
					before := l.engine.Counts()
					if tt.retry != "" {
						require.Equal(l.t, tt.retry, outcomeCode(l.retry(a.ID, "b")))
						require.Equal(l.t, tt.state, l.states(a.ID))
					}
					require.Equal(l.t, outcome.FanoutNotFound, outcomeCode(l.skip(a.ID, "z")))
					require.Equal(l.t, outcome.FanoutNotFound, outcomeCode(l.skip("z", "b")))
					require.Equal(l.t, before, l.engine.Counts())
					decided := l.told("decided")
					require.Equal(l.t, tt.skip, outcomeCode(l.skip(a.ID, "b")))
					if tt.skip != "" {
						require.Equal(l.t, tt.state, l.states(a.ID))
						require.Equal(l.t, before, l.engine.Counts())
						return
					}
					require.Equal(l.t, tt.skipped, l.states(a.ID))
					require.Equal(l.t, 1, l.told("settled  b skipped operator"))
					require.Equal(l.t, outcome.DeliverySettled, outcomeCode(l.skip(a.ID, "b")))
					switch tt.name {
					case "parked":
						require.Equal(l.t, decided, l.told("decided"), "that was told when it was parked")
					case "pending":
						require.Equal(l.t, decided+1, l.told("decided"))
					}
					if tt.name != "held" {
						l.atRest()
						require.Equal(l.t, Count{Pool: "users"}, l.engine.Counts()[0])
					}
				})
			})
		}
	}
}

func TestARetryHasItsAttemptsAndItsAgeAnew(t *testing.T) {
	both(t, []string{"a", "b"}, func(l *lab, _ *hooked) {
		l.plan.MaxAttempts, l.plan.MaxAge = 2, time.Hour
		l.fake.set("b", says(500))
		a := l.put("ada", "/1")
		l.sleep(59 * time.Minute)
		require.Equal(l.t, "parked a=done b=parked", l.states(a.ID))
		require.Len(l.t, l.calls("b"), 2)
		require.NoError(l.t, l.retry(a.ID, "b"))
		require.Equal(l.t, outcome.DeliverySettled, outcomeCode(l.retry(a.ID, "b")))
		l.sleep(time.Minute)
		require.Len(l.t, l.calls("b"), 4)
		require.Equal(l.t, "parked a=done b=parked", l.states(a.ID))
		require.Equal(l.t, 1, l.told("decided"))

		l.maintain("b")
		require.NoError(l.t, l.retry(a.ID, "b"))
		l.sleep(59 * time.Minute)
		require.Equal(l.t, "pending a=done b=pending", l.states(a.ID))
		l.reopen()
		l.sleep(59 * time.Second)
		require.Equal(l.t, "pending a=done b=pending", l.states(a.ID), "the age outlives a restart")
		l.sleep(2 * time.Second)
		require.Equal(l.t, "parked a=done b=parked", l.states(a.ID))
		require.Len(l.t, l.calls("b"), 4)
		require.Equal(l.t, []Count{{Pool: "users", Parked: 1}}, l.engine.Counts())
		l.atRest()
	})
}

func TestTheLastSkipEndsTheWrite(t *testing.T) {
	durable(t, []string{"a", "b", "c"}, 0, func(l *lab, _ *hooked) {
		l.plan.MaxAttempts = 1
		l.fake.set("b", says(500))
		l.fake.set("c", refuses())
		a := l.put("ada", "/1")
		require.NoError(l.t, l.skip(a.ID, "c"))
		require.Equal(l.t, "parked a=done b=parked c=skipped", l.states(a.ID))
		require.Equal(l.t, 1, l.told("decided register parked"))
		require.NoError(l.t, l.skip(a.ID, "b"))
		require.Equal(l.t, "done a=done b=skipped c=skipped", l.states(a.ID))
		require.Equal(l.t, 1, l.told("decided"))
		l.atRest()
	})
}

// An operator comes upon a write whose backend is gone before its lane has.
func TestAnOperatorMeetsABackendThatIsGone(t *testing.T) {
	durable(t, []string{"a", "b"}, 0, func(l *lab, h *hooked) {
		l.fake.set("b", refuses())
		a := l.put("ada", "/1")
		h.on("Due", func(*Record) error { return errors.New("I/O error") })
		l.pool.members = []*backend.Backend{l.b["a"]}
		l.reopen()
		require.Equal(l.t, outcome.DeliverySettled, outcomeCode(l.skip(a.ID, "b")))
		l.sleep(0)
		require.Equal(l.t, "done a=done b=cancelled", l.states(a.ID))
		l.atRest()
	})
}

// A client hears of the end of its write after an operator has changed it.
func TestAnOperatorIsFasterThanTheClient(t *testing.T) {
	durable(t, []string{"a"}, 0, func(l *lab, h *hooked) {
		l.plan.Wait, l.plan.MaxAttempts = time.Minute, 1
		l.fake.set("a", says(500))
		a, err := l.submit(keyed("k", "x"))
		require.NoError(l.t, err)
		require.True(l.t, a.Pending)
		r, _, _ := h.Find(context.Background(), a.ID)
		require.Equal(l.t, WriteParked, r.State)
		h.mu.Lock()
		defer h.mu.Unlock()
		require.False(l.t, r.Told, "no change of a write that is out of memory: it might be out of date")
	})
}

func TestWhatCouldNotBeStoredIsToldToTheOperator(t *testing.T) {
	durable(t, []string{"a"}, 0, func(l *lab, h *hooked) {
		l.plan.MaxAttempts = 1
		l.fake.set("a", says(500))
		a := l.put("ada", "/1")
		h.on("Flush", func(*Record) error { return errors.New("I/O error") })
		require.Equal(l.t, outcome.StorageUnavailable, outcomeCode(l.skip(a.ID, "a")))
		l.stopNow()
		synctest.Wait()
	})
}

// A backend that was sent the write may have it, and a retry does not undo that.
func TestARetryDoesNotMakeAWriteUnsent(t *testing.T) {
	durable(t, []string{"a", "b"}, 0, func(l *lab, _ *hooked) {
		l.plan.MaxAttempts = 1
		l.fake.set("a", says(500))
		l.fake.set("b", refuses())
		a := l.put("ada", "/1")
		require.Equal(l.t, "pending a=parked b=pending", l.states(a.ID))
		l.fake.set("a", refuses())
		require.NoError(l.t, l.retry(a.ID, "a"))
		l.fake.set("b", says(400))
		l.sleep(time.Minute)
		require.Equal(l.t, "pending a=pending b=held", l.states(a.ID))
	})
}

// What was parked unsent, nobody can send any more once the write is rejected.
func TestARejectionCancelsWhatIsParked(t *testing.T) {
	both(t, []string{"a", "b"}, func(l *lab, _ *hooked) {
		l.plan.MaxAge = time.Hour
		l.maintain("a")
		l.maintain("b")
		a := l.put("ada", "/1")
		l.sleep(time.Hour)
		require.Equal(l.t, "parked a=parked b=parked", l.states(a.ID))
		l.fake.set("b", says(400))
		l.enable("b")
		require.NoError(l.t, l.retry(a.ID, "b"))
		l.sleep(time.Second)
		require.Equal(l.t, "rejected a=cancelled b=held", l.states(a.ID))
		l.enable("a")
		require.Equal(l.t, outcome.DeliverySettled, outcomeCode(l.retry(a.ID, "a")))
		l.sleep(time.Minute)
		require.Empty(l.t, l.calls("a"))
		require.Equal(l.t, []Count{{Pool: "users"}}, l.engine.Counts())
		l.atRest()
	})
}
