package pool

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/balance"
	"lb/internal/breaker"
	"lb/internal/outcome"
)

// trialCount counts the trials under way at once, by backend and period.
type trialCount struct {
	mu        sync.Mutex
	now       map[string]int
	most, all int
}

func (c *trialCount) add(l Lease, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	period := fmt.Sprint(l.Backend.ID, l.trial)
	c.now[period] += n
	c.most = max(c.most, c.now[period])
	c.all += max(0, n)
}

// A hundred clients at once, backends that fail now and then: breakers open and
// close all the time, and nothing is lost or given out twice.
func TestManyAtOnce(t *testing.T) {
	const clients, each, halfOpen = 100, 400, 3
	f := newFixture(t, 5, func(o *Options) {
		o.Breaker = &breaker.Settings{
			Consecutive: 3, Ratio: 0.6, MinRequests: 10, Window: time.Second,
			Open: time.Millisecond, MaxOpen: 4 * time.Millisecond, HalfOpen: halfOpen,
		}
		o.SlowStart = 5 * time.Millisecond
	})
	trials := trialCount{now: make(map[string]int)}
	begun := time.Now()
	var wg sync.WaitGroup
	for client := range uint64(clients) {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(client, 4))
			for range each {
				l, ok := f.TryAcquire(new(balance.Query))
				if !ok {
					t.Error("somebody always serves")
					return
				}
				if random.IntN(10) == 0 { // a delivery
					l.End(outcome.ClientGone, time.Now())
					l = f.acquire(f.backends[random.IntN(len(f.backends))])
				}
				if l.trial != 0 {
					trials.add(l, 1)
					for range random.IntN(200) {
						runtime.Gosched()
					}
					trials.add(l, -1) // before it may be given back
				}
				finishAtRandom(random, l)
			}
		})
	}
	wg.Wait()
	require.Less(t, time.Since(begun), trialPatience, "this must not take so long that trials are given out anew")
	for _, b := range f.backends {
		require.Zero(t, b.InFlight(), b.ID)
	}
	require.LessOrEqual(t, trials.most, halfOpen)
	require.Positive(t, trials.all)
	f.Close()
	replay(t, f)
	openAtOnce(t, f, 2)
}

// finishAtRandom answers and ends l, more often well than badly.
func finishAtRandom(random *rand.Rand, l Lease) {
	c := []outcome.Class{
		outcome.Success, outcome.Success, outcome.Success, outcome.Failure, outcome.Reset, outcome.Timeout, outcome.ClientGone,
	}[random.IntN(7)]
	l.Answered(c, time.Now(), time.Millisecond)
	if c == outcome.Success && random.IntN(10) == 0 {
		c = outcome.Cut
	}
	l.End(c, time.Now())
}

// openAtOnce checks that never more than most breakers were not closed, by what
// was told; no dial failed.
func openAtOnce(t *testing.T, f *fixture, most int) {
	t.Helper()
	open, opened := make(map[*backend.Backend]bool), 0
	for i, c := range f.changes {
		if c.To.Gate == backend.GateOpen {
			delete(open, c.Backend)
			continue
		}
		require.True(t, strings.HasPrefix(c.Reason, "breaker "), "change %d: %s", i, c.Reason)
		open[c.Backend] = true
		opened++
		require.LessOrEqual(t, len(open), most, "change %d", i)
	}
	require.Positive(t, opened)
}

// The same with dials that fail, an operator and probes.
func TestEverybodyAtOnce(t *testing.T) {
	const clients, each = 50, 300
	f := newFixture(t, 4, withBreaker, func(o *Options) { o.SlowStart = 3 * time.Millisecond })
	var wg sync.WaitGroup
	for client := range uint64(clients) {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(client, 5))
			for range each {
				b := f.backends[random.IntN(len(f.backends))]
				switch random.IntN(12) {
				case 0:
					f.failed(b)
				case 1:
					f.Accepts(b)
				case 2:
					f.answered(b)
				case 3:
					f.SetAdmin(b, backend.Admin(random.IntN(3)), "an operator")
				case 4:
					f.SetHealth(b, backend.Health(random.IntN(3)), "its checks")
				case 5:
					f.SetSync(b, backend.Sync(random.IntN(3)), "its deliveries")
				case 6:
					_ = f.RetryAfter()
					_ = f.Status(b)
				default:
					if l, ok := f.TryAcquire(new(balance.Query)); ok {
						finishAtRandom(random, l)
					}
				}
			}
		})
	}
	wg.Wait()
	for _, b := range f.backends {
		require.Zero(t, b.InFlight(), b.ID)
	}
	f.Close()
	replay(t, f)
}
