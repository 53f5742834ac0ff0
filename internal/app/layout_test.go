package app

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/admin"
	"lb/internal/backend"
	"lb/internal/balance"
	"lb/internal/outcome"
	"lb/internal/pool"
)

const settledConfig = `
admin: { address: "" }
storage: { path: "" }
log: { level: error }
shutdown: { drain: 1s }
listeners:
  - { name: a, address: "127.0.0.1:0" }
  - { name: b, address: "127.0.0.1:0" }
pools:
  - name: main
    policy: roundrobin
    limits: { per_backend: 50, queue: { limit: 10, timeout: 60s } }
    health: { type: http, path: /, interval: 24h, timeout: 5s }
    breaker: { consecutive: 1, open: 1h, max_open: 1h, max_open_share: 0.5 }
    retry_budget: { ratio: 0.2 }
    transport: { connect: 4s }
    slow_start: 0s
    backends:
      - { id: one, address: "127.0.0.1:PORT" }
      - { id: two, address: "127.0.0.2:PORT", labels: { zone: x } }
      - { id: three, address: "127.0.0.3:PORT" }
      - { id: open, address: "127.0.0.4:PORT" }
      - { id: ejected, address: "127.0.0.5:PORT" }
      - { id: drained, address: "127.0.0.6:PORT" }
  - name: other
    health: { type: tcp, interval: 24h, timeout: 5s }
    backends: [ { id: one, address: "127.0.0.1:PORT" } ]
routes:
  - { name: write, match: { path: /w, methods: [POST] }, fanout: { pool: other } }
  - { name: other, match: { path: /o }, proxy: { pool: other } }
  - { name: all, match: { path_prefix: / }, proxy: { pool: main, timeout: 30s } }
`

// settle brings the daemon into a state that a reload must not forget, and
// returns what ends it.
func settle(t *testing.T, l *live) {
	t.Helper()
	main := l.registry.pool("main")
	at := func(id string) pool.Lease {
		lease, ok := main.Acquire(main.member(id), new(pool.Waiter))
		require.True(t, ok)
		return lease
	}
	lease := at("open")
	lease.Answered(outcome.Failure, time.Now(), time.Millisecond)
	lease.End(outcome.Failure, time.Now())
	require.Equal(t, "open", main.Status(main.member("open")).Breaker)
	for range 12 { // its ejection is a long one
		lease = at("ejected")
		lease.Backend.DialFailed()
		lease.Answered(outcome.Unsent, time.Now(), time.Millisecond)
		lease.End(outcome.Unsent, time.Now())
	}
	require.Equal(t, backend.GateEjected, main.member("ejected").State().Gate)
	_, err := l.SetAdmin(t.Context(), admin.Change{Pool: "main", ID: "drained", To: admin.Draining, By: "ada"})
	require.NoError(t, err)
	for range 7 {
		inFlight := at("one")
		t.Cleanup(func() { inFlight.End(outcome.Success, time.Now()) })
	}
	main.Budget.Deposit()
	l.registry.fixture(l.registry.pool("other").member("one")).delivery.Load().Attempt(0)
}

// next returns who gets the next request of main.
func (l *live) next(t testing.TB) string {
	t.Helper()
	var q balance.Query
	lease, ok := l.registry.pool("main").TryAcquire(&q)
	require.True(t, ok)
	defer lease.End(outcome.Success, time.Now())
	return lease.Backend.ID
}

// identities returns, by name, everything that lives longer than a
// configuration: pointers to what must be the same thing, values of what must
// say the same.
func (l *live) identities() map[string]any {
	all := make(map[string]any)
	for _, s := range l.registry.all() {
		all["pool "+s.Name] = s.Pool
		all["budget "+s.Name] = s.Budget
		all["members "+s.Name] = fmt.Sprintf("%p", s.Members())
		for _, b := range s.Members().All {
			name, f, status := s.Name+"/"+b.ID, l.registry.fixture(b), s.Status(b)
			all["backend "+name] = b
			all["transport "+name] = l.registry.transports.For(b)
			all["probes "+name] = f.loop
			all["delivery "+name] = f.delivery.Load()
			all["counters "+name] = fmt.Sprintf("%p %p", b.Outcomes, f.changes)
			all["state "+name] = b.State()
			all["breaker "+name] = status.Breaker
			all["in flight "+name] = b.InFlight()
			all["limit "+name] = b.Limit()
			all["traits "+name] = fmt.Sprint(b.Weight(), b.Labels())
			all["figures "+name] = b.Recent.Figures(time.Now())
		}
	}
	for _, s := range l.allServers() {
		all["listener "+s.name] = s
	}
	return all
}

// What a reload does not change stays the same thing, with all that it knows;
// what it changes, changes alone.
func TestReloadKeepsWhatDoesNotChange(t *testing.T) {
	text := strings.ReplaceAll(settledConfig, "PORT", fmt.Sprint(everywhere(t)))
	each := func(what string) (all []string) {
		for _, id := range []string{"one", "two", "three", "open", "ejected", "drained"} {
			all = append(all, what+" main/"+id)
		}
		return all
	}
	backendIs := func(name string) (all []string) {
		for _, what := range []string{"backend", "transport", "probes", "delivery", "counters", "state", "breaker", "in flight", "limit", "traits", "figures"} {
			all = append(all, what+" "+name)
		}
		return all
	}
	for name, c := range map[string]struct {
		from, to string
		changed  []string // of the identities; all others stay
		also     []string // may change: members are frozen anew
	}{
		"a route's timeout":   {from: "timeout: 30s }", to: "timeout: 20s }"},
		"a route's name":      {from: "name: all", to: "name: everything"},
		"a route's match":     {from: "path: /o", to: "path: /p"},
		"a route more":        {from: "routes:", to: "routes:\n  - { name: own, match: { path: /x }, respond: { status: 200, body: x } }"},
		"the drain":           {from: "drain: 1s", to: "drain: 2s"},
		"a listener more":     {from: "pools:", to: "  - { name: c, address: '127.0.0.1:0' }\npools:", changed: []string{"listener c"}},
		"a listener less":     {from: `  - { name: b, address: "127.0.0.1:0" }`, to: "", changed: []string{"listener b"}},
		"a listener's limits": {from: "name: b,", to: "name: b, limits: { connections: 7 },", changed: []string{"listener b"}},
		"a backend more": {from: "    backends:\n      - { id: one,", to: "    backends:\n      - { id: four, address: '127.0.0.7:80' }\n      - { id: one,",
			changed: append(backendIs("main/four"), "members main")},
		"a backend less": {from: `      - { id: three, address: "127.0.0.3:`, to: `      #`,
			changed: append(backendIs("main/three"), "members main")},
		"a backend's weight": {from: "{ id: two,", to: "{ id: two, weight: 3,", changed: []string{"traits main/two", "members main"}},
		"a backend's labels": {from: "zone: x", to: "zone: y", changed: []string{"traits main/two", "members main"}},
		"a backend's address": {from: "127.0.0.2:", to: "127.0.0.8:",
			changed: []string{"backend main/two", "transport main/two", "probes main/two", "members main"}, also: []string{"counters main/two", "figures main/two", "state main/two"}},
		"a limit":               {from: "per_backend: 50", to: "per_backend: 40", changed: append(each("limit"), "members main")},
		"a queue":               {from: "limit: 10,", to: "limit: 20,", changed: []string{"members main"}},
		"a policy":              {from: "policy: roundrobin", to: "policy: { name: hash, key: header:X }", changed: []string{"members main"}},
		"a health interval":     {from: "path: /, interval: 24h", to: "path: /, interval: 23h", changed: each("probes"), also: []string{"members main", "state main/ejected"}},
		"a breaker's limits":    {from: "consecutive: 1", to: "consecutive: 5", changed: []string{"members main"}},
		"no breaker":            {from: "    breaker:", to: "    #", changed: append(each("breaker"), "members main", "state main/open")},
		"a retry budget":        {from: "ratio: 0.2", to: "ratio: 0.3", also: []string{"members main"}},
		"a slow start":          {from: "slow_start: 0s", to: "slow_start: 30s", changed: []string{"members main"}},
		"a transport":           {from: "connect: 4s", to: "connect: 3s", also: []string{"members main"}},
		"a pool more":           {from: "  - name: other\n", to: "  - { name: third, backends: [ { address: '127.0.0.7:80', id: x } ] }\n  - name: other\n", changed: append(backendIs("third/x"), "pool third", "budget third", "members third")},
		"no fan-out to it":      {from: "fanout: { pool: other }", to: "proxy: { pool: other }"},
		"a fan-out's wait":      {from: "fanout: { pool: other }", to: "fanout: { pool: other, wait: 3s }"},
		"a backend's id":        {from: "    backends: [ { id: one, address: \"127.0.0.1:", to: "    backends: [ { id: first, address: \"127.0.0.1:", changed: append(append(backendIs("other/one"), backendIs("other/first")...), "members other")},
		"another pool's limits": {from: "  - name: other\n", to: "  - name: other\n    limits: { total: 9 }\n", changed: []string{"members other"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := run(t, text)
			settle(t, l)
			order := []string{l.next(t), l.next(t), l.next(t)}
			require.ElementsMatch(t, []string{"one", "two", "three"}, order)
			l.next(t)
			before := l.identities()
			require.Contains(t, text, c.from)
			l.to(t, strings.Replace(text, c.from, c.to, 1))
			after := l.identities()
			var changed []string
			for what, was := range before {
				if is, there := after[what]; !there || was != is {
					changed = append(changed, what)
				}
			}
			for what := range after {
				if _, there := before[what]; !there {
					changed = append(changed, what)
				}
			}
			changed = slices.DeleteFunc(changed, func(what string) bool { return slices.Contains(c.also, what) })
			require.ElementsMatch(t, c.changed, changed)
			if len(c.changed) == 0 || name == "a listener more" {
				require.Equal(t, []string{order[1], order[2], order[0]}, []string{l.next(t), l.next(t), l.next(t)}, "whose turn it is")
			}
		})
	}
}

// Connections to backends are kept, too, whoever brought them: only another
// transport makes new ones.
func TestReloadKeepsConnections(t *testing.T) {
	opened := make(chan struct{}, 100)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened <- struct{}{}
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	text := fmt.Sprintf(`
admin: { address: "127.0.0.1:0" }
storage: { path: "" }
log: { level: error }
shutdown: { drain: 1s }
registration: { enabled: true, allow: [loopback] }
listeners: [ { name: a, address: "127.0.0.1:0" } ]
pools:
  - { name: configured, backends: [ { id: one, address: %q } ] }
  - { name: joined, registration: true, transport: { connect: 4s }, backends: [] }
routes:
  - { name: configured, match: { path: /configured }, proxy: { pool: configured } }
  - { name: joined, match: { path: /joined }, proxy: { pool: joined, timeout: 30s } }
`, s.Listener.Addr())
	l := run(t, text)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for _, name := range []string{"joined", "made"} {
		_, _, err := l.RegisterInstance(t.Context(), fmt.Appendf(nil, `{"pool":%q,"id":"guest","address":%q}`, name, s.Listener.Addr()), "a test")
		require.NoError(t, err)
	}
	for i, c := range []struct {
		text   string
		opened int
	}{
		{text, 3},
		{strings.Replace(text, "timeout: 30s", "timeout: 20s", 1), 0},
		{strings.Replace(text, "connect: 4s", "connect: 3s", 1), 1},
		{text + "metrics: { address: '127.0.0.1:0' }\n", 1},
		{text, 0},
	} {
		if i > 0 {
			l.to(t, c.text)
		}
		for _, path := range []string{"/configured", "/joined", "/call/made"} {
			res, err := client.Get("http://" + l.Addr("a") + path)
			require.NoError(t, err)
			_ = res.Body.Close()
			require.Equal(t, 200, res.StatusCode, path)
		}
		require.Len(t, opened, c.opened, "configuration %d", i)
		for range c.opened {
			<-opened
		}
	}
}
