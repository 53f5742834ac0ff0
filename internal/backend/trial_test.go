package backend

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTrials(t *testing.T) {
	var b Backend
	period, ok := b.TakeTrial()
	require.True(t, ok, "who is not on trial takes everything")
	require.Zero(t, period)

	first := b.SetTrials(2)
	require.NotZero(t, first)
	for range 2 {
		period, ok = b.TakeTrial()
		require.True(t, ok)
		require.Equal(t, first, period)
	}
	_, ok = b.TakeTrial()
	require.False(t, ok, "they are given out")

	b.ReturnTrial(first)
	period, ok = b.TakeTrial()
	require.True(t, ok, "one came back")
	require.Equal(t, first, period)
	_, ok = b.TakeTrial()
	require.False(t, ok)

	second := b.SetTrials(1)
	require.NotEqual(t, first, second)
	b.ReturnTrial(first)
	period, ok = b.TakeTrial()
	require.True(t, ok)
	require.Equal(t, second, period)
	_, ok = b.TakeTrial()
	require.False(t, ok, "what is left of an earlier period counts no more")

	b.EndTrials()
	b.ReturnTrial(second)
	for range 3 {
		period, ok = b.TakeTrial()
		require.True(t, ok)
		require.Zero(t, period)
	}
	require.Greater(t, b.SetTrials(1), second, "periods are not used again")
}

func TestATrialIsNeverPeriodZero(t *testing.T) {
	var b Backend
	b.trials.word.Store(uint64(1<<32-1) << 32)
	require.EqualValues(t, 1, b.SetTrials(1))
}

func TestTrialsUnderConcurrency(t *testing.T) {
	const workers, each, n = 16, 2000, 3
	var b Backend
	period := b.SetTrials(n)
	var out, most, taken atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				if _, ok := b.TakeTrial(); ok {
					taken.Add(1)
					if now := out.Add(1); now > most.Load() {
						most.Store(now)
					}
					out.Add(-1)
					b.ReturnTrial(period)
				}
			}
		})
	}
	wg.Wait()
	require.LessOrEqual(t, most.Load(), int64(n))
	require.Positive(t, taken.Load())
	for i := range n + 1 {
		_, ok := b.TakeTrial()
		require.Equal(t, i < n, ok, "all came back, and no more than that")
	}
}
