package probe

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestStatuses(t *testing.T) {
	for _, test := range []struct {
		ranges  [][2]int
		text    string
		in, out []int
	}{
		{nil, "", nil, []int{0, 200, 599}},
		{[][2]int{{200, 399}}, "200-399", []int{200, 263, 264, 399}, []int{199, 400, 0, -1, 1000}},
		{[][2]int{{503, 503}, {200, 200}, {204, 204}}, "200,204,503", []int{200, 204, 503}, []int{201, 502, 504}},
		{[][2]int{{200, 299}, {300, 399}}, "200-399", []int{299, 300}, []int{400}},
		{[][2]int{{200, 300}, {250, 399}, {200, 200}}, "200-399", []int{399}, []int{400}},
		{[][2]int{{0, 200}, {599, 1000}}, "200,599", []int{200, 599}, []int{199, 201, 600}},
		{[][2]int{{300, 299}}, "", nil, []int{299, 300}},
	} {
		var s Statuses
		for _, r := range test.ranges {
			s.Add(r[0], r[1])
		}
		require.Equal(t, test.text, s.String())
		for _, n := range test.in {
			require.True(t, s.Contains(n), "%s %d", test.text, n)
		}
		for _, n := range test.out {
			require.False(t, s.Contains(n), "%s %d", test.text, n)
		}
	}
	require.Equal(t, "200-399", DefaultStatuses.String())
}
