package pool

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/outcome"
)

func slowly(d time.Duration) func(*Options) { return func(o *Options) { o.SlowStart = d } }

// notProbed makes a pool whose backends no probe has looked at.
func notProbed(o *Options) {
	for _, b := range o.Backends {
		b.SetState(backend.State{Health: backend.HealthUnknown})
	}
}

func TestSlowStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 3, slowly(10*time.Second))
		a := f.backends[0]
		for _, b := range f.backends {
			require.Equal(t, backend.FullShare, b.Share(), "a start is no return")
		}
		f.failed(a)
		require.Equal(t, backend.FullShare, a.Share())
		f.answered(a)
		for second := range 10 {
			at := float64(time.Duration(second) * time.Second)
			want := firstShare + (backend.FullShare-firstShare)*at/float64(10*time.Second)
			require.InDelta(t, want, a.Share(), 1, "after %d s", second)
			pass(time.Second)
		}
		require.Equal(t, backend.FullShare, a.Share())

		f.failed(a)
		f.answered(a)
		pass(5 * time.Second)
		f.Pool.mu.Lock()
		timer := f.watches[a].rampTimer
		f.Pool.mu.Unlock()
		f.failed(a)
		require.Equal(t, backend.FullShare, a.Share(), "who goes out has no slow start")
		require.False(t, timer.Stop())
		f.answered(a)
		require.Equal(t, firstShare, a.Share(), "and begins anew when it is back")
	})
}

func TestATenthOfItsTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 3, slowly(time.Hour))
		f.failed(f.backends[0])
		f.answered(f.backends[0])
		got := make(map[string]int)
		for range 210 {
			l := f.lease(t)
			got[l.Backend.ID]++
			ends(l, outcome.Success)
		}
		require.InDelta(t, 10, got["a"], 1)
		require.InDelta(t, 100, got["b"], 1)
		require.InDelta(t, 100, got["c"], 1)
	})
}

func TestWhoStartsSlowly(t *testing.T) {
	back := map[string]func(f *fixture, b *backend.Backend){
		"the operator enables it": func(f *fixture, b *backend.Backend) {
			f.SetAdmin(b, backend.Draining, "drain")
			f.SetAdmin(b, backend.Enabled, "enable")
		},
		"its checks pass again": func(f *fixture, b *backend.Backend) {
			f.SetHealth(b, backend.HealthDown, "down")
			f.SetHealth(b, backend.HealthUp, "up")
		},
		"it is probed after its maintenance": func(f *fixture, b *backend.Backend) {
			f.SetAdmin(b, backend.Maintenance, "maintenance")
			f.SetHealth(b, backend.HealthUnknown, "not probed since its maintenance")
			f.SetAdmin(b, backend.Enabled, "enable")
			f.SetHealth(b, backend.HealthUp, "its checks pass")
		},
		"its breaker closes": func(f *fixture, b *backend.Backend) {
			f.fails(b, 3)
			pass(10 * time.Second)
			for range 2 {
				f.attempt(b, outcome.Success)
			}
		},
		"its trial gets through": func(f *fixture, b *backend.Backend) {
			f.failed(b)
			pass(time.Second)
			f.answered(b)
		},
	}
	for name, comes := range back {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, 2, withBreaker, slowly(time.Minute))
				comes(f, f.backends[0])
				require.True(t, f.backends[0].State().Eligible())
				require.Equal(t, firstShare, f.backends[0].Share())
				require.Equal(t, backend.FullShare, f.backends[1].Share())
			})
		})
	}
	t.Run("not who is probed for the first time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, 2, slowly(time.Minute), notProbed)
			f.SetHealth(f.backends[0], backend.HealthUp, "its checks pass")
			require.True(t, f.backends[0].State().Eligible())
			require.Equal(t, backend.FullShare, f.backends[0].Share())

			f.SetAdmin(f.backends[1], backend.Maintenance, "since the last stop")
			f.SetAdmin(f.backends[1], backend.Enabled, "enable")
			f.SetHealth(f.backends[1], backend.HealthUp, "its checks pass")
			require.Equal(t, firstShare, f.backends[1].Share(), "but who was kept out since the start")
		})
	})
	t.Run("nor who only changes its word", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, 2, slowly(time.Minute))
			f.SetSync(f.backends[0], backend.Lagging, "it lags")
			require.Equal(t, backend.FullShare, f.backends[0].Share())
		})
	})
}

func TestNobodyStarvesInASlowStartOfAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 3, slowly(time.Hour))
		for _, b := range f.backends {
			f.failed(b)
		}
		for _, b := range f.backends {
			f.answered(b)
		}
		got := make(map[string]int)
		for range 300 {
			l := f.lease(t)
			got[l.Backend.ID]++
			ends(l, outcome.Success)
		}
		for id, n := range got {
			require.InDelta(t, 100, n, 10, id)
		}
	})
}
