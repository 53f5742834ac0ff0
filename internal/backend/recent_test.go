package backend

import (
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// naive is a Recent that remembers everything.
type naive struct {
	at     []uint64 // the slice in which each attempt ended
	failed []bool
}

func (n *naive) figures(now uint64) (f Figures) {
	for i, at := range n.at {
		if n.failed[i] {
			f.Row++
		} else {
			f.Row = 0
		}
		if at+recentSlices <= now {
			continue
		}
		f.Total++
		if n.failed[i] {
			f.Failed++
		}
	}
	return f
}

func TestRecentAgainstANaiveModel(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		window := time.Duration(1+random.IntN(60)) * time.Second
		var r Recent
		r.SetWindow(window)
		var n naive
		now := time.Now()
		for step := range 300 {
			switch random.IntN(10) {
			case 0:
				now = now.Add(time.Duration(random.Int64N(int64(3 * window))))
			case 1: // the very edges of slices
				now = now.Add(window / recentSlices * time.Duration(random.IntN(12)))
			default:
				now = now.Add(time.Duration(random.Int64N(int64(window / 20))))
			}
			failed := random.IntN(3) == 0
			// Attempts are not counted in the order in which they ended.
			at := now.Add(-time.Duration(random.Int64N(int64(window / 20))))
			r.Count(at, failed)
			n.at, n.failed = append(n.at, r.when(at)), append(n.failed, failed)
			if random.IntN(50) == 0 {
				r.Reset()
				n = naive{}
			}
			later := now.Add(time.Duration(random.Int64N(int64(2 * window))))
			require.Equal(t, n.figures(r.when(now)), r.Figures(now), "seed %d, step %d", seed, step)
			require.Equal(t, n.figures(r.when(later)), r.Figures(later), "seed %d, step %d, later", seed, step)
		}
	}
}

func TestRecentForgetsAfterItsWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, window := range []time.Duration{0, time.Second, 30 * time.Second} {
			var r Recent
			if window > 0 {
				r.SetWindow(window)
			} else {
				window = DefaultWindow
			}
			r.Count(time.Now(), true)
			time.Sleep(window * 9 / 10)
			require.Equal(t, Figures{Total: 1, Failed: 1, Row: 1}, r.Figures(time.Now()), "for at least nine slices")
			time.Sleep(window / 10)
			require.Equal(t, Figures{Row: 1}, r.Figures(time.Now()), "the row is not bound by the window")
		}
	})
}

func TestErrorRate(t *testing.T) {
	require.Zero(t, Figures{}.ErrorRate())
	require.InDelta(t, 0.25, Figures{Total: 8, Failed: 2}.ErrorRate(), 1e-12)
}

func TestRecentStopsCountingBeforeItOverflows(t *testing.T) {
	var r Recent
	now := time.Now()
	for range countMask + 10 {
		r.Count(now, true)
	}
	f := r.Figures(now)
	require.Equal(t, Figures{Total: countMask, Failed: countMask, Row: countMask + 10}, f)
	r.Count(now.Add(time.Second), false)
	f = r.Figures(now.Add(time.Second))
	require.Equal(t, Figures{Total: countMask + 1, Failed: countMask}, f)
}

func TestAnotherWindowBeginsEmpty(t *testing.T) {
	var r Recent
	now := time.Now()
	r.Count(now, true)
	r.SetWindow(DefaultWindow)
	require.Equal(t, Figures{Total: 1, Failed: 1, Row: 1}, r.Figures(now), "that is no other")
	r.SetWindow(time.Minute)
	require.Equal(t, Figures{Row: 1}, r.Figures(now))
	r.Count(now, true)
	r.SetWindow(time.Minute)
	require.Equal(t, Figures{Total: 1, Failed: 1, Row: 2}, r.Figures(now))
	require.Equal(t, 1, r.Figures(now.Add(50*time.Second)).Total)

	same := started.Add(10 << 28 * 100 * time.Millisecond) // where both windows number their slices alike
	r.SetWindow(time.Second)
	r.Count(same, true)
	r.SetWindow(2 * time.Second)
	require.Zero(t, r.Figures(same).Total)
}

func TestRecentUnderConcurrency(t *testing.T) {
	const workers, each = 16, 15_000
	var r Recent
	r.SetWindow(time.Minute)
	now := time.Now()
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			for j := range each {
				r.Count(now.Add(time.Duration(j)*time.Microsecond), i%2 == 0)
			}
		})
	}
	wg.Wait()
	f := r.Figures(now.Add(each * time.Microsecond))
	require.Equal(t, workers*each, f.Total)
	require.Equal(t, workers*each/2, f.Failed)
}

func TestCountingDoesNotAllocate(t *testing.T) {
	var b Backend
	b.SetTrials(1)
	now := time.Now()
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		b.Recent.Count(now, true)
		b.Recent.Count(now, false)
		_ = b.Recent.Figures(now)
		b.Heads.Observe(now, time.Millisecond)
		period, _ := b.TakeTrial()
		b.ReturnTrial(period)
	}))
}
