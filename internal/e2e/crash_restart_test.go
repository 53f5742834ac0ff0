package e2e

import (
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Promise: a restart under load and faults, as every deployment makes one, loses
// nothing: what was unfinished goes on after it.
func TestRestartUnderLoad(t *testing.T) {
	t.Parallel()
	c := newCrashTest(t, binary)
	heal := c.plague()
	defer heal()
	c.load.start(8)
	for range scaled(3, 20) {
		life := c.live()
		c.letPass(life, 500*time.Millisecond)
		c.stop(life)
	}
	heal()
	life := c.live()
	c.load.end()
	c.settle(life)
	c.verify(c.history(0))
}

// Promise: what waits for a backend that is down waits through restarts of
// either kind, in the order in which it was admitted.
func TestRestartKeepsOrder(t *testing.T) {
	t.Parallel()
	c := newCrashTest(t, binary)
	away := c.backends[2]
	away.down()
	life := c.live()
	write := func(target string) {
		require.Equal(t, endAccepted, c.load.write(target, "u", "").End)
	}
	write("/register")
	for range 5 {
		write("/changePassword")
	}
	c.stop(life)

	life = c.live()
	poll(t, patience, "all to be pending", func() bool { return life.pending() == 6 })
	write("/changePassword")
	life.kill()
	c.bury(life)

	life = c.live()
	poll(t, patience, "all to be pending", func() bool { return life.pending() == 7 })
	away.up()
	final := c.load.write("/changePassword", "u", "key")
	c.settle(life)
	c.verify(c.history(0))
	seen, users := away.record()
	require.Equal(t, final.Value, users["u"])
	require.Equal(t, 8+1, len(seen), "each came once, and that of settle")
}

// Promise: ten thousand writes (two thousand in short runs) that wait for a
// backend survive kill -9, and drain in order when it is back.
func TestRestartDrainsABacklog(t *testing.T) {
	t.Parallel()
	const clients, users = 32, 100
	backlog := 2_000
	if os.Getenv("LB_CRASH_CYCLES") != "" {
		backlog = 10_000
	}
	c := newCrashTest(t, binary)
	away := c.backends[1]
	away.down()
	life := c.live()
	var sent atomic.Int64
	for range clients {
		c.load.running.Go(func() {
			for n := sent.Add(1); n <= int64(backlog); n = sent.Add(1) {
				c.load.write("/changePassword", fmt.Sprintf("u%d", n%users), "")
			}
		})
	}
	c.load.end()
	require.Equal(t, map[string]int{"202": backlog}, c.load.ends)
	poll(t, patience, "the others", func() bool { return life.pending() == float64(backlog) })
	life.kill()
	c.bury(life)

	life = c.live()
	poll(t, patience, "all to be pending", func() bool { return life.pending() >= float64(backlog) }) // more, if outcomes were not noted
	away.up()
	began := time.Now()
	c.settle(life)
	t.Logf("drained in %v", time.Since(began).Round(time.Millisecond))
	c.verify(c.history(0))
	seen, _ := away.record()
	require.Equal(t, backlog+1, len(seen), "each came once, and that of settle")
}
