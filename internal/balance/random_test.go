package balance

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestP2CPicksTheLessLoadedOfTwo(t *testing.T) {
	backends := set(2)
	for range 5 {
		backends[0].TryBegin()
	}
	require.Equal(t, []int{0, 5}, counts(newP2C(backends, nil), backends, 5), "of two it compares both")

	backends = heavy(4, 1)
	require.Equal(t, []int{80, 20}, counts(newP2C(backends, nil), backends, 100))

	backends = set(10)
	for range 1000 {
		backends[3].TryBegin()
	}
	require.Zero(t, counts(newP2C(backends, nil), backends, 900)[3], "the most loaded one loses against anybody")
}

// The point of the second choice: the longest queue is a few longer than the
// average, not many.
func TestP2CKeepsTheLongestQueueShort(t *testing.T) {
	backends := set(100)
	longest := 0
	for _, n := range counts(newP2C(backends, nil), backends, 10_000) {
		longest = max(longest, n)
	}
	require.LessOrEqual(t, longest, 106)
}

func TestTheLastFreeOneIsFoundByChance(t *testing.T) {
	for name, factory := range map[string]Factory{"random": newRandom, "p2c": newP2C} {
		for _, n := range []int{2, 7, 12, 1000} {
			backends := set(n)
			for _, b := range backends {
				b.SetLimit(1)
			}
			picker := factory(backends, nil)
			for range n {
				require.NotNil(t, picker.Pick(new(Query)), "%s of %d", name, n)
			}
			require.Nil(t, picker.Pick(new(Query)))
		}
	}
}

// With most of them full, the draws mostly fail; who is found then must hardly
// hang on who stands beside whom: a walk to the next free one would give one of
// these next to nothing.
func TestTheFreeOnesAreFoundAlikeByChance(t *testing.T) {
	for name, factory := range map[string]Factory{"random": newRandom, "p2c": newP2C} {
		backends := set(101)
		for i, b := range backends {
			if i != 0 && i != 1 && i != 50 { // before each of them stand another number of full ones
				b.SetLimit(1)
				b.TryBegin()
			}
		}
		got := idleCounts(factory(backends, nil), backends, 9000)
		for _, i := range []int{0, 1, 50} {
			require.InDelta(t, 3000, got[i], 600, "%s: %d, %d, %d", name, got[0], got[1], got[50])
		}
	}
}
