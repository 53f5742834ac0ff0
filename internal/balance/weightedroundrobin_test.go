package balance

import (
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
)

// heavy returns backends with these weights.
func heavy(weights ...int) []*backend.Backend {
	backends := set(len(weights))
	for i, w := range weights {
		backends[i].SetTraits(w, nil)
	}
	return backends
}

func TestWeightedRoundRobinIsSmooth(t *testing.T) {
	for want, weights := range map[string][]int{
		"aabacaa" + "aabacaa": {5, 1, 1},
		"abcabc":              {7, 7, 7},
		"abaaba":              {1000, 500},
		"abcaabcaab":          {4, 2, 2},
		"aaaa":                {3},
	} {
		require.Equal(t, want, order(newWeightedRoundRobin(heavy(weights...), nil), len(want)), "%v", weights)
	}
}

// textbook is the smooth order as it is usually written down.
func textbook(weights []int) (turns []int32) {
	saved, sum := make([]int, len(weights)), 0
	for _, w := range weights {
		sum += w
	}
	for range sum {
		best := 0
		for i, w := range weights {
			saved[i] += w
			if saved[i] > saved[best] {
				best = i
			}
		}
		saved[best] -= sum
		turns = append(turns, int32(best))
	}
	return turns
}

func TestSmoothIsTheTextbookOrder(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		weights := make([]int, 1+random.IntN(12))
		for i := range weights {
			weights[i] = 1 + random.IntN(1+random.IntN(40))
		}
		require.Equal(t, textbook(weights), smooth(weights), "%v", weights)
	}
	require.Empty(t, smooth(nil))
}

func TestFitBoundsTheCycle(t *testing.T) {
	require.Equal(t, []int{2, 1, 3}, fit([]int{200, 100, 300}), "what they have in common goes")
	require.Equal(t, []int{1000, 999, 1}, fit([]int{1000, 999, 1}), "a cycle that is short enough is exact")

	for _, n := range []int{100, 1000, 10_000} {
		weights, sum := make([]int, n), 0
		for i := range weights {
			weights[i] = 1 + (i*7919)%1000
			sum += weights[i]
		}
		fitted := fit(weights)
		turns := 0
		for _, w := range fitted {
			turns += w
		}
		require.LessOrEqual(t, turns, max(minCycle, turnsPerBackend*n)+n)
		scale := float64(max(minCycle, turnsPerBackend*n)) / float64(sum)
		for i, w := range fitted {
			exact := float64(weights[i]) * min(1, scale)
			require.LessOrEqual(t, math.Abs(float64(w)-exact), max(0.5, 1-exact)+1e-9, "a weight of %d", weights[i])
		}
	}

	staircase := make([]int, 10_000)
	for i := range staircase {
		staircase[i] = max(1, i-9000)
	}
	fitted, distinct, turns := fit(staircase), make(map[int]bool), 0
	for _, w := range fitted {
		distinct[w] = true
		turns += w
	}
	require.LessOrEqual(t, len(distinct)*turns, maxSteps)
	require.GreaterOrEqual(t, turns, len(staircase))
}

func TestWeightedRoundRobinIsExactUnderConcurrency(t *testing.T) {
	const workers, each = 12, 700
	backends := heavy(5, 1, 1)
	picker := newWeightedRoundRobin(backends, nil)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				picker.Pick(new(Query))
			}
		})
	}
	wg.Wait()
	for _, b := range backends {
		require.EqualValues(t, workers*each*b.Weight()/7, b.InFlight(), b.ID)
	}
}

func TestWeightedRoundRobinGoesOnAfterAChange(t *testing.T) {
	backends := heavy(5, 1, 1)
	first := newWeightedRoundRobin(backends, nil)
	require.Equal(t, "aaba", order(first, 4))
	second := newWeightedRoundRobin(backends, first)
	require.Equal(t, "caa"+"aab", order(second, 6))
	backends[0].SetTraits(1, nil)
	require.Equal(t, "acaaaab", order(second, 7), "a weight counts from the next picker on")
	require.Len(t, order(newWeightedRoundRobin(backends, second), 9), 9)
}

func TestWeightedRoundRobinSpreadsWhatTheFullOnesLeave(t *testing.T) {
	backends := heavy(1000, 5, 1)
	backends[0].SetLimit(1)
	require.True(t, backends[0].TryBegin())
	got := idleCounts(newWeightedRoundRobin(backends, nil), backends, 6000)
	require.Zero(t, got[0])
	require.InDelta(t, 5000, got[1], 60)
	require.InDelta(t, 1000, got[2], 60)
}

func TestWeightedRoundRobinRetriesByWeight(t *testing.T) {
	backends := heavy(50, 4, 2, 1)
	picker := newWeightedRoundRobin(backends, nil)
	got := make(map[string]int)
	for range 700 {
		q := &Query{Retry: true}
		q.Exclude(backends[0])
		b := picker.Pick(q)
		b.End()
		got[b.ID]++
	}
	require.InDelta(t, 400, got["b"], 4)
	require.InDelta(t, 200, got["c"], 4)
	require.InDelta(t, 100, got["d"], 4)
}

func TestWeightedRoundRobinInASlowStart(t *testing.T) {
	backends := heavy(10, 10, 1)
	backends[0].SetShare(500)
	got := idleCounts(newWeightedRoundRobin(backends, nil), backends, 1600)
	require.InDelta(t, 500, got[0], 25, "%v", got)
	require.InDelta(t, 1000, got[1], 30, "%v", got)
	require.InDelta(t, 100, got[2], 15, "%v", got)
}
