package fanout_test

import (
	"context"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/fanout"
	"lb/internal/fanout/journaltest"
)

func TestMemoryIsAJournal(t *testing.T) {
	journaltest.Run(t, func(*testing.T) fanout.Journal { return fanout.NewMemory() })
}

func settle(t *testing.T, m *fanout.Memory, id string) {
	t.Helper()
	require.NoError(t, m.Admit(t.Context(), &fanout.Record{
		ID: id, State: fanout.WritePending,
		Write: fanout.Write{Method: "POST", Target: "/x", Body: []byte("secret"), Fields: []fanout.Field{{Name: "Authorization", Value: "x"}}},
	}))
	m.Update(fanout.Change{ID: id, State: fanout.WriteDone})
}

func has(m *fanout.Memory, id string) bool {
	_, ok, _ := m.Find(context.Background(), id)
	return ok
}

func TestMemoryForgetsSettledWritesByNumber(t *testing.T) {
	m := fanout.NewMemory()
	require.NoError(t, m.Admit(t.Context(), &fanout.Record{ID: "pending", State: fanout.WritePending}))
	for i := range 10_000 {
		settle(t, m, strconv.Itoa(i))
	}
	require.True(t, has(m, "0"))
	settle(t, m, "one more")
	require.False(t, has(m, "0"))
	require.True(t, has(m, "1"))
	require.True(t, has(m, "one more"))
	require.True(t, has(m, "pending"))
}

func TestMemoryForgetsSettledWritesByAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := fanout.NewMemory()
		require.NoError(t, m.Admit(t.Context(), &fanout.Record{ID: "pending", State: fanout.WritePending}))
		settle(t, m, "old")
		time.Sleep(time.Hour)
		settle(t, m, "young")
		time.Sleep(23*time.Hour - time.Nanosecond)
		require.True(t, has(m, "old"))
		time.Sleep(time.Nanosecond)
		require.False(t, has(m, "old"))
		require.True(t, has(m, "young"))
		require.True(t, has(m, "pending"))
	})
}

func TestMemoryDropsBodyAndFieldsOfSettledWrites(t *testing.T) {
	m := fanout.NewMemory()
	settle(t, m, "one")
	r, ok, err := m.Find(t.Context(), "one")
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, fanout.Write{Method: "POST", Target: "/x"}, r.Write)
}

// A parked write waits for an operator, however many settle meanwhile.
func TestMemoryKeepsParkedWrites(t *testing.T) {
	m := fanout.NewMemory()
	require.NoError(t, m.Admit(t.Context(), &fanout.Record{ID: "parked", State: fanout.WritePending, Write: fanout.Write{Body: []byte("x")}}))
	m.Update(fanout.Change{ID: "parked", State: fanout.WriteParked})
	for i := range 10_001 {
		settle(t, m, strconv.Itoa(i))
	}
	require.False(t, has(m, "0"))
	r, ok, err := m.Find(t.Context(), "parked")
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, "x", string(r.Write.Body))
}
