package balance

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLeastConnComparesByWeight(t *testing.T) {
	backends := heavy(3, 1)
	picker := newLeastConn(backends, nil)
	require.Equal(t, "a b a a b a a a b a a a", turns(picker, 12))
}

func TestLeastConnRotatesAmongTheEquallyLoaded(t *testing.T) {
	backends := heavy(2, 1, 2, 1)
	for i, n := range []int{4, 2, 4, 9} {
		for range n {
			backends[i].TryBegin()
		}
	}
	require.Equal(t, "abcabcabc", order(newLeastConn(backends, nil), 9), "4/2, 2/1, 4/2, and d has too much")
}

func TestLeastConnRemembersRetriesApart(t *testing.T) {
	backends := set(4)
	picker := newLeastConn(backends, nil)
	require.Equal(t, "ab", order(picker, 2))
	names := ""
	for range 6 {
		q := &Query{Retry: true}
		q.Exclude(backends[0])
		b := picker.Pick(q)
		b.End()
		names += b.ID
	}
	require.Equal(t, "bcdbcd", names)
	require.Equal(t, "cd", order(picker, 2))
}

func TestLeastConnInASlowStart(t *testing.T) {
	backends := set(2)
	for range 100 {
		backends[0].TryBegin()
	}
	backends[1].SetShare(100)
	picker := newLeastConn(backends, nil)
	counts(picker, backends, 40)
	require.InDelta(t, 11, backends[1].InFlight(), 2, "a tenth of what the other has")
	backends[1].SetShare(1000)
	counts(picker, backends, 50)
	require.Greater(t, backends[1].InFlight(), int64(50))
}

func TestLeastTime(t *testing.T) {
	backends := set(3)
	now := time.Now()
	for i, ms := range []int{10, 20, 40} {
		backends[i].Speed.Observe(now, time.Duration(ms)*time.Millisecond)
	}
	picker := newLeastTime(backends, nil)
	// 10·1, 10·2 = 20·1, 10·3, 10·4 = 20·2 = 40·1, …
	require.Equal(t, "aaaa", order(picker, 4), "the quickest while it is idle")
	got := counts(picker, backends, 70)
	require.Equal(t, []int{40, 20, 10}, got)
}

func TestLeastTimeComparesByWeight(t *testing.T) {
	backends := heavy(1, 4)
	now := time.Now()
	backends[0].Speed.Observe(now, 10*time.Millisecond)
	backends[1].Speed.Observe(now, 30*time.Millisecond)
	require.Equal(t, "bbb", order(newLeastTime(backends, nil), 3), "30/4 is less than 10/1")
}

func TestLeastTimeTriesAnUnknownOneOnce(t *testing.T) {
	backends := set(3)
	now := time.Now()
	backends[0].Speed.Observe(now, time.Hour)
	backends[1].Speed.Observe(now, time.Hour)
	picker := newLeastTime(backends, nil)
	require.Equal(t, []int{49, 50, 1}, func() []int {
		got := counts(picker, backends, 100)
		if got[0] > got[1] {
			got[0], got[1] = got[1], got[0]
		}
		return got
	}(), "one request, and no more before that is answered")
	backends[2].Speed.Observe(now, time.Millisecond)
	require.Equal(t, []int{0, 0, 100}, counts(picker, backends, 100))
}

// If the best is taken away between the comparison and the claim, the next best
// gets the request.
func TestLowestLooksAgain(t *testing.T) {
	backends := set(4)
	for _, b := range backends {
		b.SetLimit(1)
	}
	p := newLowest(backends, nil)
	asked := 0
	b := p.pick(new(Query), func(i int) float64 {
		if asked++; asked == 4 {
			backends[1].TryBegin() // somebody is quicker
		}
		return []float64{4, 1, 2, 3}[i]
	})
	require.Same(t, backends[2], b)

	backends[2].End()
	backends[1].End()
	b = p.pick(new(Query), func(i int) float64 {
		for _, other := range backends[1:] {
			other.TryBegin() // whoever looks best
		}
		return float64(-i)
	})
	require.Same(t, backends[0], b)
}

func TestLowestTakesAnybodyInTheEnd(t *testing.T) {
	backends := set(rescans + 2)
	for _, b := range backends {
		b.SetLimit(1)
	}
	best := 0
	p := newLowest(backends, nil)
	b := p.pick(new(Query), func(i int) float64 {
		if i == len(backends)-1 { // the comparison is over, and somebody quicker
			backends[best].TryBegin()
			best++
		}
		return float64(i)
	})
	require.Same(t, backends[rescans], b)
}
