package main

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSyncsAreCountedOnce(t *testing.T) {
	const log = `11 1700000000.500000 fdatasync(5) = 0 (DELAYED)
11 1700000001.000000 fdatasync(5 <unfinished ...>
12 1700000001.200000 fsync(7)    = 0 (DELAYED)
11 1700000001.300000 <... fdatasync resumed>) = 0 (DELAYED)
12 1700000001.400000 --- SIGURG {si_signo=SIGURG} ---
12 1700000001.900000 fdatasync(5) = -1 EIO (Input/output error)
11 1700000002.000000 fdatasync(5) = 0 (DELAYED)
12 1700000002.100000 +++ exited with 0 +++
`
	from := time.Unix(1700000001, 0)
	n, err := countSyncs(strings.NewReader(log), from, from.Add(time.Second))
	require.NoError(t, err)
	require.Equal(t, 3, n, "those that began in that second, whoever interrupted them")
}

func TestAFigureIsHeldToItsLimit(t *testing.T) {
	for _, test := range []struct {
		value float64
		bound bound
		pass  bool
	}{
		{1, atMost, true}, {1.01, atMost, false}, {-1, atMost, true},
		{1, atLeast, true}, {0.99, atLeast, false},
	} {
		f := held("a", test.value, "", test.bound, 1)
		require.Equal(t, test.pass, *f.Pass, "%v %s 1", test.value, test.bound)
		r := report{Results: []result{{Figures: []figure{told("b", 5, "")}}, {Figures: []figure{f}}}}
		require.Equal(t, !test.pass, r.missed())
	}
	require.False(t, (&report{Results: []result{{Figures: []figure{told("b", 5, "")}}}}).missed(), "what only explains is held to nothing")
}

func TestQuantile(t *testing.T) {
	all := []float64{5, 1, 4, 2, 3}
	require.InDelta(t, 3, median(all), 0)
	require.InDelta(t, 1, quantile(all, 0), 0)
	require.InDelta(t, 5, quantile(all, 1), 0)
	require.Zero(t, median(nil))
	require.Equal(t, []float64{5, 1, 4, 2, 3}, all, "what was measured keeps its order")
}
