package balance

import (
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"lb/internal/backend"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// set returns n backends named a, b, c and so on.
func set(n int) []*backend.Backend {
	backends := make([]*backend.Backend, n)
	for i := range backends {
		backends[i] = &backend.Backend{Pool: "p", ID: fmt.Sprintf("%c", 'a'+i)}
	}
	return backends
}

func inFlight(backends []*backend.Backend) (n int64) {
	for _, b := range backends {
		n += b.InFlight()
	}
	return n
}

// Every policy, whatever it prefers, keeps to the same promises.
func TestPolicies(t *testing.T) {
	for _, p := range policies {
		factory, err := p.Compile(Spec{Name: p.Name})
		require.NoError(t, err)
		t.Run(p.Name, func(t *testing.T) { conformance(t, factory) })
	}
}

// conformance is what every policy must pass.
func conformance(t *testing.T, factory Factory) {
	t.Run("an empty set has nobody to offer", func(t *testing.T) {
		require.Nil(t, factory(nil, nil).Pick(new(Query)))
	})
	t.Run("a pick is a lease on a member of the set", func(t *testing.T) {
		backends := set(3)
		picker := factory(backends, nil)
		for i := range 10 {
			b := picker.Pick(new(Query))
			require.Contains(t, backends, b)
			require.EqualValues(t, i+1, inFlight(backends))
		}
	})
	t.Run("the only backend gets everything", func(t *testing.T) {
		backends := set(1)
		picker := factory(backends, nil)
		for range 10 {
			require.Same(t, backends[0], picker.Pick(new(Query)))
		}
	})
	for _, n := range []int{1, 2, 3, 8, 9, 20} {
		t.Run(fmt.Sprintf("of %d none is picked twice by one request", n), func(t *testing.T) {
			backends := set(n)
			picker := factory(backends, nil)
			var q Query
			seen := make(map[*backend.Backend]bool)
			for range n + 2 {
				b := picker.Pick(&q)
				if b == nil {
					break
				}
				require.False(t, seen[b], "%s was tried before", b.ID)
				seen[b] = true
				b.End()
				q.Exclude(b)
				q.Retry = true
			}
			require.Nil(t, picker.Pick(&q), "nobody is left, or the policy stops here for good")
			require.Zero(t, inFlight(backends), "a backend that is refused holds no lease")
		})
	}
	t.Run("a change of set or of policy takes the place of the former picker", func(t *testing.T) {
		var prev Picker = stranger{}
		for _, n := range []int{3, 1, 0, 4} {
			backends := set(n)
			prev = factory(backends, prev)
			if b := prev.Pick(new(Query)); n == 0 {
				require.Nil(t, b)
			} else {
				require.Contains(t, backends, b)
			}
		}
	})
	t.Run("many goroutines pick at once", func(t *testing.T) {
		const workers, picks = 16, 500
		backends := set(5)
		picker := factory(backends, nil)
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				for range picks {
					var q Query
					if b := picker.Pick(&q); b == nil {
						t.Error("no backend")
					}
				}
			})
		}
		wg.Wait()
		require.EqualValues(t, workers*picks, inFlight(backends))
	})
	t.Run("a backend on trial gets its trials and no more", func(t *testing.T) {
		backends := set(3)
		picker := factory(backends, nil)
		period := backends[1].SetTrials(2)
		trials := 0
		for range 30 {
			var q Query
			b := picker.Pick(&q)
			require.NotNil(t, b)
			if b == backends[1] {
				trials++
				require.Equal(t, period, q.Trial())
			} else {
				require.Zero(t, q.Trial())
			}
		}
		require.Equal(t, 2, trials)
	})
	t.Run("with nobody else, who is on trial gets everything", func(t *testing.T) {
		backends := set(2)
		picker := factory(backends, nil)
		for _, b := range backends {
			b.SetTrials(1)
		}
		var q Query
		for range 2 {
			require.NotNil(t, picker.Pick(&q))
			require.NotZero(t, q.Trial())
		}
		require.Nil(t, picker.Pick(&q), "the trials are given out")
		q.Unlimited = true
		require.NotNil(t, picker.Pick(&q))
		require.Zero(t, q.Trial(), "it counts as no trial")
		require.EqualValues(t, 3, inFlight(backends))
	})
	t.Run("nobody starves while all of them start slowly", func(t *testing.T) {
		backends := set(3)
		picker := factory(backends, nil)
		for _, b := range backends {
			b.SetShare(100)
		}
		for range 300 {
			require.NotNil(t, picker.Pick(new(Query)))
		}
		for _, b := range backends {
			require.InDelta(t, 100, b.InFlight(), 10, b.ID)
		}
	})
	t.Run("a pick does not allocate", func(t *testing.T) {
		backends := set(9)
		picker := factory(backends, nil)
		var q Query
		require.Zero(t, testing.AllocsPerRun(1000, func() { picker.Pick(&q).End() }), "first pick")
		require.Zero(t, testing.AllocsPerRun(1000, func() {
			q.Reset()
			for _, b := range backends[:8] {
				q.Exclude(b)
			}
			q.Retry = true
			if b := picker.Pick(&q); b != nil {
				b.End()
			}
		}), "after eight that were tried")
	})
}

// stranger is a picker of another policy.
type stranger struct{}

func (stranger) Pick(*Query) *backend.Backend { return nil }

func TestNew(t *testing.T) {
	for _, name := range []string{"roundrobin", "round-robin", "rr"} {
		factory, err := New(Spec{Name: name})
		require.NoError(t, err)
		require.IsType(t, &roundRobin{}, factory(nil, nil), name)
	}
	_, err := New(Spec{Name: "least_con"})
	require.ErrorContains(t, err, `"least_con"`)
	require.ErrorContains(t, err, "roundrobin", "the error names what there is")
	require.Contains(t, Names(), "roundrobin")
	require.NotContains(t, Names(), "rr")
	require.IsIncreasing(t, append(Names(), "~"))
}

func TestQueryReset(t *testing.T) {
	backends := set(12)
	var q Query
	for _, b := range backends {
		q.Exclude(b)
		require.True(t, q.Tried(b), b.ID)
	}
	q.Retry, q.Unlimited, q.trial = true, true, 7
	q.Reset()
	for _, b := range backends {
		require.False(t, q.Tried(b), b.ID)
	}
	require.Equal(t, Query{}, q, "nothing of one request is left for the next")
}

func BenchmarkPick(b *testing.B) {
	picker := newRoundRobin(set(3), nil)
	var q Query
	b.ReportAllocs()
	for b.Loop() {
		q.Reset()
		picker.Pick(&q).End()
	}
}
