package backend

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// shapes are ways in which durations may lie.
var shapes = map[string]func(*rand.Rand) time.Duration{
	"even":        func(r *rand.Rand) time.Duration { return time.Duration(r.Int64N(int64(time.Second))) },
	"exponential": func(r *rand.Rand) time.Duration { return time.Duration(r.ExpFloat64() * float64(20*time.Millisecond)) },
	"two humps": func(r *rand.Rand) time.Duration {
		return []time.Duration{time.Millisecond, 3 * time.Second}[r.IntN(2)] + time.Duration(r.Int64N(1000))
	},
	"all sizes": func(r *rand.Rand) time.Duration {
		return time.Duration(math.Exp(r.Float64() * math.Log(float64(30*time.Minute))))
	},
	"all the same": func(*rand.Rand) time.Duration { return 17 * time.Millisecond },
}

func TestQuantilesAreWithinAnEighth(t *testing.T) {
	shares := []float64{0, 0.01, 0.25, 0.5, 0.9, 0.99, 1}
	for name, shape := range shapes {
		for seed := range uint64(20) {
			random := rand.New(rand.NewPCG(seed, 2))
			var l Latency
			now := time.Now()
			all := make([]time.Duration, 1+random.IntN(3000))
			for i := range all {
				all[i] = shape(random)
				l.Observe(now, all[i])
			}
			slices.Sort(all)
			got, n := l.Quantiles(now, shares...)
			require.Equal(t, len(all), n)
			for i, share := range shares {
				want := all[max(1, int(math.Ceil(share*float64(n))))-1]
				allowed := max(want/8, 500*time.Nanosecond)
				require.InDelta(t, want, got[i], float64(allowed+1), "%s, seed %d: quantile %v of %d", name, seed, share, n)
			}
		}
	}
}

func TestBucketsFollowOneAnother(t *testing.T) {
	for bucket := range latencyBuckets {
		require.Equal(t, bucket, bucketOf(middle(bucket)), "the middle of a bucket lies in it")
		if bucket > 0 {
			require.Greater(t, middle(bucket), middle(bucket-1))
		}
	}
	require.Zero(t, bucketOf(-time.Second))
	require.Equal(t, latencyBuckets-1, bucketOf(math.MaxInt64))
}

func TestQuantilesOfTheLatest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Latency
		q, n := l.Quantiles(time.Now(), 0, 0.5, 1)
		require.Zero(t, n)
		require.Equal(t, make([]time.Duration, 3), q, "there are none")

		l.Observe(time.Now(), time.Second)
		time.Sleep(latencySpan)
		l.Observe(time.Now(), time.Millisecond)
		q, n = l.Quantiles(time.Now(), 0.5, 1)
		require.Equal(t, 2, n)
		require.InDelta(t, time.Millisecond, q[0], float64(time.Millisecond/8))
		require.InDelta(t, time.Second, q[1], float64(time.Second/8))

		time.Sleep(latencySpan)
		_, n = l.Quantiles(time.Now(), 0.5)
		require.Equal(t, 1, n, "the first span is over")
		l.Observe(time.Now(), time.Minute)
		q, n = l.Quantiles(time.Now(), 0.5)
		require.Equal(t, 2, n, "and its place is taken by the third")
		require.InDelta(t, time.Millisecond, q[0], float64(time.Millisecond/8))
		time.Sleep(10 * latencySpan)
		_, n = l.Quantiles(time.Now(), 0.5)
		require.Zero(t, n)
	})
}

func TestLatencyUnderConcurrency(t *testing.T) {
	const workers, each = 16, 2000
	var l Latency
	now := time.Now()
	l.Observe(now, 0) // so that the span is begun
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := range each {
				l.Observe(now, time.Duration(i)*time.Microsecond)
				_, _ = l.Quantiles(now, 0.5)
			}
		})
	}
	wg.Wait()
	_, n := l.Quantiles(now, 0.5)
	require.Equal(t, workers*each+1, n)
}
