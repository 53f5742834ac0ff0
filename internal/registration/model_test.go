package registration

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/outcome"
)

// naive is the book as one would write it without thinking of speed: one list,
// searched each time.
type naive struct {
	settings Settings
	all      []*entry
	policies map[string]string // of pools
	made     map[string]bool   // pools made by registration
	order    uint64
}

type entry struct {
	Instance
	dropped bool
	busyTo  time.Time // when to look again
	away    time.Time // since when it does not count
}

func (n *naive) find(pool, id string) *entry {
	for _, e := range n.all {
		if e.Pool == pool && e.ID == id {
			return e
		}
	}
	return nil
}

// members returns the instances of a pool that is, in order.
func (n *naive) members(pool string) []Instance {
	all := []Instance{}
	for _, e := range n.all {
		if e.Pool == pool && !e.dropped {
			all = append(all, e.Instance)
		}
	}
	slices.SortFunc(all, func(a, b Instance) int { return cmp.Compare(a.Order, b.Order) })
	return all
}

func (n *naive) counted() (count int) {
	for _, e := range n.all {
		if e.away.IsZero() {
			count++
		}
	}
	return count
}

func (n *naive) madePools() (count int) {
	for pool, made := range n.made {
		if made && len(n.members(pool)) > 0 {
			count++
		}
	}
	return count
}

// register does at once what Decide and Commit do, or returns why not.
func (n *naive) register(now time.Time, r Request, view PoolView) (outcome.Code, []string) {
	former := n.find(r.Pool, r.ID)
	known := former != nil && former.State != Left
	switch {
	case view.Exists && !view.Registration:
		return outcome.RegistrationDisabled, nil
	case view.Exists && r.Invoke != "" && r.Invoke != view.Policy:
		return outcome.OtherPolicy, nil
	case view.Configured[r.ID] != "":
		return outcome.InstanceExists, nil
	}
	policy := cmp.Or(r.Invoke, "single")
	if r.Invoke == "" && known {
		policy = former.Policy
	}
	if view.Exists {
		policy = view.Policy
	}
	evicts := map[string]bool{}
	if known && former.State == Present && former.Address != r.Address {
		if !r.Force {
			return outcome.InstanceExists, nil
		}
		evicts[r.ID] = true
	}
	var others []string
	itself := false
	for _, in := range n.members(r.Pool) {
		if in.State == Present && in.ID != r.ID {
			others = append(others, in.ID)
		}
		itself = itself || in.State == Present && in.ID == r.ID && in.Address == r.Address
	}
	other := !view.Exists && policy != n.policies[r.Pool] && (len(others) > 0 || itself)
	switch second := policy == "single" && len(others) > 0; {
	case other && !r.Force:
		return outcome.OtherPolicy, nil
	case policy == "single" && len(view.Configured) > 0, second && !r.Force:
		return outcome.ProcedureExists, nil
	case other, second:
		for _, id := range others {
			evicts[id] = true
		}
	}
	if (former == nil || !former.away.IsZero()) && n.counted()+1-len(evicts) > n.settings.MaxInstances {
		return outcome.Overloaded, nil
	}
	if !view.Exists && len(n.members(r.Pool)) == 0 && n.madePools()+1 > n.settings.MaxPools {
		return outcome.Overloaded, nil
	}
	for id := range evicts {
		e := n.find(r.Pool, id)
		e.State, e.LeftAt, e.away = Left, now, now
	}
	next := Instance{Pool: r.Pool, ID: r.ID, Weight: 1, TTL: n.settings.TTL, First: now}
	switch {
	case known && !evicts[r.ID] && former.Address == r.Address:
		next = former.Instance
	case known && !evicts[r.ID]:
		next.Order = former.Order
	}
	if next.Order == 0 {
		n.order++
		next.Order = n.order
	}
	next.Address, next.Policy, next.State, next.Seen, next.LeftAt = r.Address, policy, Present, now, time.Time{}
	if r.Weight != nil {
		next.Weight = *r.Weight
	}
	if r.TTL != nil {
		next.TTL = *r.TTL
	}
	if former == nil {
		former = new(entry)
		n.all = append(n.all, former)
	}
	*former = entry{Instance: next}
	n.policies[r.Pool], n.made[r.Pool] = policy, !view.Exists
	evicted := []string{}
	for id := range evicts {
		evicted = append(evicted, id)
	}
	return "", evicted
}

func (n *naive) unregister(now time.Time, pool, id string) bool {
	e := n.find(pool, id)
	if e == nil {
		return false
	}
	if e.State != Left {
		e.State = Left
		if !e.dropped {
			e.LeftAt = now
		}
		if e.away.IsZero() {
			e.away = now
		}
	}
	return true
}

// expire does what Expire does, but for which of too many are forgotten: that is
// left to it, and judged.
func (n *naive) expire(now time.Time, busy func(pool, id string) bool) (expired, dropped, forgotten []string) {
	kept := n.all[:0]
	for _, e := range n.all {
		name := e.Pool + "/" + e.ID
		if e.State == Present && !e.Seen.Add(e.TTL).After(now) && !e.busyTo.After(now) {
			if busy(e.Pool, e.ID) {
				e.busyTo = now.Add(busyAgain)
			} else {
				e.State, e.LeftAt = Expired, now
				expired = append(expired, name)
			}
		}
		if e.State != Present && !e.dropped && !e.LeftAt.Add(10*time.Minute).After(now) {
			e.dropped = true
			dropped = append(dropped, name)
			if e.away.IsZero() {
				e.away = now
			}
		}
		since := e.Seen
		if e.State == Left {
			since = e.LeftAt
		}
		if e.dropped && !since.Add(24*time.Hour).After(now) {
			forgotten = append(forgotten, name)
			continue
		}
		kept = append(kept, e)
	}
	n.all = kept
	return expired, dropped, forgotten
}

// follow does what is due, and requires that the book did the same. The book may
// have forgotten more, if more than MaxInstances are away: those that have been
// so for longest.
func (n *naive) follow(t *testing.T, now time.Time, busy func(pool, id string) bool, dropped, forgotten []Instance) (expired []string) {
	expired, wantDropped, wantForgotten := n.expire(now, busy)
	var latest time.Time
	n.all = slices.DeleteFunc(n.all, func(e *entry) bool {
		name := e.Pool + "/" + e.ID
		more := slices.Contains(names(forgotten), name)
		if more {
			require.False(t, e.away.IsZero(), name)
			wantForgotten = append(wantForgotten, name)
			if !e.dropped {
				wantDropped = append(wantDropped, name)
			}
			if e.away.After(latest) {
				latest = e.away
			}
		}
		return more
	})
	require.ElementsMatch(t, wantDropped, names(dropped))
	require.ElementsMatch(t, wantForgotten, names(forgotten))
	if away := len(n.all) - n.counted(); latest.IsZero() {
		require.LessOrEqual(t, away, n.settings.MaxInstances)
	} else {
		require.Equal(t, n.settings.MaxInstances, away, "no more than need be")
	}
	for _, e := range n.all {
		require.False(t, !e.away.IsZero() && e.away.Before(latest), "%s/%s has been away for longer", e.Pool, e.ID)
	}
	return expired
}

func (n *naive) restart(now time.Time) {
	n.order = 0
	latest := make(map[string]time.Time)
	for _, e := range n.all {
		n.order = max(n.order, e.Order)
		n.made[e.Pool] = true
		e.busyTo = time.Time{}
		when := e.LeftAt
		if e.State == Present {
			e.Seen, when = now, now.Add(1)
		} else if !now.Before(e.LeftAt.Add(10 * time.Minute)) {
			e.dropped = true
		}
		if e.State == Left || e.dropped {
			e.away = e.LeftAt
		}
		if !when.Before(latest[e.Pool]) {
			latest[e.Pool], n.policies[e.Pool] = when, e.Policy
		}
	}
}

// same requires that the book knows what the model knows.
func (n *naive) same(t *testing.T, b *Book, pools []string) {
	var want []Pool
	for _, pool := range pools {
		members := n.members(pool)
		require.Equal(t, members, append([]Instance{}, b.Instances(pool)...))
		if len(members) > 0 {
			present := 0
			for _, in := range members {
				if in.State == Present {
					present++
				}
			}
			want = append(want, Pool{Name: pool, Policy: n.policies[pool], Present: present})
		}
	}
	require.ElementsMatch(t, want, b.Pools())
	for _, e := range n.all {
		got, ok := b.Get(e.Pool, e.ID)
		require.True(t, ok)
		require.Equal(t, e.Instance, got)
	}
	require.Equal(t, n.counted(), b.counted)
	require.Equal(t, n.madePools(), b.made)
	require.Equal(t, len(n.all)-n.counted(), b.gone.Len())
	require.Len(t, b.schedule, len(n.all))
}

func names(list []Instance) []string {
	var all []string
	for _, in := range list {
		all = append(all, in.Pool+"/"+in.ID)
	}
	return all
}

func TestBookAgainstModel(t *testing.T) {
	for seed := range uint64(100) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { modelRun(t, rand.New(rand.NewPCG(seed, 5))) })
	}
}

func modelRun(t *testing.T, r *rand.Rand) {
	set := Settings{TTL: time.Minute, MaxInstances: 6 + r.IntN(8), MaxPools: 1 + r.IntN(4)}
	b := NewBook(set)
	n := &naive{settings: set, policies: make(map[string]string), made: make(map[string]bool)}
	views := map[string]PoolView{
		"x": {}, "y": {}, "z": {},
		"rr":   {Exists: true, Registration: true, Policy: "roundrobin", Configured: map[string]string{"d": "d:80"}},
		"one":  {Exists: true, Registration: true, Policy: "single"},
		"shut": {Exists: true, Policy: "roundrobin"},
	}
	pools := []string{"x", "y", "z", "rr", "one", "shut"}
	pick := func(from ...string) string { return from[r.IntN(len(from))] }
	now := epoch
	for step := range 200 {
		now = now.Add(time.Duration(r.Int64N(int64(20 * time.Second))))
		if r.IntN(40) == 0 {
			now = now.Add(time.Duration(r.Int64N(int64(30 * time.Hour))))
		}
		if r.IntN(20) == 0 { // a reload
			views["z"], views["one"] = views["one"], views["z"]
		}
		pool, id := pick(pools...), pick("a", "b", "c", "d")
		switch op := r.IntN(20); {
		case op < 12:
			req := Request{Pool: pool, ID: id, Address: id + pick(":80", ":80", ":80", ":81"), Invoke: pick("", "", "single", "roundrobin"), Force: r.IntN(5) == 0}
			if r.IntN(4) == 0 {
				req.Weight = ptr(1 + r.IntN(3))
			}
			if r.IntN(4) == 0 {
				req.TTL = ptr(time.Duration(1+r.IntN(100)) * time.Second)
			}
			before, wasKnown := b.Get(pool, id)
			there := len(b.Instances(pool)) > 0
			d, err := b.Decide(now, req, views[pool])
			code, evicted := n.register(now, req, views[pool])
			if err != nil {
				require.Equal(t, code, err.Code, "step %d: %+v: %v", step, req, err)
				break
			}
			require.Empty(t, code, "step %d: %+v", step, req)
			require.ElementsMatch(t, evicted, append([]string{}, ids(d.Evicts)...))
			heartbeat := wasKnown && before.State != Left && before.Address == req.Address
			require.Equal(t, !heartbeat, d.Created)
			require.Equal(t, wasKnown && before.State != Present, d.Returned)
			require.Equal(t, !there && !views[pool].Exists, d.NewPool)
			require.Equal(t, n.find(pool, id).Instance, d.Instance)
			require.Equal(t, d.Policy, n.policies[pool])
			b.Commit(d)
		case op < 15:
			d, err := b.Unregister(now, id, pool, nil)
			require.Equal(t, n.unregister(now, pool, id), err == nil)
			if err == nil {
				b.Commit(d)
			}
		case op < 19:
			busyID := pick("a", "b", "none")
			busy := func(_, id string) bool { return id == busyID }
			expired, dropped, forgotten, next := b.Expire(now, busy)
			require.ElementsMatch(t, n.follow(t, now, busy, dropped, forgotten), names(expired), "step %d", step)
			require.True(t, next.IsZero() || next.After(now))
		default: // a restart
			var kept []Instance
			for _, p := range pools {
				for _, id := range []string{"a", "b", "c", "d"} {
					if in, ok := b.Get(p, id); ok {
						document, err := json.Marshal(in)
						require.NoError(t, err)
						require.NoError(t, json.Unmarshal(document, &in))
						kept = append(kept, in)
					}
				}
			}
			b = NewBook(set)
			b.Restore(now, kept, func(string) bool { return false })
			n.restart(now)
		}
		n.same(t, b, pools)
	}
}
