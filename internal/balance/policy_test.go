package balance

import (
	"math"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNew(t *testing.T) {
	for name, picker := range map[string]Picker{
		"roundrobin": &roundRobin{}, "round-robin": &roundRobin{}, "rr": &roundRobin{},
		"weighted_roundrobin": &weightedRoundRobin{}, "wrr": &weightedRoundRobin{},
		"least_conn": &leastConn{}, "leastconn": &leastConn{},
		"least_time": &leastTime{}, "leasttime": &leastTime{},
		"ip_hash": &rendezvous{}, "source": &rendezvous{}, "hash": &rendezvous{},
		"random": &random{}, "p2c": &p2c{}, "first": &ends{}, "last": &ends{}, "single": &ends{},
	} {
		factory, err := New(Spec{Name: name})
		require.NoError(t, err)
		require.IsType(t, picker, factory(nil, nil), name)
	}
	_, err := New(Spec{Name: "least_con"})
	require.ErrorContains(t, err, `"least_con"`)
	require.ErrorContains(t, err, "roundrobin", "the error names what there is")
	require.Contains(t, Names(), "roundrobin")
	require.NotContains(t, Names(), "rr")
	require.IsIncreasing(t, append(Names(), "~"))
}

func TestWhatAPolicyKnows(t *testing.T) {
	for name, want := range map[string]Policy{
		"roundrobin": {}, "wrr": {Weighted: true}, "least_conn": {Weighted: true}, "least_time": {Weighted: true},
		"source": {Weighted: true, ByClient: true}, "hash": {Weighted: true, Keyed: true},
		"random": {}, "p2c": {Weighted: true}, "first": {}, "last": {}, "single": {}, "custom": {Weighted: true},
	} {
		p, ok := Find(name)
		require.True(t, ok)
		require.Equal(t, want, Policy{Weighted: p.Weighted, Keyed: p.Keyed, ByClient: p.ByClient}, name)
	}
}

func TestSettings(t *testing.T) {
	for _, test := range []struct {
		spec    Spec
		setting string // "": all is well
		message string
	}{
		{Spec{Name: "hash"}, "", ""},
		{Spec{Name: "hash", BoundedLoad: 1}, "", ""},
		{Spec{Name: "hash", BoundedLoad: 100}, "", ""},
		{Spec{Name: "hash", BoundedLoad: 0.99}, "bounded_load", "from 1 to 100"},
		{Spec{Name: "hash", BoundedLoad: 100.1}, "bounded_load", "from 1 to 100"},
		{Spec{Name: "hash", BoundedLoad: -1}, "bounded_load", "from 1 to 100"},
		{Spec{Name: "hash", BoundedLoad: math.NaN()}, "bounded_load", "from 1 to 100"},
		{Spec{Name: "hash", Score: "1"}, "score", "hash"},
		{Spec{Name: "ip_hash", BoundedLoad: 1.5}, "bounded_load", "ip_hash"},
		{Spec{Name: "rr", BoundedLoad: 1.5}, "bounded_load", "roundrobin"},
		{Spec{Name: "p2c", Score: "1"}, "score", "p2c"},
		{Spec{Name: "custom"}, "score", "missing"},
		{Spec{Name: "custom", Score: "1", BoundedLoad: 2}, "bounded_load", "custom"},
	} {
		_, err := New(test.spec)
		if test.setting == "" {
			require.NoError(t, err)
			continue
		}
		var wrong *SpecError
		require.ErrorAs(t, err, &wrong, "%+v", test.spec)
		require.Equal(t, test.setting, wrong.Setting)
		require.Contains(t, wrong.Message, test.message)
		require.NotEmpty(t, wrong.Suggestion)
		require.Contains(t, err.Error(), wrong.Suggestion)
	}
}

func TestRegisterRefusesWhatIsTaken(t *testing.T) {
	compile := plain(newRandom)
	for message, p := range map[string]Policy{
		`the name "rr" of the policy rr is taken by the policy roundrobin`:       {Name: "rr", Compile: compile},
		`the name "hash" of the policy hash is taken by the policy hash`:         {Name: "hash", Compile: compile},
		`the name "source" of the policy closest is taken by the policy ip_hash`: {Name: "closest", Aliases: []string{"close", "source"}, Compile: compile},
		`the policy "" needs a name and Compile`:                                 {Compile: compile},
		`the policy "closest" needs a name and Compile`:                          {Name: "closest"},
		`the name "random" of the policy closest is taken by the policy random`:  {Name: "closest", Aliases: []string{"random"}, Compile: compile},
		`the name "close" of the policy closest is given twice`:                  {Name: "closest", Aliases: []string{"close", "close"}, Compile: compile},
		`the name "closest" of the policy closest is given twice`:                {Name: "closest", Aliases: []string{"closest"}, Compile: compile},
	} {
		require.PanicsWithValue(t, "balance: "+message, func() { Register(p) })
	}
	_, ok := Find("close")
	require.False(t, ok, "who is refused leaves nothing behind")
}

func TestPoliciesAreFoundWhileOneIsRegistered(t *testing.T) {
	before := len(Names())
	defer func() {
		policies.Lock()
		defer policies.Unlock()
		policies.table = policies.table[:before]
	}()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				Find("custom")
				Names()
			}
		})
	}
	Register(Policy{Name: "closest", Aliases: []string{"close"}, Compile: plain(newRandom)})
	wg.Wait()
	p, ok := Find("close")
	require.True(t, ok)
	require.Equal(t, "closest", p.Name)
}

func TestTakeGivesATrialBackIfThereIsNoSlot(t *testing.T) {
	b := set(1)[0]
	b.SetTrials(1)
	b.SetLimit(1)
	q := new(Query)
	require.True(t, b.TryBegin())
	require.False(t, q.Take(b))
	require.True(t, q.MetFull())
	require.True(t, b.TrialLeft())
	b.End()
	require.True(t, q.Take(b))
	q.Begin()
	require.False(t, q.Take(b))
	require.False(t, q.MetFull(), "its trials are given out, a slot would not help")
	q.Unlimited = true
	require.False(t, q.Take(b))
	require.True(t, q.MetFull(), "now it would")
}

// A trial that is claimed for a slot which somebody else gets is not lost.
func TestTakeLosesNoTrial(t *testing.T) {
	const trials, workers = 20_000, 8
	b := set(1)[0]
	b.SetTrials(trials)
	b.SetLimit(1)
	var taken atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for b.TrialLeft() {
				if new(Query).Take(b) {
					taken.Add(1)
					b.End()
				}
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, trials, taken.Load())
}
