package registration

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/config"
	"lb/internal/outcome"
)

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var settings = Settings{TTL: 90 * time.Second, MaxInstances: 100, MaxPools: 10}

func idle(string, string) bool { return false }

// requireStored requires that what is stored of in comes back.
func requireStored(t testing.TB, in Instance) {
	document, err := json.Marshal(in)
	require.NoError(t, err)
	var back Instance
	require.NoError(t, json.Unmarshal(document, &back), "%s", document)
	require.Equal(t, in, back)
}

// at is a registration of id at an address of its own.
func at(pool, id string) Request { return Request{Pool: pool, ID: id, Address: id + ":80"} }

func invoking(r Request, policy string) Request {
	r.Invoke = policy
	return r
}

func forced(r Request) Request {
	r.Force = true
	return r
}

func moved(r Request) Request {
	r.Address = "elsewhere:80"
	return r
}

// enter registers, which must go well.
func enter(t testing.TB, b *Book, now time.Time, r Request, view PoolView) Decision {
	t.Helper()
	d, err := b.Decide(now, r, view)
	require.Nil(t, err, "%v", err)
	b.Commit(d)
	return d
}

func ids(list []Instance) []string {
	var ids []string
	for _, in := range list {
		ids = append(ids, in.ID)
	}
	return ids
}

// Who stands in whose way, and what force does about it.
func TestConflicts(t *testing.T) {
	rr := func(id string) Request { return invoking(at("p", id), "roundrobin") }
	configured := PoolView{Exists: true, Registration: true, Policy: "roundrobin", Configured: map[string]string{"c": "c:80"}}
	closed := PoolView{Exists: true, Policy: "roundrobin"}
	alone := PoolView{Exists: true, Registration: true, Policy: "single"}
	for name, test := range map[string]struct {
		before []Request
		view   PoolView
		r      Request
		want   outcome.Code
		detail string
		evicts []string // with force, what is refused without
	}{
		"a second on single":            {[]Request{at("p", "a")}, PoolView{}, at("p", "b"), outcome.ProcedureExists, "", []string{"a"}},
		"a second on single, said":      {[]Request{at("p", "a")}, PoolView{}, invoking(at("p", "b"), "single"), outcome.ProcedureExists, "with force", []string{"a"}},
		"another policy on single":      {[]Request{at("p", "a")}, PoolView{}, rr("b"), outcome.OtherPolicy, "has the policy single", []string{"a"}},
		"single on another policy":      {[]Request{rr("a"), rr("b")}, PoolView{}, at("p", "c"), outcome.OtherPolicy, "which stands for single if it is left out", []string{"a", "b"}},
		"another policy":                {[]Request{rr("a"), rr("b")}, PoolView{}, invoking(at("p", "c"), "random"), outcome.OtherPolicy, "write that as invoke, or", []string{"a", "b"}},
		"another policy for itself":     {[]Request{rr("a"), rr("b")}, PoolView{}, invoking(at("p", "a"), "random"), outcome.OtherPolicy, "", []string{"b"}},
		"the only one changes":          {[]Request{rr("a")}, PoolView{}, invoking(at("p", "a"), "random"), outcome.OtherPolicy, "", []string{}},
		"an id at another address":      {[]Request{rr("a"), rr("b")}, PoolView{}, moved(rr("a")), outcome.InstanceExists, `at a:80`, []string{"a"}},
		"the same, without invoke":      {[]Request{rr("a"), rr("b")}, PoolView{}, moved(at("p", "a")), outcome.InstanceExists, "", []string{"a"}},
		"an id, and another policy":     {[]Request{rr("a"), rr("b")}, PoolView{}, invoking(moved(at("p", "a")), "last"), outcome.InstanceExists, "", []string{"a", "b"}},
		"an id on single":               {[]Request{at("p", "a")}, PoolView{}, moved(at("p", "a")), outcome.InstanceExists, "", []string{"a"}},
		"an id in a configured pool":    {[]Request{at("p", "a")}, configured, moved(at("p", "a")), outcome.InstanceExists, "", []string{"a"}},
		"a second on configured single": {[]Request{at("p", "a")}, alone, at("p", "b"), outcome.ProcedureExists, "", []string{"a"}},
		// What force does not change either.
		"a configured id":             {nil, configured, at("p", "c"), outcome.InstanceExists, "in the configuration", nil},
		"a configured id elsewhere":   {nil, configured, moved(at("p", "c")), outcome.InstanceExists, "at c:80", nil},
		"a configured single":         {nil, PoolView{Exists: true, Registration: true, Policy: "single", Configured: configured.Configured}, at("p", "a"), outcome.ProcedureExists, "stays", nil},
		"a configured policy":         {nil, configured, invoking(at("p", "a"), "random"), outcome.OtherPolicy, "leave invoke out", nil},
		"a closed pool":               {nil, closed, at("p", "a"), outcome.RegistrationDisabled, "registration: true", nil},
		"a policy that needs a key":   {nil, PoolView{}, invoking(at("p", "a"), "hash"), outcome.RegistrationInvalid, "invoke", nil},
		"a policy that needs a score": {nil, PoolView{}, invoking(at("p", "a"), "custom"), outcome.RegistrationInvalid, "invoke", nil},
	} {
		t.Run(name, func(t *testing.T) {
			b := NewBook(settings)
			for _, r := range test.before {
				enter(t, b, epoch, r, test.view)
			}
			before := b.Instances("p")
			_, err := b.Decide(epoch, test.r, test.view)
			require.NotNil(t, err)
			require.Equal(t, test.want, err.Code)
			require.Contains(t, err.Detail, test.detail)
			if test.want == outcome.RegistrationInvalid {
				require.Equal(t, "invoke", err.Fields[0].Field)
			}

			d, err := b.Decide(epoch, forced(test.r), test.view)
			require.Equal(t, before, b.Instances("p"), "deciding changes nothing")
			if test.evicts == nil {
				require.NotNil(t, err)
				require.Equal(t, test.want, err.Code)
				return
			}
			require.Nil(t, err, "%v", err)
			require.ElementsMatch(t, test.evicts, ids(d.Evicts))
			require.True(t, d.Changed)
			for _, e := range d.Evicts {
				require.Equal(t, Left, e.State)
				require.Equal(t, epoch, e.LeftAt)
			}
			b.Commit(d)
			got, known := b.Get("p", test.r.ID)
			require.True(t, known)
			require.Equal(t, d.Instance, got)
			require.Equal(t, test.r.Address, got.Address)
			for _, in := range b.Instances("p") {
				gone := in.ID != test.r.ID && slices.Contains(test.evicts, in.ID)
				require.Equal(t, gone, in.State == Left, in.ID)
			}
			stored := d.Stores()
			require.Equal(t, d.Instance, stored[0])
			require.NotContains(t, ids(stored[1:]), d.Instance.ID, "one document an id")
			_, err = b.Decide(epoch, test.r, test.view)
			require.Nil(t, err, "the next heartbeat needs no force: %v", err)
		})
	}
}

func TestHeartbeatIsAThirdOfTheTTL(t *testing.T) {
	for ttl, want := range map[time.Duration]string{
		time.Second: "333ms", 2 * time.Second: "666ms", 30 * time.Second: "10s", 1001 * time.Millisecond: "333ms", 24 * time.Hour: "8h0m0s",
	} {
		require.Equal(t, want, Instance{TTL: ttl}.Heartbeat().String(), ttl)
	}
}

func TestHeartbeat(t *testing.T) {
	b := NewBook(settings)
	first := at("p", "a")
	first.Invoke, first.Weight, first.Concurrency, first.TTL = "roundrobin", ptr(3), ptr(4), ptr(30*time.Second)
	first.Labels, first.Health = map[string]string{"zone": "a"}, new(config.Health)
	d := enter(t, b, epoch, first, PoolView{})
	require.True(t, d.Created && d.Changed && d.NewPool)
	require.False(t, d.Returned || d.NewPolicy)
	require.Equal(t, "roundrobin", d.Policy)
	require.Equal(t, 10*time.Second, d.Instance.Heartbeat())
	was := d.Instance
	require.Equal(t, Instance{
		Pool: "p", ID: "a", Address: "a:80", Weight: 3, Policy: "roundrobin", Concurrency: ptr(4), TTL: 30 * time.Second,
		Labels: first.Labels, Health: first.Health, Order: 1, First: epoch, Seen: epoch,
	}, was)

	later := epoch.Add(10 * time.Second)
	d = enter(t, b, later, at("p", "a"), PoolView{})
	require.False(t, d.Created || d.Changed || d.NewPool || d.Returned)
	was.Seen = later
	require.Equal(t, was, d.Instance, "what is not said stays")
	require.False(t, enter(t, b, later, first, PoolView{}).Changed, "what is said again has not changed")

	for field, change := range map[string]func(*Request){
		"weight":      func(r *Request) { r.Weight = ptr(5) },
		"concurrency": func(r *Request) { r.Concurrency = ptr(0) },
		"ttl":         func(r *Request) { r.TTL = ptr(time.Second) },
		"labels":      func(r *Request) { r.Labels = map[string]string{} },
		"health":      func(r *Request) { r.Health = &config.Health{Path: "/"} },
	} {
		r := at("p", "a")
		change(&r)
		d, err := b.Decide(later, r, PoolView{})
		require.Nil(t, err)
		require.True(t, d.Changed, field)
		require.False(t, d.Created)
	}

	unlabelled := invoking(at("p", "b"), "roundrobin")
	unlabelled.Labels = map[string]string{}
	newcomer := enter(t, b, later, unlabelled, PoolView{}).Instance
	require.Nil(t, newcomer.Labels, "none, said or not")
	require.Equal(t, 1, newcomer.Weight)
	require.Equal(t, 90*time.Second, newcomer.TTL)
	require.Nil(t, newcomer.Concurrency, "the pool's per_backend")
	require.Equal(t, []string{"a", "b"}, ids(b.Instances("p")))
	require.Equal(t, []Pool{{Name: "p", Policy: "roundrobin", Present: 2}}, b.Pools())

	view := PoolView{Exists: true, Registration: true, Policy: "hash"}
	d = enter(t, b, later, at("q", "a"), view)
	require.Equal(t, "hash", d.Policy, "a configured pool may have any policy")
	require.False(t, d.NewPool)
}

// One that went silent is out, may come back to its place, and is forgotten.
func TestExpire(t *testing.T) {
	b := NewBook(settings)
	for _, id := range []string{"a", "b", "c"} {
		enter(t, b, epoch, invoking(at("p", id), "roundrobin"), PoolView{})
	}
	require.Equal(t, epoch.Add(90*time.Second), b.Next())
	busy := true
	work := func(_, id string) bool { return id == "b" && busy }
	expired, dropped, forgotten, next := b.Expire(epoch.Add(89*time.Second), work)
	require.Empty(t, append(append(expired, dropped...), forgotten...))
	require.Equal(t, epoch.Add(90*time.Second), next)

	enter(t, b, epoch.Add(89*time.Second), at("p", "c"), PoolView{})
	now := epoch.Add(90 * time.Second)
	expired, _, _, next = b.Expire(now, work)
	require.Equal(t, []string{"a"}, ids(expired))
	require.Equal(t, Expired, expired[0].State)
	require.Equal(t, now, expired[0].LeftAt)
	require.Equal(t, now.Add(250*time.Millisecond), next, "b is silent, but at work")
	busy = false
	expired, _, _, _ = b.Expire(next, work)
	require.Equal(t, []string{"b"}, ids(expired))
	require.Equal(t, []Pool{{Name: "p", Policy: "roundrobin", Present: 1}}, b.Pools())

	back := now.Add(9 * time.Minute)
	enter(t, b, back, at("p", "c"), PoolView{})
	d := enter(t, b, back, at("p", "a"), PoolView{})
	require.True(t, d.Returned && d.Changed)
	require.False(t, d.Created, "the same instance, at the same address")
	require.Equal(t, epoch, d.Instance.First)
	require.Equal(t, []string{"a", "b", "c"}, ids(b.Instances("p")), "in its place")

	expired, dropped, _, _ = b.Expire(now.Add(10*time.Minute+250*time.Millisecond), work)
	require.Empty(t, expired)
	require.Equal(t, []string{"b"}, ids(dropped))
	require.Equal(t, []string{"a", "c"}, ids(b.Instances("p")))
	d, err := b.Decide(now.Add(20*time.Hour), moved(at("p", "b")), PoolView{})
	require.Nil(t, err)
	require.True(t, d.Created && d.Returned, "an expired one may come back anywhere")
	require.EqualValues(t, 2, d.Instance.Order)

	_, _, forgotten, _ = b.Expire(epoch.Add(24*time.Hour), func(_, id string) bool { return id != "b" })
	require.Equal(t, []string{"b"}, ids(forgotten))
	_, known := b.Get("p", "b")
	require.False(t, known)
}

// A pool that nobody is left in is forgotten, and may be made anew.
func TestEmptiedPool(t *testing.T) {
	b := NewBook(settings)
	enter(t, b, epoch, invoking(at("p", "a"), "roundrobin"), PoolView{})
	gone := epoch.Add(90 * time.Second)
	b.Expire(gone, idle)
	require.Equal(t, []Pool{{Name: "p", Policy: "roundrobin"}}, b.Pools(), "it is there, and empty")

	d, err := b.Decide(gone, at("p", "b"), PoolView{})
	require.Nil(t, err, "with any policy")
	require.True(t, d.NewPolicy)
	require.False(t, d.NewPool)
	require.Equal(t, "single", d.Policy)
	d, err = b.Decide(gone, at("p", "a"), PoolView{})
	require.Nil(t, err)
	require.Equal(t, "roundrobin", d.Policy, "one that comes back need not say it again")
	require.False(t, d.NewPolicy)

	_, dropped, _, next := b.Expire(gone.Add(10*time.Minute), idle)
	require.Equal(t, []string{"a"}, ids(dropped))
	require.Empty(t, b.Pools())
	d, err = b.Decide(gone.Add(time.Hour), at("p", "a"), PoolView{})
	require.Nil(t, err)
	require.True(t, d.NewPool && d.Returned)
	require.Equal(t, "roundrobin", d.Policy)

	require.Equal(t, epoch.Add(24*time.Hour), next)
	_, _, forgotten, next := b.Expire(next, idle)
	require.Equal(t, []string{"a"}, ids(forgotten))
	require.Zero(t, next)
	require.Empty(t, b.pools)
}

func TestUnregister(t *testing.T) {
	b := NewBook(settings)
	enter(t, b, epoch, at("p", "a"), PoolView{})
	enter(t, b, epoch, at("q", "a"), PoolView{})
	enter(t, b, epoch, at("q2", "b"), PoolView{})
	now := epoch.Add(time.Second)
	refused := func(id, pool string, in []string, code outcome.Code, detail string) {
		t.Helper()
		_, err := b.Unregister(now, id, pool, in)
		require.NotNil(t, err)
		require.Equal(t, code, err.Code)
		require.Contains(t, err.Detail, detail)
	}
	refused("a", "", nil, outcome.AmbiguousInstance, "p, q")
	refused("a", "q2", nil, outcome.InstanceNotFound, `in pool "q2"`)
	refused("c", "", nil, outcome.InstanceNotFound, "anywhere within 24h")
	refused("c", "", []string{"q", "p"}, outcome.InstanceNotFound, `pool "p" in the configuration`)
	refused("c", "q", []string{"q", "p"}, outcome.InstanceNotFound, `pool "q" in the configuration`)
	refused("c", "r", []string{"q", "p"}, outcome.InstanceNotFound, `in pool "r"`)
	refused("a", "p", []string{"p"}, outcome.InstanceNotFound, "in the configuration")

	d, err := b.Unregister(now, "a", "p", nil)
	require.Nil(t, err)
	require.True(t, d.Changed)
	before, _ := b.Get("p", "a")
	require.Equal(t, Present, before.State, "nothing has happened yet")
	b.Commit(d)
	after, _ := b.Get("p", "a")
	before.State, before.LeftAt = Left, now
	require.Equal(t, before, after)
	require.Equal(t, []Instance{after}, b.Instances("p"), "until it is dropped")

	d, err = b.Unregister(now.Add(time.Hour), "a", "p", nil)
	require.Nil(t, err, "again")
	require.False(t, d.Changed)
	require.Equal(t, now, d.Instance.LeftAt)
	d, err = b.Unregister(now, "a", "", nil)
	require.Nil(t, err, "the one that is still there")
	require.Equal(t, "q", d.Instance.Pool)

	again := enter(t, b, now, at("p", "a"), PoolView{})
	require.True(t, again.Created && again.Returned)
	require.Equal(t, now, again.Instance.First)
	enter(t, b, now, invoking(at("r", "x"), "roundrobin"), PoolView{})
	enter(t, b, now, invoking(at("r", "y"), "roundrobin"), PoolView{})
	d, _ = b.Unregister(now, "x", "", nil)
	b.Commit(d)
	_, err = b.Decide(now, at("r", "x"), PoolView{})
	require.Equal(t, outcome.OtherPolicy, err.Code, "one that left begins anew, as single unless it says otherwise")
	enter(t, b, now, invoking(at("r", "x"), "roundrobin"), PoolView{})
	require.Equal(t, []string{"y", "x"}, ids(b.Instances("r")), "at the end")

	// One that expired can leave, too, and what was dropped stays so.
	b.Expire(now.Add(2*time.Minute), idle)
	b.Expire(now.Add(15*time.Minute), idle)
	require.Empty(t, b.Instances("q2"))
	d, err = b.Unregister(now.Add(15*time.Minute), "b", "", nil)
	require.Nil(t, err)
	require.True(t, d.Changed)
	b.Commit(d)
	require.Empty(t, b.Instances("q2"))
	_, _, forgotten, _ := b.Expire(now.Add(24*time.Hour+15*time.Minute), idle)
	require.Contains(t, ids(forgotten), "b")
	refused("b", "", nil, outcome.InstanceNotFound, "within 24h")
}

func TestBounds(t *testing.T) {
	b := NewBook(Settings{TTL: time.Minute, MaxInstances: 3, MaxPools: 2})
	view := PoolView{Exists: true, Registration: true, Policy: "roundrobin"}
	enter(t, b, epoch, at("p1", "a"), PoolView{})
	enter(t, b, epoch, at("p2", "a"), PoolView{})
	_, err := b.Decide(epoch, at("p3", "a"), PoolView{})
	require.Equal(t, outcome.Overloaded, err.Code)
	require.Contains(t, err.Detail, "registration.max_pools is 2")
	enter(t, b, epoch, at("configured", "a"), view)
	_, err = b.Decide(epoch, at("configured", "b"), view)
	require.Equal(t, outcome.Overloaded, err.Code)
	require.Contains(t, err.Detail, "registration.max_instances is 3")
	enter(t, b, epoch, at("p1", "a"), PoolView{})         // who is in stays in
	enter(t, b, epoch, forced(at("p1", "b")), PoolView{}) // and one may take another's place

	b.Expire(epoch.Add(time.Minute), idle)
	_, err = b.Decide(epoch.Add(time.Minute), at("p2", "b"), PoolView{})
	require.Equal(t, outcome.Overloaded, err.Code, "expired ones count until they are dropped")
	b.Expire(epoch.Add(11*time.Minute), idle)
	require.Empty(t, b.Pools())
	enter(t, b, epoch.Add(11*time.Minute), at("p3", "a"), PoolView{})

	b.SetSettings(Settings{TTL: time.Minute, MaxInstances: 0})
	enter(t, b, epoch.Add(11*time.Minute), at("p3", "a"), PoolView{}) // as before
	_, err = b.Decide(epoch, at("p3", "b"), PoolView{Exists: true, Registration: true})
	require.Equal(t, outcome.Overloaded, err.Code)
}

// Who registers and leaves again and again does not fill the memory.
func TestFloodOfDepartures(t *testing.T) {
	b := NewBook(Settings{TTL: time.Minute, MaxInstances: 5, MaxPools: 1})
	now := epoch
	for i := range 100 {
		now = now.Add(time.Millisecond)
		enter(t, b, now, at("p", fmt.Sprint(i)), PoolView{})
		d, err := b.Unregister(now, fmt.Sprint(i), "p", nil)
		require.Nil(t, err)
		b.Commit(d)
		if next := b.Next(); !next.After(now) {
			_, dropped, forgotten, next := b.Expire(now, idle)
			require.Equal(t, []string{fmt.Sprint(i - 5)}, ids(forgotten), "who left first")
			require.Equal(t, ids(forgotten), ids(dropped), "its state goes, too")
			require.True(t, next.After(now))
		}
		require.LessOrEqual(t, len(b.pools["p"].known), 5)
	}
}

func TestRestore(t *testing.T) {
	b := NewBook(settings)
	for _, id := range []string{"a", "b", "c", "d"} {
		enter(t, b, epoch, invoking(at("p", id), "roundrobin"), PoolView{})
	}
	enter(t, b, epoch.Add(time.Minute), at("p", "a"), PoolView{})
	b.Expire(epoch.Add(90*time.Second), func(_, id string) bool { return id != "b" })
	d, _ := b.Unregister(epoch.Add(time.Minute), "d", "p", nil)
	b.Commit(d)
	kept := b.Instances("p")
	slices.Reverse(kept) // a store gives them in any order

	now := epoch.Add(11 * time.Minute) // d was due at this very moment
	b = NewBook(settings)
	b.Restore(now, kept, func(string) bool { return false })
	require.Equal(t, []string{"a", "b", "c"}, ids(b.Instances("p")), "in order, without the one that was due")
	_, known := b.Get("p", "d")
	require.True(t, known)
	require.Equal(t, []Pool{{Name: "p", Policy: "roundrobin", Present: 2}}, b.Pools())
	expired, dropped, _, next := b.Expire(now.Add(30*time.Second), idle)
	require.Empty(t, expired, "silent for 11 minutes, but nobody could be heard")
	require.Equal(t, []string{"b"}, ids(dropped))
	require.Equal(t, now.Add(90*time.Second), next)
	expired, _, _, _ = b.Expire(next, idle)
	require.ElementsMatch(t, []string{"a", "c"}, ids(expired))
	require.EqualValues(t, 5, enter(t, b, next, invoking(at("p", "e"), "roundrobin"), PoolView{}).Instance.Order, "orders go on")

	b = NewBook(settings)
	b.Restore(epoch.Add(-time.Hour), kept, func(string) bool { return false })
	for _, in := range kept {
		in, _ := b.Get("p", in.ID)
		require.False(t, in.Seen.After(epoch.Add(-time.Hour)) || in.LeftAt.After(epoch.Add(-time.Hour)), "times to come are not believed")
	}
}

func TestInstanceDocument(t *testing.T) {
	health := new(config.Health)
	health.SetDefaults()
	health.Headers = []config.HeaderValue{{Name: "X-A", Value: "b"}}
	full := Instance{
		Pool: "p", ID: "a", Address: "a:80", Weight: 2, Policy: "roundrobin", Concurrency: ptr(0), TTL: 1500 * time.Millisecond,
		Labels: map[string]string{"zone": "a"}, Health: health, State: Expired, Order: 7, First: epoch, Seen: epoch.Add(time.Second), LeftAt: epoch.Add(time.Minute),
	}
	requireStored(t, full)
	requireStored(t, Instance{Pool: "p", ID: "a", Address: "a:80", Weight: 1, TTL: time.Second, First: epoch, Seen: epoch})

	document, err := json.Marshal(full)
	require.NoError(t, err)
	// What is in files that exist.
	require.Equal(t, `{"pool":"p","id":"a","address":"a:80","weight":2,"policy":"roundrobin","concurrency":0,"ttl":"1.5s","labels":{"zone":"a"},`+
		`"health":{"type":"http","path":"/","method":"GET","headers":[{"Name":"X-A","Value":"b"}],"statuses":"200-399","interval":"2s","timeout":"1s",`+
		`"rise":2,"fall":3,"initial":"probe"},"state":"expired","order":7,"first":"2026-03-01T12:00:00Z","seen":"2026-03-01T12:00:01Z","left_at":"2026-03-01T12:01:00Z"}`,
		string(document))

	var in Instance
	require.NoError(t, json.Unmarshal([]byte(`{"pool":"p","id":"a","address":"a:80","ttl":"1s","state":"left","zone":{"of":"a later version"}}`), &in))
	require.Equal(t, Instance{Pool: "p", ID: "a", Address: "a:80", Weight: 1, TTL: time.Second, State: Left}, in)
	for _, bad := range []string{`{}`, `[]`, `{"pool":"p","id":"a","address":"a:80","ttl":"1s","state":"asleep"}`, `{"pool":"p","id":"a","address":"a:80"}`} {
		require.Error(t, json.Unmarshal([]byte(bad), &in), bad)
	}
}

// full returns a book of 10,000 instances in one pool.
func full(b *testing.B) (*Book, []Request) {
	book := NewBook(Settings{TTL: time.Minute, MaxInstances: 20000, MaxPools: 1})
	requests := make([]Request, 10000)
	for i := range requests {
		requests[i] = invoking(at("p", fmt.Sprintf("w%d", i)), "roundrobin")
		enter(b, book, epoch.Add(time.Duration(i)*time.Millisecond), requests[i], PoolView{})
	}
	return book, requests
}

func BenchmarkHeartbeatOf10000(b *testing.B) {
	book, requests := full(b)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		d, err := book.Decide(epoch.Add(time.Minute), requests[i%len(requests)], PoolView{})
		if err != nil {
			b.Fatal(err)
		}
		book.Commit(d)
	}
}

// One expires and comes back.
func BenchmarkExpireOneOf10000(b *testing.B) {
	book, requests := full(b)
	now := epoch.Add(time.Minute)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		now = now.Add(time.Millisecond)
		if expired, _, _, _ := book.Expire(book.Next(), idle); len(expired) != 1 {
			b.Fatal(len(expired))
		}
		d, err := book.Decide(now, requests[i%len(requests)], PoolView{})
		if err != nil {
			b.Fatal(err)
		}
		book.Commit(d)
	}
}

// After a restart, too, only the pools that registration made count as such.
func TestPoolsOfTheConfigurationDoNotCount(t *testing.T) {
	one := Instance{
		Pool: "configured", ID: "a", Address: "127.0.0.1:1", Weight: 1, Policy: "roundrobin", TTL: time.Minute,
		First: epoch, Seen: epoch,
	}
	for configured, want := range map[bool]bool{true: true, false: false} {
		b := NewBook(Settings{TTL: time.Minute, MaxInstances: 10, MaxPools: 1})
		b.Restore(epoch, []Instance{one}, func(pool string) bool { return configured && pool == "configured" })
		_, bad := b.Decide(epoch, Request{Pool: "new", ID: "b", Address: "127.0.0.1:2"}, PoolView{})
		require.Equal(t, want, bad == nil, "configured: %v: %v", configured, bad)
	}
}

// What is due at once is carried out in parts: others have their turn in between.
func TestExpireInParts(t *testing.T) {
	b := NewBook(Settings{TTL: time.Minute, MaxInstances: 1000, MaxPools: 1})
	for i := range 250 {
		id := fmt.Sprintf("%03d", i)
		d, bad := b.Decide(epoch, Request{Pool: "p", ID: id, Address: "127.0.0.1:" + id, Invoke: "random"}, PoolView{})
		require.Nil(t, bad)
		b.Commit(d)
	}
	var all []int
	now := epoch.Add(time.Hour)
	for next := now; !next.After(now); {
		var expired []Instance
		expired, _, _, next = b.Expire(now, idle)
		all = append(all, len(expired))
	}
	require.Equal(t, []int{100, 100, 50}, all)
}
