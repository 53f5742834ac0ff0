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
	backends[0].Weight = 100
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
	for _, next := range []string{"b", "c", "d"} {
		b := picker.Pick(&q)
		require.Equal(t, next, b.ID, "a retry goes on from where the rotation stands")
		q.Exclude(b)
	}
	require.Nil(t, picker.Pick(&q))
	require.Nil(t, picker.Pick(&q))
	require.Equal(t, "b c d a", turns(picker, 4), "others see the order as if there had been no retry")
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
