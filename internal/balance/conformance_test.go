package balance

import (
	"fmt"
	"math"
	"math/rand/v2"
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
		id := fmt.Sprintf("%c", 'a'+i)
		if n > 26 {
			id = fmt.Sprintf("b%d", i)
		}
		backends[i] = &backend.Backend{Pool: "p", ID: id}
	}
	return backends
}

func inFlight(backends []*backend.Backend) (n int64) {
	for _, b := range backends {
		n += b.InFlight()
	}
	return n
}

// newcomer is the query of a request that comes from anywhere.
func newcomer() *Query { return &Query{Key: rand.Uint64()} }

// counts makes n first picks, which all stay in flight, and returns how many
// each backend got.
func counts(p Picker, backends []*backend.Backend, n int) (got []int) {
	before := make(map[*backend.Backend]int64)
	for _, b := range backends {
		before[b] = b.InFlight()
	}
	for range n {
		p.Pick(newcomer())
	}
	for _, b := range backends {
		got = append(got, int(b.InFlight()-before[b]))
	}
	return got
}

// idleCounts is counts, but each pick ends before the next.
func idleCounts(p Picker, backends []*backend.Backend, n int) []int {
	by := make(map[*backend.Backend]int)
	for range n {
		b := p.Pick(newcomer())
		b.End()
		by[b]++
	}
	var got []int
	for _, b := range backends {
		got = append(got, by[b])
	}
	return got
}

// traits are what the suite expects of a policy beyond what it expects of all.
type traits struct {
	// spec is what its Compile gets besides the name.
	spec Spec
	// spreads: everybody gets requests; who is full is passed over.
	spreads bool
	// looksAt is, for a policy that looks at one backend only, which of the
	// three in a set that is.
	looksAt int
	// rotates: of equals each has its turn, exactly.
	rotates bool
	// keyed: equal keys go to the same backend.
	keyed bool
	// ramps: who starts slowly gets its share.
	ramps bool
	// compares: what is in flight decides.
	compares bool
	// allocates: a pick may.
	allocates bool
}

// known has a line for each policy. One that is compiled in besides those must
// keep the promises that all make.
var known = map[string]traits{
	"roundrobin":          {spreads: true, rotates: true, ramps: true},
	"weighted_roundrobin": {spreads: true, rotates: true, ramps: true},
	"least_conn":          {spreads: true, rotates: true, ramps: true, compares: true},
	"least_time":          {spreads: true, rotates: true, ramps: true, compares: true},
	"ip_hash":             {spreads: true, keyed: true},
	"hash":                {spreads: true, keyed: true},
	"random":              {spreads: true, ramps: true},
	"p2c":                 {spreads: true, ramps: true, compares: true},
	"first":               {looksAt: 0},
	"last":                {looksAt: 2},
	"single":              {looksAt: 0},
	"custom": {
		spec: Spec{Score: "inflight / weight"}, spreads: true, rotates: true, ramps: true, compares: true, allocates: true,
	},
}

// table returns all policies there are.
func table(t *testing.T) (all []Policy) {
	for _, name := range Names() {
		p, ok := Find(name)
		require.True(t, ok)
		all = append(all, p)
	}
	return all
}

// Every policy, whatever it prefers, keeps to the same promises.
func TestPolicies(t *testing.T) {
	for name := range known {
		require.Contains(t, Names(), name)
	}
	for _, p := range table(t) {
		trait, ours := known[p.Name]
		trait.spec.Name = p.Name
		factory, err := p.Compile(trait.spec)
		require.NoError(t, err)
		t.Run(p.Name, func(t *testing.T) {
			promises(t, factory, trait.allocates)
			switch {
			case trait.spreads:
				spreading(t, factory, trait)
			case ours:
				lookingAtOne(t, factory, trait.looksAt)
			}
			if trait.rotates {
				rotating(t, factory)
			}
			if trait.ramps {
				ramping(t, factory)
			}
			if trait.keyed {
				keyed(t, factory)
			}
			if p.Weighted && ours {
				weighing(t, factory)
			}
		})
	}
	bounded, err := New(Spec{Name: "hash", BoundedLoad: 1.25})
	require.NoError(t, err)
	t.Run("hash with a bound", func(t *testing.T) {
		promises(t, bounded, false)
		spreading(t, bounded, traits{})
		weighing(t, bounded)
	})
}

// promises are what every policy must keep.
func promises(t *testing.T, factory Factory, allocates bool) {
	t.Run("an empty set has nobody to offer", func(t *testing.T) {
		require.Nil(t, factory(nil, nil).Pick(new(Query)))
		require.Nil(t, factory(nil, nil).Pick(&Query{Retry: true}))
	})
	t.Run("a pick is a lease on a member of the set", func(t *testing.T) {
		backends := set(3)
		picker := factory(backends, nil)
		for i := range 10 {
			b := picker.Pick(newcomer())
			require.Contains(t, backends, b)
			require.EqualValues(t, i+1, inFlight(backends))
		}
	})
	t.Run("the only backend gets everything", func(t *testing.T) {
		backends := set(1)
		picker := factory(backends, nil)
		for range 10 {
			require.Same(t, backends[0], picker.Pick(newcomer()))
		}
	})
	for _, n := range []int{1, 2, 3, 8, 9, 20} {
		t.Run(fmt.Sprintf("of %d none is picked twice by one request", n), func(t *testing.T) {
			backends := set(n)
			picker := factory(backends, nil)
			q := newcomer()
			seen := make(map[*backend.Backend]bool)
			for range n + 2 {
				b := picker.Pick(q)
				if b == nil {
					break
				}
				require.False(t, seen[b], "%s was tried before", b.ID)
				seen[b] = true
				b.End()
				q.Exclude(b)
				q.Retry = true
			}
			require.Nil(t, picker.Pick(q), "nobody is left, or the policy stops here for good")
			require.Zero(t, inFlight(backends), "a backend that is refused holds no lease")
		})
	}
	t.Run("a change of set or of policy takes the place of the former picker", func(t *testing.T) {
		var prev Picker = stranger{}
		for _, n := range []int{3, 1, 0, 4} {
			backends := set(n)
			prev = factory(backends, prev)
			if b := prev.Pick(newcomer()); n == 0 {
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
					if b := picker.Pick(newcomer()); b == nil {
						t.Error("no backend")
					}
				}
			})
		}
		wg.Wait()
		require.EqualValues(t, workers*picks, inFlight(backends))
	})
	t.Run("many goroutines never take more slots than there are", func(t *testing.T) {
		const workers, picks, limit = 16, 500, 2
		backends := set(4)
		for _, b := range backends {
			b.SetLimit(limit)
		}
		picker := factory(backends, nil)
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				for range picks {
					if b := picker.Pick(newcomer()); b != nil {
						if n := b.InFlight(); n > limit {
							t.Errorf("%d in flight", n)
						}
						b.End()
					}
				}
			})
		}
		wg.Wait()
		require.Zero(t, inFlight(backends))
	})
	t.Run("who finds nobody but full ones has met them", func(t *testing.T) {
		backends := set(3)
		for _, b := range backends {
			b.SetLimit(1)
			require.True(t, b.TryBegin())
		}
		picker := factory(backends, nil)
		for _, retry := range []bool{false, true} {
			q := newcomer()
			q.Retry = retry
			require.Nil(t, picker.Pick(q))
			require.True(t, q.MetFull())
		}
		require.EqualValues(t, 3, inFlight(backends))
	})
	t.Run("a backend on trial gets its trials and no more", func(t *testing.T) {
		for place := range 3 {
			backends := set(3)
			picker := factory(backends, nil)
			period := backends[place].SetTrials(2)
			trials := 0
			for range 300 {
				q := newcomer()
				b := picker.Pick(q)
				require.NotNil(t, b)
				if b == backends[place] {
					trials++
					require.Equal(t, period, q.Trial())
				} else {
					require.Zero(t, q.Trial())
				}
			}
			require.LessOrEqual(t, trials, 2)
		}
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
	t.Run("a pick does not allocate", func(t *testing.T) {
		if allocates {
			return
		}
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

// alike requires that n picks were spread evenly: to a turn or two by a policy
// that rotates, else within six standard deviations, which chance passes once in
// half a billion.
func alike(t *testing.T, got []int, exactly bool) {
	t.Helper()
	n := 0
	for _, g := range got {
		n += g
	}
	each := float64(n) / float64(len(got))
	tolerance := 6 * math.Sqrt(each)
	if exactly {
		tolerance = 2
	}
	for _, g := range got {
		require.InDelta(t, each, g, tolerance, "%v", got)
	}
}

// spreading is for the policies that use all backends.
func spreading(t *testing.T, factory Factory, trait traits) {
	t.Run("everybody gets as much as the others", func(t *testing.T) {
		backends := set(5)
		alike(t, counts(factory(backends, nil), backends, 3000), trait.rotates)
	})
	t.Run("who is full is passed over, until all are", func(t *testing.T) {
		backends := set(20)
		picker := factory(backends, nil)
		for _, b := range backends {
			b.SetLimit(2)
		}
		for range 40 {
			require.NotNil(t, picker.Pick(newcomer()))
		}
		require.Nil(t, picker.Pick(newcomer()))
		require.EqualValues(t, 40, inFlight(backends))
		backends[7].End()
		require.Same(t, backends[7], picker.Pick(newcomer()))
	})
	t.Run("who stands beside a full one gets no more than others", func(t *testing.T) {
		backends := set(6)
		picker := factory(backends, nil)
		backends[2].SetLimit(1)
		require.True(t, backends[2].TryBegin())
		got := idleCounts(picker, backends, 6000)
		require.Zero(t, got[2])
		alike(t, append(got[:2], got[3:]...), trait.rotates)
	})
	t.Run("retries go to all others alike", func(t *testing.T) {
		backends := set(4)
		picker := factory(backends, nil)
		got := make([]int, 4)
		for range 6000 {
			q := newcomer()
			q.Exclude(backends[1])
			q.Retry = true
			b := picker.Pick(q)
			b.End()
			for i := range backends {
				if backends[i] == b {
					got[i]++
				}
			}
		}
		require.Zero(t, got[1])
		alike(t, append(got[:1], got[2:]...), trait.rotates)
	})
	t.Run("the trials of a backend are taken", func(t *testing.T) {
		backends := set(3)
		picker := factory(backends, nil)
		backends[1].SetTrials(2)
		require.Equal(t, 2, counts(picker, backends, 300)[1])
	})
	t.Run("a full backend on trial leaves its trials alone", func(t *testing.T) {
		backends := set(2)
		picker := factory(backends, nil)
		backends[0].SetLimit(1)
		require.True(t, backends[0].TryBegin())
		backends[0].SetTrials(1)
		for range 50 {
			require.Same(t, backends[1], picker.Pick(newcomer()))
		}
		backends[0].End()
		require.Equal(t, 1, counts(picker, backends, 100)[0])
	})
	if !trait.compares {
		return
	}
	t.Run("who has less in flight is preferred", func(t *testing.T) {
		backends := set(2)
		picker := factory(backends, nil)
		for range 10 {
			require.True(t, backends[0].TryBegin())
		}
		require.Equal(t, []int{0, 10}, counts(picker, backends, 10))
	})
}

// lookingAtOne is for the policies that do not spill; place is the one they
// look at, of three.
func lookingAtOne(t *testing.T, factory Factory, place int) {
	t.Run("one gets everything", func(t *testing.T) {
		backends := set(3)
		require.Equal(t, 50, counts(factory(backends, nil), backends, 50)[place])
	})
	t.Run("nobody else is asked when it is full", func(t *testing.T) {
		backends := set(3)
		picker := factory(backends, nil)
		backends[place].SetLimit(2)
		require.Equal(t, 2, counts(picker, backends, 10)[place])
		require.EqualValues(t, 2, inFlight(backends))
		q := newcomer()
		require.Nil(t, picker.Pick(q))
		require.True(t, q.MetFull())
	})
	t.Run("nor when it has failed the request", func(t *testing.T) {
		backends := set(3)
		q := newcomer()
		q.Exclude(backends[place])
		q.Retry = true
		require.Nil(t, factory(backends, nil).Pick(q))
		require.False(t, q.MetFull(), "waiting would not help")
	})
	t.Run("nor where trials are not for rationing", func(t *testing.T) {
		backends := set(3)
		picker := factory(backends, nil)
		backends[place].SetLimit(1)
		backends[place].SetTrials(0)
		require.Same(t, backends[place], picker.Pick(&Query{Unlimited: true}))
		require.Nil(t, picker.Pick(&Query{Unlimited: true}))
	})
	for _, limit := range []int{0, 1} {
		t.Run(fmt.Sprintf("another stands in for it while its trials are given out, limit %d", limit), func(t *testing.T) {
			backends := set(3)
			picker := factory(backends, nil)
			backends[place].SetLimit(limit)
			backends[place].SetTrials(1)
			require.Same(t, backends[place], picker.Pick(newcomer()))
			require.Same(t, backends[1], picker.Pick(newcomer()))
		})
	}
}

// order makes n first picks, each of which ends before the next, and returns
// the names in their order.
func order(p Picker, n int) (names string) {
	for range n {
		b := p.Pick(newcomer())
		b.End()
		names += b.ID
	}
	return names
}

// rotating is for the policies that have an order among equals.
func rotating(t *testing.T, factory Factory) {
	t.Run("equals have their turns", func(t *testing.T) {
		picker := factory(set(4), nil)
		require.Equal(t, "abcdabcdab", order(picker, 10))
	})
	t.Run("a change of the set does not start over", func(t *testing.T) {
		backends := set(4)
		picker := factory(backends, nil)
		require.Equal(t, "a", order(picker, 1))
		require.Equal(t, "bcda", order(factory(backends, picker), 4))
	})
	t.Run("a retry moves no cursor", func(t *testing.T) {
		picker := factory(set(4), nil)
		q := newcomer()
		q.Exclude(picker.Pick(q))
		q.Retry = true
		for range 2 {
			q.Exclude(picker.Pick(q))
		}
		require.Equal(t, "a", q.tried[0].ID)
		for _, b := range q.tried[:3] {
			b.End()
		}
		require.Equal(t, "bcda", order(picker, 4), "others see the order as if there had been no retry")
	})
}

// ramping is for the policies that heed slow starts.
func ramping(t *testing.T, factory Factory) {
	for _, test := range []struct {
		name   string
		shares []int
		want   []int // of 3100
	}{
		{"a tenth of what the others get", []int{1000, 100, 1000, 1000}, []int{1000, 100, 1000, 1000}},
		{"half of it", []int{1000, 500, 500, 1000, 100}, []int{1000, 500, 500, 1000, 100}},
		{"alone it gets everything", []int{100}, []int{3100}},
		{"nobody starves while all of them start slowly", []int{100, 100, 100, 100}, []int{775, 775, 775, 775}},
	} {
		t.Run(test.name, func(t *testing.T) {
			backends := set(len(test.shares))
			for i, share := range test.shares {
				backends[i].SetShare(share)
			}
			picker := factory(backends, nil)
			got := counts(picker, backends, 3100)
			for i, want := range test.want {
				require.InDelta(t, want, got[i], max(12, 6*math.Sqrt(float64(want))), "%v", got)
			}
		})
	}
	t.Run("also while nothing is in flight", func(t *testing.T) {
		backends := set(4)
		backends[2].SetShare(100)
		got := idleCounts(factory(backends, nil), backends, 3000)
		require.Positive(t, got[2])
		require.Less(t, got[2], 180, "%v", got)
	})
	t.Run("a retry asks whatever the share", func(t *testing.T) {
		backends := set(2)
		backends[1].SetShare(100)
		picker := factory(backends, nil)
		for range 20 {
			q := newcomer()
			q.Exclude(backends[0])
			q.Retry = true
			require.Same(t, backends[1], picker.Pick(q))
		}
	})
}

// weighing is for the policies that heed weights.
func weighing(t *testing.T, factory Factory) {
	backends := set(4)
	for i, weight := range []int{1, 2, 5, 2} {
		backends[i].SetTraits(weight, nil)
	}
	picker := factory(backends, nil)
	for i, got := range counts(picker, backends, 10000) {
		require.InEpsilon(t, 1000*backends[i].Weight(), got, 0.15, backends[i].ID)
	}
	for _, b := range backends { // what a picker knows, it has known from the start
		b.SetTraits(1, nil)
	}
	after := make([]int, 4)
	for i, got := range counts(picker, backends, 10000) {
		after[i] = got
	}
	require.Greater(t, after[2], 2*after[1], "%v", after)
}

// keyed is for the policies that hash.
func keyed(t *testing.T, factory Factory) {
	const keys = 20000
	homes := func(p Picker) []string {
		at := make([]string, keys)
		for key := range at {
			b := p.Pick(&Query{Key: uint64(key)})
			b.End()
			at[key] = b.ID
		}
		return at
	}
	weights := map[string][]int{"alike": {1}, "different": {1, 3, 2, 7}}
	for name, weights := range weights {
		weigh := func(backends []*backend.Backend) []*backend.Backend {
			for i, b := range backends {
				b.SetTraits(weights[i%len(weights)], nil)
			}
			return backends
		}
		t.Run("who goes moves its own keys and no others, weights "+name, func(t *testing.T) {
			for _, n := range []int{2, 3, 10, 30} {
				backends := weigh(set(n))
				sum := 0
				for _, b := range backends {
					sum += b.Weight()
				}
				all := homes(factory(backends, nil))
				for _, gone := range []int{0, n / 2, n - 1} {
					rest := append(append([]*backend.Backend{}, backends[:gone]...), backends[gone+1:]...)
					moved := 0
					for key, home := range homes(factory(rest, nil)) {
						if home == all[key] {
							continue
						}
						moved++
						require.Equal(t, backends[gone].ID, all[key], "a key moved that had no need to")
					}
					fair := float64(backends[gone].Weight()) / float64(sum)
					require.LessOrEqual(t, float64(moved)/keys, 1.2*fair, "%d of %d", gone, n)
					require.GreaterOrEqual(t, float64(moved)/keys, 0.8*fair, "%d of %d", gone, n)
				}
			}
		})
	}
	t.Run("another order changes nothing", func(t *testing.T) {
		backends := set(5)
		there := homes(factory(backends, nil))
		backends[0], backends[3] = backends[3], backends[0]
		require.Equal(t, there, homes(factory(backends, nil)))
	})
	t.Run("a key whose backend is full goes where it would without it", func(t *testing.T) {
		backends := set(8)
		without := factory(backends[1:], nil)
		backends[0].SetLimit(1)
		require.True(t, backends[0].TryBegin())
		require.Equal(t, homes(without), homes(factory(backends, nil)))
	})
}

// stranger is a picker of another policy.
type stranger struct{}

func (stranger) Pick(*Query) *backend.Backend { return nil }

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
