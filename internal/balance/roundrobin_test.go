package balance

import (
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
)

// turns makes n first picks and returns the names in order.
func turns(p Picker, n int) string {
	var names []string
	for range n {
		names = append(names, p.Pick(new(Query)).ID)
	}
	return strings.Join(names, " ")
}

func TestRoundRobinRotatesExactly(t *testing.T) {
	picker := newRoundRobin(set(3), nil)
	require.Equal(t, "a b c a b c a b c a", turns(picker, 10))
	require.Equal(t, "b c a", turns(picker, 3))
}

func TestRoundRobinIgnoresWeights(t *testing.T) {
	backends := set(2)
	backends[0].SetTraits(100, nil)
	require.Equal(t, "a b a b", turns(newRoundRobin(backends, nil), 4))
}

func TestRoundRobinIsExactUnderConcurrency(t *testing.T) {
	const workers, each = 12, 1000
	backends := set(3)
	picker := newRoundRobin(backends, nil)
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
		require.EqualValues(t, workers*each/len(backends), b.InFlight(), b.ID)
	}
}

func TestRoundRobinGoesOnAfterAChangeOfTheSet(t *testing.T) {
	backends := set(3)
	first := newRoundRobin(backends, nil)
	require.Equal(t, "a", turns(first, 1))
	second := newRoundRobin(backends[:2], first)
	require.Equal(t, "b a", turns(second, 2), "the rotation does not start over")
	third := newRoundRobin(backends, second)
	require.Equal(t, "a b c", turns(third, 3))
	require.Equal(t, "a", turns(first, 1), "requests that still hold the old set move the same cursor")
	require.Equal(t, "b", turns(third, 1))
}

func TestRoundRobinRetryMovesNoCursor(t *testing.T) {
	picker := newRoundRobin(set(4), nil)
	var q Query
	failed := picker.Pick(&q)
	require.Equal(t, "a", failed.ID)
	q.Exclude(failed)
	q.Retry = true
	for range 3 {
		q.Exclude(picker.Pick(&q)) // somebody else each time, or there is none left too soon
	}
	require.Nil(t, picker.Pick(&q))
	require.Nil(t, picker.Pick(&q))
	require.Equal(t, "b c d a", turns(picker, 4), "others see the order as if there had been no retry")
}

func TestRoundRobinSpreadsRetries(t *testing.T) {
	backends := set(4)
	picker := newRoundRobin(backends, nil)
	got := map[string]int{}
	for range 300 {
		q := Query{Retry: true}
		q.Exclude(backends[0])
		got[picker.Pick(&q).ID]++
	}
	require.Equal(t, map[string]int{"b": 100, "c": 100, "d": 100}, got, "not all to the neighbour of the one that failed")
}

func TestRoundRobinSkipsTheTried(t *testing.T) {
	backends := set(4)
	picker := newRoundRobin(backends, nil)
	var q Query
	for _, b := range []*backend.Backend{backends[0], backends[1], backends[3]} {
		q.Exclude(b)
	}
	require.Equal(t, "c", picker.Pick(&q).ID)
}

func TestRoundRobinAlternatesAroundABackendOnTrial(t *testing.T) {
	backends := set(3)
	picker := newRoundRobin(backends, nil)
	backends[1].SetTrials(1)
	require.Equal(t, "a b c", turns(picker, 3), "its trial comes at its turn")
	require.Equal(t, "a c a c a c a c", turns(picker, 8), "and then the others share its turns evenly")

	backends[0].SetTrials(0)
	require.Equal(t, "c c c", turns(picker, 3))
}

func TestRoundRobinInASlowStart(t *testing.T) {
	for _, test := range []struct {
		name   string
		shares []int
		picks  int
		want   []int
	}{
		{"a tenth of its turns, the rest evenly", []int{1000, 100, 1000, 1000}, 310, []int{100, 10, 100, 100}},
		{"half of its turns", []int{1000, 500}, 300, []int{200, 100}},
		{"two of three at once", []int{100, 1000, 100}, 120, []int{10, 100, 10}},
		{"alone it gets everything", []int{100}, 50, []int{50}},
		{"all alike", []int{100, 100, 100}, 300, []int{100, 100, 100}},
		{"both alike", []int{100, 100}, 300, []int{150, 150}},
		{"all alike, half-way", []int{500, 500, 500}, 300, []int{100, 100, 100}},
	} {
		t.Run(test.name, func(t *testing.T) {
			backends := set(len(test.shares))
			for i, share := range test.shares {
				backends[i].SetShare(share)
			}
			got := counts(newRoundRobin(backends, nil), backends, test.picks)
			for i := range got {
				require.InDelta(t, test.want[i], got[i], 1+float64(test.picks)/50, "%v", got)
			}
		})
	}
}
