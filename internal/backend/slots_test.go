package backend

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSlots(t *testing.T) {
	var b Backend
	for range 5 {
		require.True(t, b.TryBegin(), "without a limit there is always one")
		require.False(t, b.Full())
	}
	b.SetLimit(3)
	require.Equal(t, 3, b.Limit())
	require.True(t, b.Full(), "what began before stays")
	for b.InFlight() > 2 {
		require.False(t, b.TryBegin())
		b.End()
	}
	require.False(t, b.Full())
	require.True(t, b.TryBegin())
	require.False(t, b.TryBegin())
	b.SetLimit(4)
	require.True(t, b.TryBegin())
	require.False(t, b.TryBegin())
	require.EqualValues(t, 4, b.InFlight())
	b.SetLimit(0)
	require.True(t, b.TryBegin())
	require.False(t, b.Full())
}

// A hundred at once never have more than the limit.
func TestSlotsAreExact(t *testing.T) {
	const clients, each = 100, 20_000
	for _, limit := range []int{1, 7} {
		var b Backend
		b.SetLimit(limit)
		var inside, most atomic.Int64
		var wg sync.WaitGroup
		for range clients {
			wg.Go(func() {
				for i := range each {
					if !b.TryBegin() {
						continue
					}
					n := inside.Add(1)
					for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
					}
					if i%2 == 0 {
						runtime.Gosched() // so that the others find it taken
					}
					inside.Add(-1)
					b.End()
				}
			})
		}
		wg.Wait()
		require.LessOrEqual(t, most.Load(), int64(limit))
		require.Positive(t, most.Load())
		require.Zero(t, b.InFlight())
	}
}
