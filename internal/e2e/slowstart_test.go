package e2e

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Promise: a backend that returns is not overrun. Its share rises over the slow
// start, at no time it is more than twice the fair one, and at last it is that.
func TestSlowStart(t *testing.T) {
	t.Parallel()
	const slowStart = 2 * time.Second
	const checked = ", health: { type: tcp, interval: 200ms, timeout: 200ms, fall: 2 }"
	for name, c := range map[string]struct {
		pool            string // further keys
		leave, comeBack func(t *testing.T, d *daemon, s *server)
	}{
		"after a drain": {
			"",
			func(t *testing.T, d *daemon, _ *server) {
				require.Equal(t, http.StatusOK, d.operate("drain", "b1").Status)
			},
			func(t *testing.T, d *daemon, _ *server) {
				require.Equal(t, http.StatusOK, d.operate("enable", "b1").Status)
			},
		},
		"after its maintenance": {
			checked,
			func(t *testing.T, d *daemon, _ *server) {
				require.Equal(t, http.StatusOK, d.operate("maintenance", "b1").Status)
			},
			func(t *testing.T, d *daemon, _ *server) {
				require.Equal(t, http.StatusOK, d.operate("enable", "b1").Status)
				poll(t, patience, "it to be up", func() bool { return d.instance("b1").State == "up" })
			},
		},
		"after its checks failed": {
			checked,
			func(t *testing.T, d *daemon, s *server) {
				s.stop()
				poll(t, patience, "it to be down", func() bool { return d.instance("b1").State == "down" })
			},
			func(t *testing.T, d *daemon, s *server) {
				s.restart()
				poll(t, patience, "it to be up", func() bool { return d.instance("b1").State == "up" })
			},
		},
		"after its ejection": {
			"",
			func(t *testing.T, d *daemon, s *server) {
				s.stop()
				poll(t, patience, "its ejection", func() bool {
					return d.get("/").Status == http.StatusOK && d.instance("b1").State == "ejected"
				})
			},
			func(t *testing.T, d *daemon, s *server) {
				s.restart()
				poll(t, patience, "it to be up", func() bool {
					return d.get("/").Status == http.StatusOK && d.instance("b1").State == "up"
				})
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := []*ledger{always(http.StatusOK), always(http.StatusOK), always(http.StatusOK)}
			s := startServer(t, all[0])
			d := start(t, listeners+pools(", slow_start: 2s"+c.pool, s.Addr, backend(t, all[1]), backend(t, all[2]))+
				"routes: [{ name: all, match: { path_prefix: / }, proxy: { pool: main } }]\n")
			requireReads(t, d, all, 1, 2, 3) // who is there at the start has its share at once
			c.leave(t, d, s)
			requireReads(t, d, all, 2, 3)
			c.comeBack(t, d, s)

			served := serving(all)
			back := time.Now()
			var order []int // who served the requests, by number
			poll(t, patience, "the slow start to end", func() bool {
				require.Equal(t, http.StatusOK, d.get("/").Status)
				order = append(order, served())
				return time.Since(back) > slowStart
			})
			const stretch = 30
			for from := 0; from+stretch <= len(order); from++ {
				require.LessOrEqual(t, times(order[from:from+stretch], 0), 2*stretch/len(all), "from request %d on", from)
			}
			third := len(order) / 3
			first, second, last := times(order[:third], 0), times(order[third:2*third], 0), times(order[2*third:], 0)
			t.Logf("%d requests, of which b1 got %d, %d and %d in each third", len(order), first, second, last)
			require.Positive(t, first, "it begins with some")
			require.Less(t, first, second)
			require.Less(t, second, last)
			require.Less(t, 3*first, 2*last)
			require.InDelta(t, times(order, 1), times(order, 2), float64(len(order))/20, "the others share what it leaves")
			poll(t, patience, "its full share", func() bool {
				const many = 10 * rounds // the last step of a slow start misses few turns
				before := len(all[0].all())
				for range many {
					d.get("/")
				}
				return len(all[0].all()) == before+many/len(all)
			})
			requireReads(t, d, all, 1, 2, 3)
		})
	}
}

// serving returns what tells which backend, by its index, got the request since
// it was asked last.
func serving(all []*ledger) func() int {
	had := make([]int, len(all))
	look := func() (index int) {
		index = -1
		for i, l := range all {
			if n := len(l.all()); n > had[i] {
				had[i], index = n, i
			}
		}
		return index
	}
	look()
	return look
}

// times returns how often i stands in a list.
func times(list []int, i int) int {
	n := 0
	for _, other := range list {
		if other == i {
			n++
		}
	}
	return n
}
