package pool

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/balance"
	"lb/internal/breaker"
	"lb/internal/outcome"
)

// world plays random events at a pool and checks after each what must always
// hold.
type world struct {
	*fixture
	t        *testing.T
	random   *rand.Rand
	share    float64
	slow     time.Duration
	leases   []Lease
	answered []bool
	last     string // what happened last
}

func TestWhatAlwaysHolds(t *testing.T) {
	for seed := range uint64(150) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, seed)
			for range 150 {
				w.step()
				synctest.Wait()
				w.check()
			}
			w.finish()
		})
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, random: rand.New(rand.NewPCG(seed, 3))}
	w.share = []float64{0.3, 0.5, 1}[w.random.IntN(3)]
	w.slow = []time.Duration{0, 5 * time.Second}[w.random.IntN(2)]
	w.fixture = newFixture(t, 3+w.random.IntN(3), slowly(w.slow), func(o *Options) {
		o.Breaker = limits()
		o.Breaker.HalfOpen = 1 + w.random.IntN(3)
		o.MaxOpenShare = w.share
	})
	return w
}

func (w *world) any() *backend.Backend { return w.backends[w.random.IntN(len(w.backends))] }

// step makes one event happen.
func (w *world) step() {
	b := w.any()
	switch n := w.random.IntN(100); {
	case n < 25:
		if l, ok := w.TryAcquire(new(balance.Query)); ok {
			w.keep(l)
		}
	case n < 35:
		w.keep(w.acquire(b))
	case n < 70:
		w.goOn()
	case n < 75:
		w.note("probe", b)
		w.Accepts(b)
	case n < 80:
		w.words(b)
	default:
		d := time.Duration(w.random.Int64N(int64(time.Second)))
		if w.random.IntN(3) == 0 {
			d *= 20
		}
		w.last = d.String()
		time.Sleep(d)
	}
}

func (w *world) note(what any, b *backend.Backend) { w.last = fmt.Sprintf("%v %s", what, b.ID) }

func (w *world) keep(l Lease) {
	w.note("lease", l.Backend)
	w.leases, w.answered = append(w.leases, l), append(w.answered, false)
}

// words changes what others than the traffic say; most of the time for the better.
func (w *world) words(b *backend.Backend) {
	w.note("words", b)
	good := w.random.IntN(2) == 0
	switch w.random.IntN(3) {
	case 0:
		word := backend.Admin(w.random.IntN(3))
		if good {
			word = backend.Enabled
		}
		w.SetAdmin(b, word, "an operator")
	case 1:
		word := backend.Health(w.random.IntN(3))
		if good {
			word = backend.HealthUp
		}
		w.SetHealth(b, word, "its checks")
	default:
		word := backend.Sync(w.random.IntN(3))
		if good {
			word = backend.InSync
		}
		w.SetSync(b, word, "its deliveries")
	}
}

// goOn answers or ends one of the leases.
func (w *world) goOn() {
	if len(w.leases) == 0 {
		return
	}
	i := w.random.IntN(len(w.leases))
	l, now := &w.leases[i], time.Now()
	b := l.Backend
	if w.answered[i] {
		w.note("end", b)
		l.End([]outcome.Class{outcome.Success, outcome.Cut}[w.random.IntN(2)], now)
	} else {
		c := []outcome.Class{
			outcome.Success, outcome.Success, outcome.Success, outcome.Failure, outcome.Failure, outcome.Failure,
			outcome.Unsent, outcome.Timeout, outcome.ClientGone,
		}[w.random.IntN(9)]
		w.note(c, b)
		switch dialled := w.random.IntN(3) > 0; {
		case c == outcome.Unsent:
			b.DialFailed()
		case dialled:
			b.DialSucceeded()
		}
		l.Answered(c, now, time.Millisecond)
		if w.answered[i] = true; c == outcome.Success {
			return
		}
		l.End(c, now)
	}
	w.leases = append(w.leases[:i], w.leases[i+1:]...)
	w.answered = append(w.answered[:i], w.answered[i+1:]...)
}

// check checks what holds whatever has happened.
func (w *world) check() {
	in, eligible := w.checkStates()
	replay(w.t, w.fixture)
	w.checkPick(in, eligible)
}

// checkStates returns how many backends are not out and how many eligible.
func (w *world) checkStates() (in, eligible int) {
	w.Pool.mu.Lock() // the pool's own timers are at work
	defer w.Pool.mu.Unlock()
	t, now := w.t, time.Now()
	inFlight := make(map[*backend.Backend]int64)
	trials := make(map[*backend.Backend]uint32)
	for _, l := range w.leases {
		inFlight[l.Backend]++
		if l.trial == w.watches[l.Backend].period && l.trial != 0 {
			trials[l.Backend]++
		}
	}
	notClosed := 0
	var serve []*backend.Backend
	for _, b := range w.backends {
		watch := w.watches[b]
		require.Equal(t, inFlight[b], b.InFlight(), "in flight at %s after %s", b.ID, w.last)
		require.Equal(t, watch.gate(now).word, b.State().Gate, "the gate of %s after %s", b.ID, w.last)
		if watch.breaker.State() != breaker.Closed {
			notClosed++
		}
		if b.State().Standing() != backend.Out {
			in++
		}
		if b.State().Eligible() {
			serve = append(serve, b)
		} else {
			require.Equal(t, backend.FullShare, b.Share(), "%s after %s", b.ID, w.last)
		}
		if b.State().Gate == backend.GateTrial {
			require.LessOrEqual(t, trials[b], watch.last.trials, "trials of %s after %s", b.ID, w.last)
		}
	}
	require.Less(t, notClosed, len(w.backends), "after %s", w.last)
	require.LessOrEqual(t, notClosed, int(math.Floor(w.share*float64(len(w.backends)))), "after %s", w.last)
	require.Equal(t, serve, w.Members().Eligible, "after %s", w.last)
	return in, len(serve)
}

// checkPick checks who a request would get.
func (w *world) checkPick(in, eligible int) {
	l, ok := w.TryAcquire(new(balance.Query))
	require.Equal(w.t, in > 0, ok, "after %s", w.last)
	if !ok {
		return
	}
	switch standing := l.Backend.State().Standing(); {
	case eligible > 0 && standing == backend.OnTrial:
		require.NotZero(w.t, l.trial, "%s after %s", l.Backend.ID, w.last)
	case eligible > 0:
		require.Equal(w.t, backend.Serves, standing, "%s after %s", l.Backend.ID, w.last)
	default:
		require.NotEqual(w.t, backend.Out, standing, "%s after %s", l.Backend.ID, w.last)
	}
	l.End(outcome.ClientGone, time.Now())
}

// finish ends what is under way, and lets everybody come back.
func (w *world) finish() {
	for i := range w.leases {
		w.leases[i].End(outcome.Success, time.Now())
	}
	w.leases = nil
	pass(2 * time.Minute)
	w.check()
	for _, b := range w.backends {
		require.Contains(w.t, []backend.Gate{backend.GateOpen, backend.GateTrial}, b.State().Gate, "%s is tried in the end", b.ID)
		for range 4 {
			w.fixture.answered(b)
		}
		require.Equal(w.t, backend.GateOpen, b.State().Gate, "%s is back", b.ID)
	}
	pass(w.slow)
	for _, b := range w.backends {
		require.Equal(w.t, backend.FullShare, b.Share(), "%s has its full share", b.ID)
	}
	w.check()

	w.fails(w.backends[0], 3)
	w.failed(w.backends[1])
	w.Close()
	for _, watch := range w.watches {
		for _, timer := range []*time.Timer{watch.timer, watch.rampTimer} {
			require.False(w.t, timer != nil && timer.Stop(), "a timer of %s is left", watch.backend.ID)
		}
	}
}
