package pool

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/balance"
	"lb/internal/outcome"
)

// crowd plays random arrivals, ends, departures and changes at a pool with few
// slots, and checks after each what must always hold.
type crowd struct {
	*fixture
	t      *testing.T
	random *rand.Rand
	policy string
	limits Limits
	came   int      // a number for each arrival
	held   []*guest // hold leases
	lines  []*guest // wait, in the order in which they came
	most   map[*backend.Backend]int64
	last   string // what happened last
}

// guest is a request or a delivery.
type guest struct {
	number  int
	query   balance.Query
	waiter  Waiter
	pinned  *backend.Backend
	leave   chan struct{}
	lease   Lease
	refusal *outcome.Error
	done    atomic.Bool // it has a lease or a refusal
}

// got ends the wait, with a lease or the zero lease.
func (g *guest) got(l Lease) {
	g.lease = l
	g.done.Store(true)
}

func TestNeverAFreeSlotBesideAWaiter(t *testing.T) {
	const steps = 120
	for _, policy := range balance.Names() {
		t.Run(policy, func(t *testing.T) {
			for seed := range uint64(20 + 100/raceFactor) {
				synctest.Test(t, func(t *testing.T) {
					c := newCrowd(t, policy, seed)
					for range steps {
						c.step()
						synctest.Wait()
						c.check()
					}
					c.finish()
				})
				if t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
		})
	}
}

func newCrowd(t *testing.T, policy string, seed uint64) *crowd {
	c := &crowd{t: t, random: rand.New(rand.NewPCG(seed, 6)), policy: policy, most: make(map[*backend.Backend]int64)}
	c.limits = Limits{Queue: 4 + c.random.IntN(20), Timeout: time.Duration(1+c.random.IntN(20)) * time.Second}
	if c.random.IntN(2) == 0 {
		c.limits.Total = 2 + c.random.IntN(6)
	}
	c.fixture = newFixture(t, 1+c.random.IntN(4), withBreaker, policed(t, policy), limited(1+c.random.IntN(2), c.limits), slowly(5*time.Second))
	return c
}

func (c *crowd) any() *backend.Backend { return c.backends[c.random.IntN(len(c.backends))] }

func (c *crowd) step() {
	switch n := c.random.IntN(100); {
	case n < 35:
		c.arrive()
	case n < 60:
		c.end()
	case n < 68:
		c.depart()
	case n < 76:
		c.resize()
	case n < 84:
		c.words()
	case n < 90:
		c.replace()
	default:
		d := time.Duration(c.random.Int64N(int64(4 * time.Second)))
		c.last = d.String()
		c.Tick(time.Now())
		time.Sleep(d)
	}
}

// arrive lets a request or a delivery come; some have tried backends already.
func (c *crowd) arrive() {
	g := &guest{number: c.came, leave: make(chan struct{})}
	c.came++
	if c.random.IntN(4) == 0 {
		g.pinned = c.any()
		c.last = "delivery to " + g.pinned.ID
		g.waiter.Granted = g.got
		if l, ok := c.Acquire(g.pinned, &g.waiter); ok {
			g.got(l)
		}
		c.lines = append(c.lines, g)
		return
	}
	c.last = "request"
	g.query.Key = c.random.Uint64()
	if c.random.IntN(4) == 0 {
		g.query.Exclude(c.any())
		g.query.Retry = true
	}
	c.lines = append(c.lines, g)
	go func() {
		l, ok := c.TryAcquire(&g.query)
		if !ok {
			if g.refusal = c.Refusal(&g.query); g.refusal.Code == outcome.MaxConcurrency {
				l, g.refusal = c.Wait(&g.query, &g.waiter, time.Time{}, g.leave)
			}
		}
		g.got(l)
	}()
}

// end ends one of the leases, in one of the ways.
func (c *crowd) end() {
	if len(c.held) == 0 {
		return
	}
	i := c.random.IntN(len(c.held))
	g := c.held[i]
	c.held = append(c.held[:i], c.held[i+1:]...)
	class := []outcome.Class{
		outcome.Success, outcome.Success, outcome.Failure, outcome.Timeout, outcome.Reset, outcome.ClientGone, outcome.Unsent, outcome.Withdrawn,
	}[c.random.IntN(8)]
	c.last = fmt.Sprint(class, " at ", g.lease.Backend.ID)
	if class == outcome.Unsent {
		g.lease.Backend.DialFailed()
	} else {
		g.lease.Backend.DialSucceeded()
	}
	if c.random.IntN(4) > 0 {
		g.lease.Answered(class, time.Now(), time.Millisecond)
	}
	if class == outcome.Success && c.random.IntN(3) == 0 {
		class = outcome.Cut
	}
	g.lease.End(class, time.Now())
}

// depart lets a waiter go: a client that leaves, a delivery that is withdrawn.
func (c *crowd) depart() {
	if len(c.lines) == 0 {
		return
	}
	g := c.lines[c.random.IntN(len(c.lines))]
	c.last = fmt.Sprint(g.number, " leaves")
	if g.pinned == nil {
		close(g.leave)
		return
	}
	require.True(c.t, c.Withdraw(&g.waiter))
	g.done.Store(true)
}

// resize changes a limit, more often up than down.
func (c *crowd) resize() {
	b := c.any()
	n := 1 + c.random.IntN(3)
	switch c.random.IntN(5) {
	case 0:
		c.limits.Total = []int{0, 3, 5, 8}[c.random.IntN(4)]
		c.last = fmt.Sprint("total ", c.limits.Total)
		c.SetLimits(c.limits)
	case 1:
		c.last = fmt.Sprint("traits of ", b.ID)
		c.SetTraits(b, n, map[string]string{"zone": b.ID})
	default:
		c.last = fmt.Sprint("limit of ", b.ID, " ", n)
		c.SetLimit(b, n)
	}
}

func (c *crowd) words() {
	b := c.any()
	c.last = "words about " + b.ID
	good := c.random.IntN(3) > 0
	word := func() uint8 {
		if good {
			return 0
		}
		return uint8(1 + c.random.IntN(2))
	}
	switch c.random.IntN(4) {
	case 0:
		c.SetAdmin(b, backend.Admin(word()), "an operator")
	case 1:
		c.SetHealth(b, backend.Health(word()), "its checks")
	case 2:
		c.SetPresence(b, backend.Presence(word()), "its source")
	default:
		c.SetSync(b, backend.Sync(word()), "its deliveries")
	}
}

// replace lets a member come or go, or come back.
func (c *crowd) replace() {
	if n := len(c.backends); n > 1 && c.random.IntN(2) == 0 {
		i := c.random.IntN(n)
		c.last = "gone: " + c.backends[i].ID
		c.backends = append(append([]*backend.Backend{}, c.backends[:i]...), c.backends[i+1:]...)
	} else if n < 6 {
		b := &backend.Backend{Pool: "p", ID: fmt.Sprint("n", c.came)}
		b.SetLimit(1)
		c.last = "new: " + b.ID
		c.backends = append([]*backend.Backend{b}, c.backends...)
	}
	c.Replace(c.backends)
}

// check checks what holds whenever nobody is about to do anything.
func (c *crowd) check() {
	c.sortOut()
	c.checkLimits()
	c.Pool.mu.Lock()
	defer c.Pool.mu.Unlock()
	c.queue.Lock()
	defer c.queue.Unlock()
	t := c.t
	require.EqualValues(t, len(c.lines), c.waiting.Load(), "after %s", c.last)
	for _, g := range c.lines {
		var l Lease
		before := g.query
		if g.pinned != nil {
			c.takeAt(g.pinned, &l)
		} else {
			c.take(&g.query, &l)
		}
		g.query = before
		if l.Backend != nil {
			t.Fatalf("after %s: %d waits, and %s has a slot for it", c.last, g.number, l.Backend.ID)
		}
	}
}

// sortOut takes those who have got something out of line: no two that want the
// same may have overtaken each other.
func (c *crowd) sortOut() {
	var lines []*guest
	for _, g := range c.lines {
		switch {
		case !g.done.Load():
			lines = append(lines, g)
		case g.lease.Backend != nil:
			for _, before := range lines {
				if before.pinned == g.pinned && before.query.Fresh() && (g.pinned != nil || g.query.Fresh()) {
					c.t.Fatalf("after %s: %d has overtaken %d", c.last, g.number, before.number)
				}
			}
			c.held = append(c.held, g)
		}
	}
	c.lines = lines
}

// checkLimits checks that no more are in flight than the limits say, or were
// when one was lowered.
func (c *crowd) checkLimits() {
	inFlight, counted := make(map[*backend.Backend]int64), int64(0)
	for _, g := range c.held {
		inFlight[g.lease.Backend]++
		if g.lease.counted {
			counted++
		}
	}
	for _, b := range c.backends {
		require.Equal(c.t, inFlight[b], b.InFlight(), "at %s after %s", b.ID, c.last)
		require.LessOrEqual(c.t, b.InFlight(), max(int64(b.Limit()), c.most[b]), "at %s after %s", b.ID, c.last)
		c.most[b] = b.InFlight()
	}
	require.Equal(c.t, counted, c.queue.total.Load(), "after %s", c.last)
	if c.limits.Total > 0 {
		require.LessOrEqual(c.t, counted, max(int64(c.limits.Total), c.most[nil]), "after %s", c.last)
	}
	c.most[nil] = counted
}

// finish ends everything, and checks that nothing is left.
func (c *crowd) finish() {
	for len(c.held) > 0 || len(c.lines) > 0 {
		for len(c.held) > 0 {
			c.end()
		}
		for _, g := range c.lines {
			if g.pinned != nil && c.Withdraw(&g.waiter) {
				g.done.Store(true)
			}
		}
		pass(c.limits.Timeout)
		c.sortOut()
	}
	c.checkLimits()
	require.Zero(c.t, c.waiting.Load())
	require.Zero(c.t, c.queue.line.Len())
}
