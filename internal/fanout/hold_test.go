package fanout

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
)

// maintain begins a backend's maintenance; enable ends it.
func (l *lab) maintain(name string) { l.b[name].SetState(backend.State{Admin: backend.Maintenance}) }
func (l *lab) enable(name string)   { l.b[name].SetState(backend.State{}) }

func TestMaintenanceHoldsDeliveries(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(l *lab) {
		l.maintain("b")
		a := l.mustPost("/x")
		require.True(t, a.Pending)
		require.Equal(t, 1, a.Acked)
		require.Zero(t, l.passed(), "the client does not wait for whom an operator took out")
		l.sleep(10 * time.Minute)
		require.Empty(t, l.calls("b"))
		d := l.status(a.ID).Deliveries[1]
		require.Equal(t, DeliveryPending, d.State)
		require.Zero(t, d.Attempts)
		require.Nil(t, d.NextAttempt, "nobody knows when the operator is done")
		l.sleep(50 * ms)
		l.enable("b")
		l.sleep(reachPoll)
		require.Len(t, l.calls("b"), 1)
		require.Equal(t, "done a=done b=done", l.states(a.ID))
	})
}

func TestMaintenanceLetsRunningAttemptsEnd(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		l.plan.Wait = 0
		l.fake.set("a", says(500).in(time.Second))
		a := l.mustPost("/x")
		l.sleep(time.Second / 2)
		l.maintain("a")
		l.sleep(time.Second / 2)
		require.Equal(t, 1, l.status(a.ID).Deliveries[0].Attempts)
		l.sleep(time.Minute)
		require.Len(t, l.calls("a"), 1, "the retry waits")
		l.fake.set("a")
		l.enable("a")
		l.sleep(reachPoll)
		require.Equal(t, "done a=done", l.states(a.ID))
	})
}

func TestTheNextWriteWakesWhatMaintenanceHeld(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		l.maintain("a")
		for range 2 * laneWidth {
			require.True(t, l.mustPost("/x").Pending)
		}
		l.sleep(50 * ms) // not at a poll
		l.enable("a")
		require.Equal(t, 201, l.mustPost("/y").Status)
		l.sleep(0)
		require.Equal(t, 50*ms, l.passed())
		require.Equal(t, []Count{{Pool: "users"}}, l.engine.Counts())
		require.Len(t, l.calls("a"), 2*laneWidth+1)
	})
}

func TestOneInMaintenanceDoesNotHoldUpTheOthers(t *testing.T) {
	bubble(t, []string{"a", "b", "c"}, func(l *lab) {
		l.maintain("b")
		l.fake.set("c", ok().in(time.Second))
		a := l.mustPost("/x")
		require.True(t, a.Pending)
		require.Equal(t, 2, a.Acked)
		require.Equal(t, time.Second, l.passed(), "it waits for c, which was well")
	})
}

func TestAgeParksInMaintenanceToo(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(l *lab) {
		l.plan.MaxAge = time.Hour
		l.maintain("b")
		a := l.mustPost("/x")
		l.sleep(time.Hour)
		require.Equal(t, "parked a=done b=parked", l.states(a.ID))
	})
}

func TestLaneOnHold(t *testing.T) {
	l := laneWith(map[uint64]float64{1: 0})
	for _, unreachable := range []bool{false, true} {
		d, wake := l.next(at(0), unreachable, true)
		require.Nil(t, d)
		require.Equal(t, at(0).Add(reachPoll), wake)
	}
	seqs, _ := started(l, at(0), false)
	require.Equal(t, []uint64{1}, seqs)
	_, wake := l.next(at(0), false, true)
	require.Zero(t, wake, "nothing waits, so nobody looks")
}
