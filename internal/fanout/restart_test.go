package fanout

import (
	"context"
	"errors"
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
	nays bool                // refuses some writes that it does not have
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
	case <-after(pause):
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	has := slices.Contains(w.seen[b.ID], r.Target)
	switch {
	case luck == 0 && has:
		return Response{Status: 409}, nil // it is there already
	case luck == 0 && w.nays:
		return Response{Status: 422}, nil
	case luck < 3:
		return Response{Status: 500}, nil
	}
	w.seen[b.ID] = append(w.seen[b.ID], r.Target)
	if luck == 3 {
		return Response{}, context.DeadlineExceeded // the answer is lost
	}
	return Response{Status: 201}, nil
}

// TestNothingIsLostAndNoOrderBroken runs engines one after the other over one
// journal, each cut off at a random moment, with a window that is much smaller
// than the backlog, over backends that fail and refuse at random, while clients
// repeat themselves, operators retry and skip, and the journal cannot always be
// read, backends have few slots, go and come back as others, and are given up by
// some. In the end each backend has each write that was not rejected, skipped or
// cancelled there, nobody has one that was rejected, those of one key came in the
// order of their admission, and no slot is lost.
func TestNothingIsLostAndNoOrderBroken(t *testing.T) {
	cancelled := 0
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { cancelled += live(t, seed) })
		})
	}
	require.Greater(t, cancelled, 20, "too few to prove anything")
}

func live(t *testing.T, seed uint64) (cancelled int) {
	rng := rand.New(rand.NewPCG(seed, 1))
	world := &applied{rng: rand.New(rand.NewPCG(seed, 2)), nays: seed%2 == 0, down: map[string]bool{}, seen: map[string][]string{}}
	journal := newHooked()
	fail := func(*Record) error {
		world.mu.Lock()
		defer world.mu.Unlock()
		if !world.well && world.rng.IntN(8) == 0 {
			return errors.New("I/O error")
		}
		return nil
	}
	journal.on("Due", fail)
	journal.on("Head", fail)
	parks := seed%3 > 0
	var names []string
	for i := range 1 + rng.IntN(3) {
		names = append(names, string(rune('a'+i)))
	}
	const keys = 4
	admitted := map[string]Answer{} // target → what the client was told last
	var mu sync.Mutex
	var engine *Engine
	var plan *Plan
	ordered := rng.IntN(4) > 0
	cancels := seed%3 == 1
	var users *fakePool
	away := map[string]bool{}
	var ever []*backend.Backend
	newBackend := func(name string) *backend.Backend {
		b := &backend.Backend{Pool: "users", ID: name, Address: name + ":1"}
		b.SetLimit(rng.IntN(4)) // 0 is none
		if away[name] {
			b.SetState(backend.State{Presence: backend.Expired})
		}
		ever = append(ever, b)
		return b
	}
	// turn has a backend go, or come back.
	turn := func(name string) {
		old := users.Member(name)
		members, absent := slices.Clone(users.members), slices.Clone(users.absent)
		without := func(list []*backend.Backend) []*backend.Backend {
			return slices.DeleteFunc(list, func(b *backend.Backend) bool { return b == old })
		}
		if away[name] = !away[name]; away[name] {
			users.SetPresence(old, backend.Leaving, "it went")
			users.have(without(members), append(absent, old))
			if cancels && rng.IntN(2) == 0 {
				go func(e *Engine) { _ = e.Cancel(context.Background(), "users", name) }(engine)
			}
			return
		}
		fresh := newBackend(name)
		early := rng.IntN(2) == 0
		if early {
			engine.Rejoin(fresh)
		}
		users.have(append(without(members), fresh), without(absent))
		if !early {
			engine.Rejoin(fresh)
		}
	}

	restart := func() {
		if engine != nil {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			engine.Stop(ctx)
			synctest.Wait()
		}
		var members, absent []*backend.Backend
		for _, name := range names {
			if b := newBackend(name); away[name] {
				absent = append(absent, b)
			} else {
				members = append(members, b)
			}
		}
		users = newFakePool(members...)
		users.have(members, absent)
		plan = &Plan{
			Route: "register", Pool: users, Success: []int{201}, Ack: AckAll,
			Reject: []int{409, 422}, Already: []int{409},
			Wait: 2 * time.Second, AttemptTimeout: time.Second,
			Backoff: Backoff{Base: 50 * ms, Cap: time.Second, Jitter: 10 * ms},
		}
		if parks {
			plan.MaxAttempts = 3
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
	submit := func(e *Engine, p *Plan, in Write) {
		a, err := e.Submit(context.Background(), p, in)
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			if old, again := admitted[in.Target]; !again || old.Pending {
				admitted[in.Target] = a
			}
		}
	}
	operate := func(all bool) {
		f := Filter{Limit: 1000}
		if all {
			f.State = WriteParked
		}
		found, err := journal.List(context.Background(), f)
		require.NoError(t, err)
		for _, r := range found {
			for _, d := range r.Deliveries {
				switch {
				case all && d.State == DeliveryParked:
					require.NoError(t, engine.Retry(context.Background(), r.ID, d.Backend))
				case all:
				case d.State == DeliveryParked && rng.IntN(2) == 0:
					_ = engine.Retry(context.Background(), r.ID, d.Backend)
				case rng.IntN(20) == 0:
					_ = engine.Skip(context.Background(), r.ID, d.Backend)
				}
			}
		}
	}
	n := 0
	for range 40 {
		switch rng.IntN(13) {
		case 0:
			restart()
		case 12:
			turn(names[rng.IntN(len(names))])
		case 1, 2:
			name := names[rng.IntN(len(names))]
			world.mu.Lock()
			world.down[name] = !world.down[name]
			world.mu.Unlock()
		case 5, 6, 7, 8, 9, 10, 11:
			for range rng.IntN(6) {
				n++
				key := fmt.Sprint(rng.IntN(keys))
				in := Write{Method: "POST", Target: fmt.Sprintf("/%s/%d", key, n), Fields: []Field{{"X-Key", key}}}
				if times := rng.IntN(3); times > 0 { // else once, without a key
					in.Key = in.Target
					for range times {
						go submit(engine, plan, in)
					}
				}
				go submit(engine, plan, in)
			}
		case 3, 4:
			operate(false)
		}
		time.Sleep(time.Duration(rng.IntN(400)) * ms)
	}
	world.mu.Lock()
	world.well = true
	world.mu.Unlock()
	for _, name := range names {
		if away[name] {
			turn(name)
		}
	}
	for range 10 {
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		operate(true)
	}

	all, err := journal.List(context.Background(), Filter{Limit: 1000})
	require.NoError(t, err)
	known := map[string]Record{}
	for _, r := range all {
		require.NotContains(t, known, r.Write.Target, "admitted twice")
		known[r.Write.Target] = r
		if r.State != WriteCancelled {
			require.Contains(t, []State{WriteDone, WriteRejected}, r.State, "%+v", r)
		}
		for _, d := range r.Deliveries {
			switch {
			case r.State == WriteRejected:
				require.NotContains(t, world.seen[d.Backend], r.Write.Target, "it was rejected")
			case d.State == DeliveryCancelled:
				require.True(t, cancels)
				require.Equal(t, ReasonRemoved, d.Reason)
				cancelled++
			case d.State != DeliverySkipped:
				require.Equal(t, DeliveryDone, d.State)
				require.Contains(t, world.seen[d.Backend], r.Write.Target)
			}
		}
	}
	for target, a := range admitted {
		r := known[target]
		require.Equal(t, r.ID, a.ID)
		if !a.Pending {
			require.Equal(t, a.Rejected, r.State == WriteRejected)
			require.True(t, a.Rejected || a.Acked == len(r.Deliveries))
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
	for _, b := range ever {
		require.Zero(t, b.InFlight())
	}
	return cancelled
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
