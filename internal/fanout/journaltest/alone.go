package journaltest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/fanout"
)

// A write is alone when no other of its key waits for anything.
func aloneIsAsItStands(t *testing.T, j fanout.Journal) {
	ada, bob := fanout.Key{1}, fanout.Key{2}
	first, second, other := ordered(t, j, "first", ada), ordered(t, j, "second", ada), ordered(t, j, "other", bob)
	require.True(t, first.Alone)
	require.False(t, second.Alone)
	require.True(t, other.Alone)
	require.False(t, admit(t, j, "unordered").Alone, "it has no key to be alone in")

	dueNow := func() map[string]bool {
		t.Helper()
		rs, err := j.Due(t.Context(), "users", "a", time.Now().Add(time.Hour), 10)
		require.NoError(t, err)
		alone := map[string]bool{}
		for _, r := range rs {
			alone[r.ID] = r.Alone
		}
		return alone
	}
	require.Equal(t, map[string]bool{"first": false, "other": true, "unordered": false}, dueNow())

	move := func(r *fanout.Record, w fanout.State, d fanout.DeliveryState) {
		c := fanout.Change{ID: r.ID, Seq: r.Seq, State: w}
		for _, b := range []string{"a", "b"} {
			c.Deliveries = append(c.Deliveries, fanout.Delivery{Backend: b, State: d, Next: r.Created})
		}
		j.Update(c)
	}
	move(first, fanout.WriteParked, fanout.DeliveryParked)
	r, ok, err := j.Head(t.Context(), "users", "a", ada)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, "first", r.ID)
	require.False(t, r.Alone, "a parked one waits, and keeps others waiting")

	move(first, fanout.WriteRejected, fanout.DeliveryHeld)
	require.Equal(t, map[string]bool{"second": true, "other": true, "unordered": false}, dueNow(), "a rejected one waits for nothing")
	require.False(t, ordered(t, j, "third", ada).Alone)
	move(second, fanout.WriteDone, fanout.DeliveryDone)
	require.True(t, dueNow()["third"])
}
