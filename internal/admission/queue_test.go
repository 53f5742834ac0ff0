package admission

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"lb/internal/backend"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// waiter is one in a queue and in the plain list that a queue must agree with.
type waiter struct {
	place  Place[*waiter]
	pinned *backend.Backend
	picky  bool
	passes bool // it is picky, and cannot use what is free
}

// line is a queue beside the plain list of who waits in it.
type line struct {
	*testing.T
	Queue[*waiter]
	list []*waiter
}

func (l *line) join(w *waiter) {
	switch {
	case w.picky:
		l.JoinPicky(&w.place, w)
	case w.pinned != nil:
		l.JoinPinned(&w.place, w, w.pinned)
	default:
		l.Join(&w.place, w)
	}
	l.list = append(l.list, w)
}

func (l *line) leave(w *waiter) {
	i := slices.Index(l.list, w)
	require.Equal(l, i >= 0, w.place.Waits())
	require.Equal(l, i >= 0, l.Leave(&w.place))
	if i >= 0 {
		l.list = slices.Delete(l.list, i, i+1)
	}
}

// served gives out slots, some of any kind and some of one backend each, as a
// plain walk through the list would.
func (l *line) served(at *backend.Backend, slots map[*backend.Backend]int, total int) (served []*waiter) {
	blocked := make(map[*backend.Backend]bool)
	for _, w := range l.list {
		if at != nil && w.pinned != nil && w.pinned != at || blocked[w.pinned] && !w.picky || w.passes {
			continue
		}
		if len(served) == total {
			break
		}
		if slots[w.pinned] == len(those(served, w.pinned)) {
			blocked[w.pinned] = blocked[w.pinned] || !w.picky
			continue
		}
		served = append(served, w)
	}
	return served
}

func those(ws []*waiter, pinned *backend.Backend) []*waiter {
	return slices.DeleteFunc(slices.Clone(ws), func(w *waiter) bool { return w.pinned != pinned })
}

// Whatever happens, a queue does what a plain list would, without asking
// everybody.
func TestAQueueIsAListThatIsServedInOrder(t *testing.T) {
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 1))
		l := &line{T: t}
		targets := []*backend.Backend{nil}
		for range 1 + random.IntN(6) {
			targets = append(targets, new(backend.Backend))
		}
		pool := make([]*waiter, 40)
		for i := range pool {
			pool[i] = &waiter{pinned: targets[random.IntN(len(targets))]}
			if pool[i].pinned == nil {
				pool[i].picky = random.IntN(3) == 0
				pool[i].passes = pool[i].picky && random.IntN(2) == 0
			}
		}
		for range 200 {
			w := pool[random.IntN(len(pool))]
			switch {
			case random.IntN(3) == 0:
				serve(l, random, targets)
			case w.place.Waits() || random.IntN(4) == 0:
				l.leave(w)
			default:
				l.join(w)
			}
			require.Equal(t, len(l.list), l.Len(), "seed %d", seed)
			require.Equal(t, len(those(l.list, nil)), l.Free(), "seed %d", seed)
			for _, b := range targets[1:] {
				require.Equal(t, len(those(l.list, b)), l.Pinned(b), "seed %d", seed)
			}
		}
	}
}

// serve serves the line with some slots, at one backend or everywhere, and
// checks who got them, in which order.
func serve(l *line, random *rand.Rand, targets []*backend.Backend) {
	slots, total := make(map[*backend.Backend]int), random.IntN(8)
	for _, b := range targets {
		slots[b] = random.IntN(3)
	}
	at := targets[random.IntN(len(targets))]
	want := l.served(at, slots, total)
	var got []*waiter
	blocked := make(map[*backend.Backend]bool)
	ask := func(w *waiter) Answer {
		require.False(l, blocked[w.pinned] && !w.picky, "nobody like it is asked any more")
		switch {
		case w.passes:
			return Next
		case len(got) == total:
			return Stop
		case slots[w.pinned] == 0 && w.picky:
			return Next
		case slots[w.pinned] == 0:
			blocked[w.pinned] = true
			return Blocked
		}
		slots[w.pinned]--
		got = append(got, w)
		l.leave(w)
		return Next
	}
	if at == nil {
		l.Serve(ask)
	} else {
		l.ServeAt(at, ask)
	}
	require.Equal(l, want, got)
}

// What has been served is not kept alive by the queue, and nothing is left of a
// backend that nobody waits for.
func TestAnEmptyQueueHoldsNothing(t *testing.T) {
	var q Queue[int]
	var a, b Place[int]
	x := new(backend.Backend)
	q.Join(&a, 1)
	q.JoinPinned(&b, 2, x)
	q.Serve(func(int) Answer { return Stop })
	q.Leave(&a)
	q.Leave(&b)
	require.Empty(t, q.pinned)
	require.Equal(t, Place[int]{}, b)
	for _, l := range q.open[:cap(q.open)] {
		require.Nil(t, l)
	}
}

func BenchmarkJoinServeLeave(b *testing.B) {
	var q Queue[int]
	waiting := make([]Place[int], 1000)
	for i := range waiting {
		q.Join(&waiting[i], i)
	}
	var p Place[int]
	b.ReportAllocs()
	for b.Loop() {
		q.Join(&p, 0)
		q.Serve(func(int) Answer { return Blocked })
		q.Leave(&p)
	}
}
