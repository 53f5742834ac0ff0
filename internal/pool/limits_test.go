package pool

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/balance"
	"lb/internal/outcome"
)

// gauge counts how many are in flight at once, as whoever holds a lease sees it.
type gauge struct{ now, most atomic.Int64 }

func (g *gauge) add() {
	n := g.now.Add(1)
	for most := g.most.Load(); n > most && !g.most.CompareAndSwap(most, n); most = g.most.Load() {
	}
}

func (g *gauge) sub() { g.now.Add(-1) }

// A hundred at once, with and without a queue, with and without a total: never
// more in flight than the limits say, and nobody is forgotten.
func TestLimitsAreExact(t *testing.T) {
	const clients, slots, total = 100, 3, 7
	each := 100_000 / raceFactor
	for name, limits := range map[string]Limits{
		"refused at once": {}, "with a total": {Total: total},
		"queued": {Queue: clients}, "queued, with a total": {Queue: clients, Total: total},
	} {
		t.Run(name, func(t *testing.T) {
			each := each
			if limits.Queue > 0 {
				each /= 20 // each waits for its turn
			}
			f := newFixture(t, 3, limited(slots, limits))
			at := make(map[*backend.Backend]*gauge)
			for _, b := range f.backends {
				at[b] = new(gauge)
			}
			var all gauge
			var begun atomic.Int64
			var wg sync.WaitGroup
			for range clients {
				wg.Go(func() {
					var q balance.Query
					var w Waiter
					for range each {
						q.Reset()
						l, ok := f.TryAcquire(&q)
						if !ok && limits.Queue > 0 {
							var e *outcome.Error
							if l, e = f.Wait(&q, &w, time.Time{}, nil); e != nil {
								t.Errorf("who may wait as long as it takes gets a slot: %v", e)
							}
							ok = e == nil
						}
						if !ok {
							continue
						}
						begun.Add(1)
						b := l.Backend
						all.add()
						at[b].add()
						runtime.Gosched() // so that the others find it taken
						at[b].sub()
						all.sub()
						l.End(outcome.Success, time.Time{})
					}
				})
			}
			wg.Wait()
			for _, b := range f.backends {
				require.LessOrEqual(t, at[b].most.Load(), int64(slots))
				require.Zero(t, b.InFlight())
			}
			if limits.Total > 0 {
				require.LessOrEqual(t, all.most.Load(), int64(total))
			}
			require.Positive(t, begun.Load())
			require.Zero(t, f.queue.total.Load())
			require.Zero(t, f.Depth())
		})
	}
}

// Requests, deliveries, clients that leave, limits and members that change, all
// at once: everybody who waits gets a slot in the end, and nothing is lost.
func TestTheQueueUnderConcurrency(t *testing.T) {
	const clients, each = 40, 4000 / raceFactor
	f := newFixture(t, 4, withBreaker, limited(2, Limits{Total: 6, Queue: clients}))
	stop := make(chan struct{})
	var changes sync.WaitGroup
	changes.Go(func() {
		random := rand.New(rand.NewPCG(1, 7))
		for {
			select {
			case <-stop:
				return
			default:
			}
			b := f.backends[random.IntN(len(f.backends))]
			switch random.IntN(6) {
			case 0:
				f.SetLimit(b, 1+random.IntN(3))
			case 1:
				f.SetLimits(Limits{Total: 4 + random.IntN(4), Queue: clients})
			case 2:
				f.Replace(f.backends[random.IntN(3):])
			case 3:
				f.SetPresence(b, backend.Presence(random.IntN(3)), "its source")
			case 4:
				f.Tick(time.Now())
			default:
				_ = f.Status(b)
				_ = f.Depth()
			}
			time.Sleep(50 * time.Microsecond)
		}
	})
	var wg sync.WaitGroup
	for client := range uint64(clients) {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(client, 8))
			granted := make(chan Lease, 1)
			gone := make(chan struct{})
			close(gone)
			w := Waiter{Granted: func(l Lease) { granted <- l }}
			var q balance.Query
			for range each {
				q.Reset()
				var l Lease
				switch random.IntN(4) {
				case 0:
					var ok bool
					if l, ok = f.Acquire(f.backends[random.IntN(len(f.backends))], &w); !ok {
						if random.IntN(2) == 0 && f.Withdraw(&w) {
							continue
						}
						l = <-granted
					}
				case 1:
					l, _ = f.Wait(&q, &w, time.Time{}, gone)
				case 2:
					l, _ = f.Wait(&q, &w, time.Now().Add(time.Duration(random.IntN(200))*time.Microsecond), nil)
				default:
					l, _ = f.TryAcquire(&q)
				}
				if l.Backend != nil {
					finishAtRandom(random, l)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	changes.Wait()
	for _, b := range f.backends {
		require.Zero(t, b.InFlight(), b.ID)
	}
	require.Zero(t, f.queue.total.Load())
	require.Zero(t, f.waiting.Load())
}
