package e2e

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// traces are what a process holds.
type traces struct {
	Goroutines float64
	Files      int
	Series     int
	Heap       float64 // live after the last collection, in MiB
}

// more reports whether t is more than there was.
func (t traces) more(was traces) bool {
	return t.Goroutines > was.Goroutines || t.Files > was.Files || t.Series > was.Series
}

func (d *daemon) traces(t testing.TB) traces {
	t.Helper()
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.cmd.Process.Pid))
	require.NoError(t, err)
	series := 0
	for line := range strings.Lines(d.get(d.Admin + "/metrics").Body) {
		if strings.HasPrefix(line, "lb_") {
			series++
		}
	}
	return traces{d.metric("go_goroutines"), len(files), series, d.metric("go_memstats_heap_alloc_bytes") / (1 << 20)}
}

// Promise: after a thousand reloads of everything that can be reloaded, under
// load, the process holds what it held before.
func TestChaosReloadsLeaveNothing(t *testing.T) {
	t.Parallel()
	var addresses []string
	for range 3 {
		addresses = append(addresses, startReloadBackend(t).Addr)
	}
	world := newReloadWorld(t, addresses)
	world.kept = 1 // so that nothing is left of the load
	d := startReloadable(t, world.String())
	round := func(reloads int) {
		l := startSteadyLoad(t, d.URL, 200)
		for i := range reloads {
			step := reloadSteps[i%len(reloadSteps)]
			step.do(world)
			a := d.reload(t, world.String())
			require.Equal(t, http.StatusOK, a.Status, "%s: %s", step.name, a.Body)
		}
		requireUnharmed(t, l.end())
	}
	settled := func() traces {
		d.client.CloseIdleConnections()
		return d.traces(t)
	}
	cycle := 2 * len(reloadSteps) // all comes and goes again
	round(cycle)
	elapse(t, 6*time.Second) // the longest drain, and idle connections
	before := settled()
	reloads := scaled(2, 1000/cycle) * cycle
	round(reloads)
	after := settled()
	for deadline := time.Now().Add(patience); after.more(before) && time.Now().Before(deadline); <-time.After(50 * time.Millisecond) {
		after = settled() // what is idle, or drains, ends in its own time
	}
	t.Logf("%d reloads: %+v before, %+v after", reloads, before, after)
	require.False(t, after.more(before))
}
