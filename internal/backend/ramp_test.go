package backend

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTakesTurn(t *testing.T) {
	for _, share := range []int{100, 101, 333, 500, 999, 1000} {
		var b Backend
		b.SetShare(share)
		require.Equal(t, share, b.Share())
		taken, gap, longest := 0, 0, 0
		for range 10_000 {
			gap++
			if b.TakesTurn() {
				taken++
				longest, gap = max(longest, gap), 0
			}
		}
		require.Equal(t, share*10, taken, "of 10,000 turns")
		require.LessOrEqual(t, longest, (FullShare+share-1)/share, "evenly spread, with a share of %d", share)
	}
}

func TestAFullShareTakesEveryTurn(t *testing.T) {
	var b Backend
	require.Equal(t, FullShare, b.Share())
	b.SetShare(100)
	b.SetShare(FullShare)
	for range 100 {
		require.True(t, b.TakesTurn())
	}
}
