package fanout

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/outcome"
)

// later submits an unordered write and does not wait for it.
func (l *lab) later(target string) Answer {
	l.t.Helper()
	l.plan.OrderBy = OrderBy{}
	a, err := l.engine.Submit(context.Background(), l.plan, Write{Method: "POST", Target: target})
	require.NoError(l.t, err)
	return a
}

func TestMemoryHoldsAWindow(t *testing.T) {
	const window = 100
	backlog := 3_000
	if raced {
		backlog = 300
	}
	durable(t, []string{"a", "b"}, window, func(l *lab, _ *hooked) {
		l.plan.MaxPending, l.plan.MaxPendingBytes = 0, 0
		l.fake.set("b", refuses())
		for i := range backlog {
			l.later(fmt.Sprintf("/%d", i))
			if i == 0 {
				l.sleep(0) // b is known to be out before the others come
			}
		}
		l.sleep(time.Minute)
		require.Len(l.t, l.calls("a"), backlog, "b's backlog is in nobody's way")
		require.LessOrEqual(l.t, len(l.engine.writes), window+laneLow+laneBatch) // of 3,000
		require.Equal(l.t, []Count{{Pool: "users", Pending: backlog}}, l.engine.Counts())
		tries := len(l.calls("b"))
		require.Less(l.t, tries, 300, "only the oldest one tries")

		l.restart("b")
		l.fake.set("b", ok().in(10*ms))
		l.sleep(2 * time.Minute)
		calls := l.calls("b")[tries:]
		require.Len(l.t, calls, backlog, "each once")
		for i, r := range calls {
			var n int
			_, err := fmt.Sscanf(r.Target, "/%d", &n)
			require.NoError(l.t, err)
			if n == 0 {
				continue // it was the one that tried, and waits before it does again
			}
			require.InDelta(l.t, i, n, laneWidth+laneBatch, "oldest first")
		}
		l.atRest()
		require.Equal(l.t, []bool{true, false}, lagsOf(l, "b"), "it does not flap")
	})
}

// lagsOf are the changes of a backend's lag.
func lagsOf(l *lab, name string) []bool {
	var all []bool
	for _, e := range l.events.lags {
		if e.backend == name {
			all = append(all, e.lagging)
		}
	}
	return all
}

func TestARestartTakesUpTheBacklog(t *testing.T) {
	durable(t, []string{"a", "b"}, 10, func(l *lab, _ *hooked) {
		backlog := 600
		if raced {
			backlog = 100
		}
		l.fake.set("b", refuses())
		for i := range backlog {
			l.later(fmt.Sprintf("/%d", i))
		}
		l.sleep(time.Second)
		l.reopen()
		require.Equal(l.t, []Count{{Pool: "users", Pending: backlog}}, l.engine.Counts())
		require.Len(l.t, l.calls("a"), backlog)
		l.restart("b")
		l.sleep(time.Minute)
		require.Len(l.t, l.calls("a"), backlog, "what a has is not sent to it again")
		l.atRest()
		require.Equal(l.t, []Count{{Pool: "users"}}, l.engine.Counts())
	})
}

func TestTheLimitsCountWhatWasTakenUp(t *testing.T) {
	durable(t, []string{"a"}, 1, func(l *lab, _ *hooked) {
		l.plan.MaxPending = 3
		l.fake.set("a", refuses())
		for range 3 {
			l.later("/x")
		}
		l.reopen()
		_, err := l.submit(Write{Method: "POST", Target: "/x"})
		require.Equal(l.t, outcome.Overloaded, outcomeCode(err))
		l.restart("a")
		l.sleep(time.Minute)
		l.later("/x")
		l.sleep(0)
		l.atRest()
	})
}

// After a restart nobody knows whether the last process had an attempt under
// way: a 409 says that it had.
func TestA409AfterARestartIsASuccess(t *testing.T) {
	durable(t, []string{"a", "b"}, 0, func(l *lab, _ *hooked) {
		l.fake.set("b", hangs())
		a := l.later("/x")
		l.sleep(time.Second)
		l.fake.set("b", says(409))
		fresh := l.later("/y")
		l.sleep(0)
		l.reopen()
		l.sleep(10 * time.Minute)
		require.Equal(l.t, "done a=done b=done", l.states(a.ID))
		require.Equal(l.t, "done a=done b=done", l.states(fresh.ID), "it was recovered, too")
		fresh = l.later("/z")
		l.sleep(10 * time.Minute)
		require.Equal(l.t, "parked a=done b=parked", l.states(fresh.ID))
	})
}

func TestARestartKeepsAttemptsAndAge(t *testing.T) {
	durable(t, []string{"a"}, 0, func(l *lab, _ *hooked) {
		l.plan.MaxAttempts, l.plan.MaxAge = 3, time.Hour
		l.fake.set("a", says(500))
		few := l.later("/x")
		l.sleep(0)
		l.reopen()
		l.sleep(time.Minute)
		require.Equal(l.t, "parked a=parked", l.states(few.ID))
		require.Len(l.t, l.calls("a"), 3)

		l.maintain("a")
		old := l.later("/y")
		l.sleep(59 * time.Minute)
		l.reopen()
		l.sleep(59 * time.Second)
		require.Equal(l.t, "pending a=pending", l.states(old.ID))
		l.sleep(time.Second)
		require.Equal(l.t, "parked a=parked", l.states(old.ID))
	})
}

func TestAClockThatJumpedFreezesNothing(t *testing.T) {
	durable(t, []string{"a"}, 0, func(l *lab, h *hooked) {
		l.fake.set("a", says(500))
		a := l.later("/x")
		l.sleep(0)
		l.fake.set("a")
		l.stopNow()
		r, _, _ := h.Find(context.Background(), a.ID)
		r.Deliveries[0].Next = time.Now().Add(dueSoon)
		h.Update(Change{ID: a.ID, State: WritePending, Deliveries: r.Deliveries})
		l.plan.Backoff = Backoff{Base: ms, Cap: 10 * ms, Jitter: ms}
		l.reopen()
		l.sleep(11 * ms)
		require.Equal(l.t, "done a=done", l.states(a.ID))
	})
}

func TestWhoIsGoneAfterARestart(t *testing.T) {
	gone := map[string]func(l *lab) string{
		"backend": func(l *lab) string {
			l.pool.members = []*backend.Backend{l.b["a"]}
			return "done a=done b=cancelled"
		},
		"pool": func(l *lab) string {
			l.engine.plans = func(string, string) *Plan { return nil }
			return "done a=done b=cancelled"
		},
		"route": func(l *lab) string {
			p := *l.plan
			p.Route, p.Success = "", []int{201, 202}
			l.fake.set("b", says(202))
			l.engine.plans = func(string, string) *Plan { return &p }
			return "done a=done b=done"
		},
	}
	for name, change := range gone {
		t.Run(name, func(t *testing.T) {
			both(t, []string{"a", "b"}, func(l *lab, _ *hooked) {
				l.fake.set("b", refuses())
				var all []Answer
				for i := range 5 {
					all = append(all, l.put("ada", fmt.Sprint("/", i)))
				}
				want := change(l)
				l.b["b"].DialSucceeded()
				l.reopen()
				l.sleep(10 * time.Minute)
				for _, a := range all {
					require.Equal(l.t, want, l.states(a.ID))
				}
				if name != "route" {
					require.Equal(l.t, 5, l.told("settled  b cancelled removed"))
				}
				l.atRest()
			})
		})
	}
}

// damaging is a journal one of whose records proves to be damaged when it is
// read, as Backlog tells it.
type damaging struct {
	*hooked
	id string
}

func (d *damaging) Due(ctx context.Context, pool, name string, before time.Time, limit int) ([]Record, error) {
	rs, err := d.hooked.Due(ctx, pool, name, before, limit)
	for i := range rs {
		if rs[i].ID != d.id {
			continue
		}
		d.id = ""
		r := &rs[i]
		r.State, r.Write = WriteParked, Write{}
		for j := range r.Deliveries {
			if s := &r.Deliveries[j]; s.State == DeliveryPending {
				s.State, s.Reason = DeliveryParked, ReasonDamaged
			}
		}
		d.Update(Change{ID: r.ID, State: r.State, Deliveries: r.Deliveries})
		d.mu.Lock()
		d.records[r.ID].Write = Write{}
		d.mu.Unlock()
	}
	return rs, err
}

func TestADamagedWriteIsToldOnceAsParked(t *testing.T) {
	durable(t, []string{"a", "b"}, 0, func(l *lab, h *hooked) {
		l.fake.set("b", refuses())
		first, second := l.put("ada", "/1"), l.put("ada", "/2")
		l.engine.journal = &damaging{hooked: h, id: first.ID}
		l.b["b"].DialSucceeded()
		l.fake.set("b")
		l.reopen()
		l.sleep(time.Minute)
		require.Equal(l.t, "parked a=done b=parked", l.states(first.ID))
		require.Equal(l.t, "pending a=done b=pending", l.states(second.ID), "its key waits")
		require.Equal(l.t, 1, l.told("settled  b parked damaged"))
		want := []Count{{Pool: "users", Pending: 1, Parked: 1}}
		require.Equal(l.t, want, l.engine.Counts())
		l.reopen()
		l.sleep(time.Minute)
		require.Equal(l.t, 1, l.told("settled  b parked damaged"))
		require.Equal(l.t, want, l.engine.Counts())
		require.Equal(l.t, outcome.DeliverySettled, outcomeCode(l.retry(first.ID, "b")))
		require.NoError(l.t, l.skip(first.ID, "b"))
		l.sleep(time.Minute)
		require.Equal(l.t, "done a=done b=done", l.states(second.ID))
		require.Equal(l.t, []Count{{Pool: "users"}}, l.engine.Counts())
		require.Empty(l.t, l.engine.writes)
	})
}

func TestNothingIsTakenBeforeTheBacklogIsKnown(t *testing.T) {
	durable(t, []string{"a"}, 0, func(l *lab, h *hooked) {
		l.fake.set("a", refuses())
		l.later("/1")
		l.sleep(0)
		l.fake.set("a")
		h.on("Totals", func(*Record) error { return errors.New("I/O error") })
		tries := len(l.calls("a"))
		l.reopen()
		_, err := l.submit(Write{Method: "POST", Target: "/2"})
		require.Equal(l.t, outcome.StorageUnavailable, outcomeCode(err))
		require.Equal(l.t, outcome.StorageUnavailable, outcomeCode(l.skip("x", "a")))
		l.sleep(time.Minute)
		require.Len(l.t, l.calls("a"), tries)
		h.on("Totals", nil)
		l.b["a"].DialSucceeded()
		l.sleep(2 * again)
		require.Len(l.t, l.calls("a"), tries+1, "it is tried again without any client")
		l.later("/2")
		l.sleep(0)
		l.atRest()
	})
}

func TestAClientHasPatienceWithABacklogOnly(t *testing.T) {
	durable(t, []string{"a"}, 0, func(l *lab, h *hooked) {
		h.on("Totals", pause(time.Minute))
		l.stopNow()
		l.engine = New(Options{Sender: l.fake, Journal: h, Jitter: none})
		go func() { _ = l.engine.takeUp(context.Background()) }()
		l.sleep(0)
		began := time.Now()
		_, err := l.submit(of("ada", "/1"))
		require.Equal(l.t, outcome.StorageUnavailable, outcomeCode(err))
		require.Equal(l.t, patience, time.Since(began))
		l.sleep(time.Minute)
		_, err = l.submit(of("ada", "/1"))
		require.NoError(l.t, err)
	})
}

// Reads that overlap without end must not keep a write from coming back.
func TestReadsThatOverlapHoldNothingUp(t *testing.T) {
	durable(t, []string{"a"}, 1, func(l *lab, _ *hooked) {
		l.fake.set("a", refuses())
		l.later("/0")
		l.sleep(0)
		l.engine.beginRead()
		a := l.later("/1")
		l.sleep(0)
		require.NotContains(l.t, l.engine.writes, a.ID, "else this tests nothing")
		l.restart("a")
		l.sleep(time.Minute)
		require.Equal(l.t, "done a=done", l.states(a.ID))
	})
}

// big is a journal that reads few records at once, as it does when they are big.
type big struct{ *hooked }

func (b big) Due(ctx context.Context, pool, backend string, before time.Time, limit int) ([]Record, error) {
	return b.hooked.Due(ctx, pool, backend, before, min(limit, 17))
}

func TestABacklogOfBigWritesDoesNotPause(t *testing.T) {
	durable(t, []string{"a"}, 0, func(l *lab, h *hooked) {
		l.fake.set("a", refuses())
		for i := range 170 {
			l.later(fmt.Sprintf("/%d", i))
		}
		l.fake.set("a", ok().in(100*ms))
		l.engine.journal = big{h}
		l.reopen()
		l.restart("a")
		l.fake.set("a", ok().in(100*ms))
		l.sleep(5 * time.Second)
		require.Zero(l.t, l.engine.Counts()[0].Pending)
	})
}
