package fanout

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/outcome"
)

// applied is what the backends of a world have seen.
type applied struct {
	mu   sync.Mutex
	rng  *rand.Rand
	well bool                // everything works now
	down map[string]bool     // by backend
	seen map[string][]string // by backend: the targets that it answered with 201 or took in silence
}

// Send is a backend with a will of its own.
func (w *applied) Send(ctx context.Context, b *backend.Backend, r Request) (Response, error) {
	w.mu.Lock()
	luck, down := w.rng.IntN(10), w.down[b.ID]
	pause := time.Duration(w.rng.IntN(300)) * ms
	if w.well {
		luck, down = 9, false
	}
	w.mu.Unlock()
	if down {
		b.DialFailed()
		return Response{}, &outcome.DialError{Address: b.Address, Err: context.DeadlineExceeded}
	}
	b.DialSucceeded()
	select {
	case <-ctx.Done():
		return Response{}, ctx.Err()
	case <-time.After(pause):
	}
	if luck < 3 {
		return Response{Status: 500}, nil
	}
	w.mu.Lock()
	w.seen[b.ID] = append(w.seen[b.ID], r.Target)
	w.mu.Unlock()
	if luck == 3 {
		return Response{}, context.DeadlineExceeded // the answer is lost
	}
	return Response{Status: 201}, nil
}

// TestNothingIsLostAndNoOrderBroken runs engines one after the other over one
// journal, each cut off at a random moment, with a window that is much smaller
// than the backlog, over backends that fail at random. In the end each backend
// has each write, and those of one key in the order of their admission.
func TestNothingIsLostAndNoOrderBroken(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { live(t, seed) })
		})
	}
}

func live(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	world := &applied{rng: rng, down: map[string]bool{}, seen: map[string][]string{}}
	journal := NewMemory()
	var names []string
	for i := range 1 + rng.IntN(3) {
		names = append(names, string(rune('a'+i)))
	}
	const keys = 4
	admitted := map[string]uint64{} // target → seq
	var mu sync.Mutex
	var engine *Engine
	var plan *Plan
	ordered := rng.IntN(4) > 0

	restart := func() {
		if engine != nil {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			engine.Stop(ctx)
			synctest.Wait()
		}
		var members []*backend.Backend
		for _, name := range names {
			members = append(members, &backend.Backend{Pool: "users", ID: name, Address: name + ":1"})
		}
		plan = &Plan{
			Route: "register", Pool: newFakePool(members...), Success: []int{201}, Ack: AckAll,
			Wait: 2 * time.Second, AttemptTimeout: time.Second,
			Backoff: Backoff{Base: 50 * ms, Cap: time.Second, Jitter: 10 * ms},
		}
		if ordered {
			plan.OrderBy = OrderBy{Kind: OrderHeader, Name: "X-Key"}
		}
		kept := plan
		engine = New(Options{
			Sender: world, Journal: journal, Window: 1 + rng.IntN(5),
			Plans: func(string, string) *Plan { return kept },
		})
		go func() { _ = engine.Run(context.Background()) }()
	}
	restart()
	n := 0
	for range 40 {
		switch rng.IntN(12) {
		case 0:
			restart()
		case 1, 2:
			name := names[rng.IntN(len(names))]
			world.mu.Lock()
			world.down[name] = !world.down[name]
			world.mu.Unlock()
		default:
			for range rng.IntN(6) {
				n++
				target, key := fmt.Sprintf("/%d", n), fmt.Sprint(rng.IntN(keys))
				e, p := engine, plan
				go func() {
					a, err := e.Submit(context.Background(), p, Write{
						Method: "POST", Target: "/" + key + target, Fields: []Field{{"X-Key", key}},
					})
					if err == nil {
						r, ok, _ := journal.Find(context.Background(), a.ID)
						mu.Lock()
						defer mu.Unlock()
						if ok {
							admitted["/"+key+target] = r.Seq
						}
					}
				}()
			}
		}
		time.Sleep(time.Duration(rng.IntN(400)) * ms)
	}
	world.mu.Lock()
	world.well = true
	world.mu.Unlock()
	time.Sleep(10 * time.Minute)
	synctest.Wait()

	all, err := journal.List(context.Background(), Filter{Limit: 1000})
	require.NoError(t, err)
	for _, r := range all {
		require.Equal(t, WriteDone, r.State, "%+v", r)
	}
	for target := range admitted {
		for _, name := range names {
			require.Contains(t, world.seen[name], target)
		}
	}
	for _, name := range names {
		require.Empty(t, strays(all, world.seen[name]), "nobody asked for these")
		if ordered {
			inOrder(t, name, all, world.seen[name])
		}
	}
	for _, c := range engine.Counts() {
		require.Zero(t, c.Pending)
		require.Zero(t, c.Parked)
	}
	require.Zero(t, engine.outside)
	require.Empty(t, engine.chains)
	require.Empty(t, engine.writes)
	require.Empty(t, engine.admitting)
	for _, u := range engine.usage {
		require.Equal(t, usage{}, *u)
	}
	for _, l := range engine.lanes {
		require.Zero(t, l.outside)
	}
	engine.Stop(context.Background())
}

// strays returns what a backend saw that nobody sent.
func strays(all []Record, seen []string) []string {
	return slices.DeleteFunc(slices.Clone(seen), func(target string) bool {
		return slices.ContainsFunc(all, func(r Record) bool { return r.Write.Target == target })
	})
}

// inOrder requires that the writes of each key came first in the order of their
// admission, and that none came again after a later one had succeeded.
func inOrder(t *testing.T, name string, all []Record, seen []string) {
	t.Helper()
	last := map[string]uint64{}
	for _, target := range seen {
		i := slices.IndexFunc(all, func(r Record) bool { return r.Write.Target == target })
		key := strings.Split(target, "/")[1]
		require.GreaterOrEqual(t, all[i].Seq, last[key], "%s saw %s too late: %v", name, target, seen)
		last[key] = all[i].Seq
	}
}
