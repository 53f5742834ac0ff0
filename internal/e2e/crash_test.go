package e2e

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// crashBinary is lb with crash points, built once.
var crashBinary = sync.OnceValue(func() string {
	file := filepath.Join(filepath.Dir(binary), "lb-crash")
	build := exec.Command("go", "build", raceFlag, "-tags", "crashpoints", "-o", file, "../../cmd/lb")
	if out, err := build.CombinedOutput(); err != nil {
		panic(fmt.Sprintf("%v\n%s", err, out))
	}
	return file
})

// crashPoint is a place in lb where it is killed.
type crashPoint struct {
	name string
	// most bounds at which hit in a process.
	most int
	// stopping: it is reached only by a process that was told to stop.
	stopping bool
}

var crashPoints = []crashPoint{
	{name: "admit.queued", most: 40},
	{name: "journal.before-commit", most: 20},
	{name: "journal.after-commit", most: 20},
	{name: "admit.returned", most: 40},
	{name: "attempt.begin", most: 80},
	{name: "attempt.answered", most: 80},
	{name: "outcome.noted", most: 80},
	{name: "journal.outcomes-committed", most: 20},
	{name: "answer.ready", most: 40},
	{name: "recover.loading", most: 2},
	{name: "journal.retention", most: 1},
	{name: "stop.flushing", most: 1, stopping: true},
}

// crashCycles is how often lb is killed.
func crashCycles(t testing.TB) int {
	text := os.Getenv("LB_CRASH_CYCLES")
	if text == "" {
		return 20
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err, "LB_CRASH_CYCLES is a number")
	return n
}

// crashTest is one lb, killed and started again over the same storage.
type crashTest struct {
	t        testing.TB
	program  string
	world    *crashWorld
	backends []*crashBackend
	load     *crashLoad

	addr, admin, config, dir string
	hits, struck             map[string]int // by crash point
}

func newCrashTest(t testing.TB, program string) *crashTest {
	c := &crashTest{
		t: t, program: program, world: new(crashWorld), dir: t.TempDir(), addr: deadAddress(t), admin: deadAddress(t),
		hits: make(map[string]int), struck: make(map[string]int),
	}
	var addresses []string
	c.backends, addresses = startCrashBackends(t, c.world)
	c.load = newCrashLoad(t, c.world, "http://"+c.addr)
	c.config = configFile(t, durableConfig(c.addr, c.admin, filepath.Join(c.dir, "lb.db"), addresses...))
	return c
}

// durableConfig returns a configuration whose writes are ordered by user and
// whose addresses and storage are the same in every life of lb.
func durableConfig(addr, admin, storage string, backends ...string) string {
	const write = `{ pool: main, wait: 300ms, attempt_timeout: 2s, order_by: { field: username },
      backoff: { base: 20ms, cap: 200ms, jitter: 10ms, max_attempts: 10000 } } }
`
	return fmt.Sprintf("listeners: [{ name: public, address: %q }]\nadmin: { address: %q }\nstorage: { path: %q }\n", addr, admin, storage) +
		pools(", retry_budget: { ratio: 1 }", backends...) + `routes:
  - { name: register, match: { methods: [POST], path: /register }, fanout: ` + write + `  - { name: change, match: { methods: [POST], path: /changePassword }, fanout: ` + write + `  - { name: read, match: { path: /read }, proxy: { pool: main, retry: { attempts: 2, on: [reset] } } }
log: { access: { enabled: false } }
shutdown: { drain: 1s }
`
}

// live starts lb once more, and returns when it listens or has ended.
func (c *crashTest) live(env ...string) *crashLife {
	c.t.Helper()
	for _, b := range c.backends {
		b.settleAccepts()
	}
	c.world.life.Add(1)
	d := &daemon{
		t: c.t, exited: make(chan struct{}), client: newClient(c.t),
		Addr: c.addr, URL: "http://" + c.addr, Admin: "http://" + c.admin,
	}
	hits := c.hitsFile()
	d.cmd, d.stdout, d.stderr = command(c.t, append(env, "LB_CRASH_HITS="+hits), "serve", "-c", c.config)
	d.cmd.Path = c.program
	require.NoError(c.t, d.cmd.Start())
	go func() {
		_ = d.cmd.Wait() // how it ended is read from the state
		close(d.exited)
	}()
	life := &crashLife{daemon: d}
	c.t.Cleanup(func() {
		if !d.hasExited() {
			d.kill()
		}
	})
	poll(c.t, patience, "lb to listen", func() bool {
		conn, err := net.Dial("tcp", c.addr)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil || d.hasExited()
	})
	life.listens.Store(!d.hasExited())
	c.load.current.Store(life)
	return life
}

func (c *crashTest) hitsFile() string { return filepath.Join(c.dir, "hits") }

// killedAt runs one life that dies at a crash point, or is killed if it does not
// come there. It does so at some hit, since each finds other things half done.
func (c *crashTest) killedAt(p crashPoint) {
	life := c.live(fmt.Sprintf("LB_CRASH=%s:%d", p.name, 1+rand.IntN(p.most)))
	if p.stopping {
		c.letPass(life, 300*time.Millisecond)
		life.stopped.Store(true)
		life.terminate()
	}
	c.letPass(life, 2*time.Second)
	if p.stopping {
		c.letPass(life, patience)
	}
	if life.hasExited() && !life.cmd.ProcessState.Exited() {
		c.struck[p.name]++
	}
	c.bury(life)
}

// killed runs one life that is killed at any time, which may be before it
// listens, or while it recovers.
func (c *crashTest) killed() {
	life := c.live()
	c.letPass(life, rand.N(800*time.Millisecond))
	c.bury(life)
}

// letPass returns after a while, or when the process has ended.
func (c *crashTest) letPass(life *crashLife, d time.Duration) {
	select {
	case <-life.exited:
	case <-time.After(d):
	}
}

// bury kills a life if it lives, and takes down what it has left.
func (c *crashTest) bury(life *crashLife) {
	c.t.Helper()
	if !life.hasExited() {
		life.kill()
	}
	for _, bad := range []string{"panic", "DATA RACE", "goroutine "} {
		require.NotContains(c.t, life.log(), bad)
	}
	if life.cmd.ProcessState.Exited() && life.cmd.ProcessState.ExitCode() != 0 {
		require.FailNow(c.t, "lb did not start", lastLines(life.log(), 20))
	}
	noted, err := os.ReadFile(c.hitsFile())
	if err != nil {
		return // it came nowhere
	}
	for name := range strings.Lines(string(noted)) {
		c.hits[strings.TrimSpace(name)]++
	}
	require.NoError(c.t, os.Remove(c.hitsFile()))
}

// plague changes the backends' moods until it is told to end, and then heals
// all. One at most is down at a time: reads must go on.
func (c *crashTest) plague() (end func()) {
	quit, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		down := -1
		for {
			select {
			case <-time.After(rand.N(300 * time.Millisecond)):
			case <-quit:
				return
			}
			i := rand.IntN(len(c.backends))
			switch {
			case down == i:
				c.backends[i].up()
				down = -1
			case down < 0 && rand.IntN(4) == 0:
				c.backends[i].down()
				down = i
			default:
				c.backends[i].mood.Store(rand.Int32N(int32(awful) + 1))
			}
		}
	}()
	return sync.OnceFunc(func() {
		close(quit)
		<-over
		for _, b := range c.backends {
			b.mood.Store(int32(calm))
			if b.http == nil {
				b.up()
			}
		}
	})
}

// settle waits until nothing is pending. It writes once itself: what is pending
// is known only after lb has asked its journal, which precedes every write.
func (c *crashTest) settle(life *crashLife) {
	c.t.Helper()
	c.writeOnce()
	least, progress := life.pending(), time.Now()
	for n := least; n > 0; n = life.pending() {
		if n < least {
			least, progress = n, time.Now()
		}
		if life.hasExited() || time.Since(progress) > patience {
			c.t.Errorf("%v deliveries are still pending", n) // the history tells more
			break
		}
		c.letPass(life, 20*time.Millisecond)
	}
	for _, b := range c.backends {
		b.settle()
	}
}

// writeOnce sends one write, which must be admitted.
func (c *crashTest) writeOnce() {
	c.t.Helper()
	require.Contains(c.t, []end{endApplied, endAccepted}, c.load.write("/register", c.load.newUser(), "").End)
}

// stop ends a life as an operator does.
func (c *crashTest) stop(life *crashLife) {
	c.t.Helper()
	life.stopped.Store(true)
	require.Zero(c.t, life.stop(), lastLines(life.log(), 20))
	c.bury(life)
}

// history returns what was seen.
func (c *crashTest) history(quiet tick) history {
	h := history{Quiet: quiet, Writes: c.load.writes, Reads: c.load.failures}
	for _, b := range c.backends {
		seen, final := b.record()
		h.Sightings, h.Finals = append(h.Sightings, seen...), append(h.Finals, final)
	}
	slices.SortFunc(h.Sightings, func(a, b sighting) int { return int(a.At - b.At) })
	return h
}

// Promise: no accepted write is ever lost, torn, invented, swapped or sent under
// another name, wherever lb dies. Under load and every kind of fault it is
// killed at each crash point and at any time between.
func TestCrash(t *testing.T) {
	t.Parallel()
	c := newCrashTest(t, crashBinary())
	heal := c.plague()
	defer heal()
	c.load.start(8)
	cycles, points := crashCycles(t), 0
	for i := range cycles {
		if i%5 < 3 {
			c.killedAt(crashPoints[points%len(crashPoints)])
			points++
		} else {
			c.killed()
		}
	}
	heal()
	life := c.live()
	c.load.end()
	c.settle(life)
	parked := life.metric("lb_fanout_deliveries", "state", "parked")

	// One more, and a clean start after it.
	quiet := c.world.tick()
	c.stop(life)
	life = c.live()
	for range 20 {
		c.writeOnce()
	}
	c.settle(life)
	c.stop(life)

	h := c.history(quiet)
	c.report(h, cycles, parked)
	c.verify(h)
	for _, p := range crashPoints {
		if cycles >= 20 && c.hits[p.name] == 0 {
			t.Errorf("the crash point %s was never reached", p.name)
		}
	}
}

// report tells the figures.
func (c *crashTest) report(h history, cycles int, parked float64) {
	repeats := len(h.Sightings)
	once := make(map[any]bool)
	for _, s := range h.Sightings {
		once[[2]any{s.Backend, s.request}] = true
	}
	repeats -= len(once)
	c.t.Logf("%d times killed; %d writes, answers %v; backends saw %d requests, %d of them repeats; %v parked; %d reads, %d failed",
		cycles, len(h.Writes), c.load.ends, len(h.Sightings), repeats, parked, c.load.reads.Load(), len(h.Reads))
	for _, p := range crashPoints {
		c.t.Logf("%-28s reached %6d times, died there %3d times", p.name, c.hits[p.name], c.struck[p.name])
	}
}

// verify judges the history, and shows the first breaches of each kind.
func (c *crashTest) verify(h history) {
	c.t.Helper()
	shown := make(map[string]int)
	for _, p := range judge(h) {
		kind, _, _ := strings.Cut(p, ":")
		if shown[kind]++; shown[kind] <= 3 {
			c.t.Error(p)
		}
	}
	if len(shown) > 0 {
		c.t.Errorf("breaches: %v", shown)
	}
}
