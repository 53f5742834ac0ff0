package balance

import (
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
)

// What a key's backend is must not change from one version of lb to the next:
// several may run side by side.
func TestHashIsTheSameForever(t *testing.T) {
	backends := set(5)
	at := func(p Picker) (names string) {
		for key := range uint64(24) {
			b := p.Pick(&Query{Key: key * 0x0123456789abcdef})
			b.End()
			names += b.ID
		}
		return names
	}
	require.Equal(t, "bbeeabdbbaaeabcceadebbcb", at(hashing(0)(backends, nil)))
	for i, b := range backends {
		b.SetTraits(1+i, nil)
	}
	require.Equal(t, "beeeedddbddeadccecdececb", at(hashing(0)(backends, nil)))
}

func TestMixIsABijectionWithoutPattern(t *testing.T) {
	// Keys that differ in one bit differ in about half of the bits of the score.
	random := rand.New(rand.NewPCG(3, 4))
	flipped := 0
	for range 1000 {
		x := random.Uint64()
		for bit := range 64 {
			d := mix(x) ^ mix(x^1<<bit)
			require.NotZero(t, d)
			for ; d != 0; d &= d - 1 {
				flipped++
			}
		}
	}
	require.InDelta(t, 32, float64(flipped)/64000, 0.1)
}

// within reports whether no backend has more in flight than the bound allows.
func within(c float64, backends []*backend.Backend, slack float64) bool {
	total, weights := inFlight(backends), 0
	for _, b := range backends {
		weights += b.Weight()
	}
	for _, b := range backends {
		if float64(b.InFlight()) > math.Ceil(c*float64(total)*float64(b.Weight())/float64(weights))+slack {
			return false
		}
	}
	return true
}

func TestBoundedLoadHoldsAtEveryMoment(t *testing.T) {
	for _, c := range []float64{1, 1.25, 2} {
		for _, weights := range [][]int{{1, 1, 1, 1}, {1, 2, 3, 10}, {1, 1}} {
			backends := heavy(weights...)
			picker := hashing(c)(backends, nil)
			for i := range 2000 { // one hot key, and some others
				q := &Query{Key: 7}
				if i%5 == 0 {
					q.Key = rand.Uint64()
				}
				before := make([]int64, len(backends))
				for k, b := range backends {
					before[k] = b.InFlight()
				}
				b := picker.Pick(q)
				require.NotNil(t, b)
				grown := []*backend.Backend{}
				for k, other := range backends {
					if other.InFlight() > before[k] {
						grown = append(grown, other)
					}
				}
				require.Equal(t, []*backend.Backend{b}, grown)
				require.True(t, within(c, backends, 0), "bound %v, weights %v, pick %d", c, weights, i)
			}
		}
	}
}

func TestBoundedLoadKeepsAKeyAtHomeWhileThereIsRoom(t *testing.T) {
	backends := set(4)
	home := hashing(0)(backends, nil).Pick(&Query{Key: 7})
	home.End()
	for _, b := range backends {
		for range 10 {
			b.TryBegin()
		}
	}
	picker := hashing(1.25)(backends, nil)
	require.Same(t, home, picker.Pick(&Query{Key: 7}))
	for range 4 {
		require.Same(t, home, picker.Pick(&Query{Key: 7}))
	}
	require.NotSame(t, home, picker.Pick(&Query{Key: 7}))
	require.EqualValues(t, 15, home.InFlight(), "1.25 × 45 / 4 is more than 14, 1.25 × 46 / 4 less than 15")
}

func TestBoundedLoadRefusesNobody(t *testing.T) {
	backends := set(3)
	picker := hashing(1)(backends, nil)
	for _, b := range backends[1:] {
		b.SetLimit(1)
	}
	for range 50 {
		require.NotNil(t, picker.Pick(newcomer()), "two are full: the third takes more than its share")
	}
	require.EqualValues(t, 48, backends[0].InFlight())
}

func TestBoundedLoadUnderConcurrency(t *testing.T) {
	const workers = 8
	backends := set(5)
	picker := hashing(1.25)(backends, nil)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range 500 {
				picker.Pick(&Query{Key: 7})
			}
		})
	}
	wg.Wait()
	require.True(t, within(1.25, backends, workers), "no more beyond the bound than pick at the same moment")
}

func TestHashGoesToTheNextBestWhenTheBestIsTakenAway(t *testing.T) {
	backends := set(6)
	picker := hashing(0)(backends, nil)
	q := &Query{Key: 99}
	var way []string // where the key goes as its backends fail one by one
	for b := picker.Pick(q); b != nil; b = picker.Pick(q) {
		b.End()
		q.Exclude(b)
		way = append(way, b.ID)
	}
	require.Len(t, way, 6)
	for i := range way {
		rest := []*backend.Backend{}
		for _, b := range backends {
			if tried := way[:i]; !contains(tried, b.ID) {
				rest = append(rest, b)
			}
		}
		b := hashing(0)(rest, nil).Pick(&Query{Key: 99})
		b.End()
		require.Equal(t, way[i], b.ID, "the order does not depend on who else is there")
	}
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}
