package app

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/balance"
	"lb/internal/config"
	"lb/internal/exchange"
	"lb/internal/metrics"
)

// withPolicy returns a configuration whose one pool has that policy.
func withPolicy(name string) *config.Config {
	var l config.Listener
	l.SetDefaults()
	l.Name = "public"
	var p config.Pool
	p.SetDefaults()
	p.Name, p.Policy.Name = "p", name
	var b config.Backend
	b.SetDefaults()
	b.Address = "server1:8080"
	p.Backends = []config.Backend{b}
	var x config.Proxy
	x.SetDefaults()
	x.Pool = "p"
	c := config.Default()
	c.Listeners, c.Pools = []config.Listener{l}, []config.Pool{p}
	c.Routes = []config.Route{{Name: "all", Match: config.Match{PathPrefix: "/"}, Proxy: &x}}
	return c
}

// Every documented name of a policy, with the settings that it needs, makes a
// registry, and a policy that nobody knows makes none.
func TestPoliciesAreBuilt(t *testing.T) {
	documented := []string{
		"roundrobin", "round-robin", "rr", "weighted_roundrobin", "wrr", "least_conn", "leastconn", "least_time", "leasttime",
		"ip_hash", "source", "hash", "random", "p2c", "first", "last", "single", "custom",
	}
	require.Contains(t, balance.Names(), config.DefaultPolicy)
	require.Subset(t, documented, balance.Names())
	for _, name := range append(documented, "RoundRobin", "nonsense") {
		c := withPolicy(name)
		switch policy := &c.Pools[0].Policy; name {
		case "hash":
			policy.Key, policy.BoundedLoad = "path", 1.25
		case "custom":
			policy.Score = "inflight / weight"
		}
		c.Complete()
		r, err := newRegistry(c, metrics.New("test", ""), nil)
		if !slices.Contains(documented, name) {
			require.Error(t, err, name)
			continue
		}
		require.NoError(t, err, name)
		r.close()
	}
}

func TestRetryPolicy(t *testing.T) {
	require.Equal(t,
		exchange.RetryPolicy{Attempts: 2, Reset: true, Keyed: true, Statuses: map[int]bool{502: true, 504: true}},
		retryPolicy(config.Retry{Attempts: 2, Keyed: true, On: []string{"502", "reset", "504"}}))
	require.Equal(t, exchange.RetryPolicy{Statuses: map[int]bool{}}, retryPolicy(config.Retry{}))
}

func TestTrustedProxies(t *testing.T) {
	l, err := listenerOf(config.Listener{Name: "l", TrustedProxies: []string{"10.1.2.3/8", "192.0.2.1", "unix", "fd00::/8", "::1"}})
	require.NoError(t, err)
	require.True(t, l.TrustUnix)
	var prefixes []netip.Prefix
	for _, p := range []string{"10.0.0.0/8", "192.0.2.1/32", "fd00::/8", "::1/128"} {
		prefixes = append(prefixes, netip.MustParsePrefix(p))
	}
	require.Equal(t, prefixes, l.Trusted)
	_, err = listenerOf(config.Listener{Name: "l", TrustedProxies: []string{"example.org"}})
	require.ErrorContains(t, err, "listener l: trusted_proxies")
}

func TestCompile(t *testing.T) {
	c := withPolicy("rr")
	var f config.Fanout
	f.SetDefaults()
	f.Pool = "p"
	c.Routes = append(c.Routes,
		config.Route{Name: "write", Match: config.Match{Path: "/w", Methods: []string{"POST"}}, Fanout: &f},
		config.Route{Name: "metrics", Match: config.Match{Path: "/m", Hosts: []string{"M.Example."}}, Metrics: true},
		config.Route{Name: "own", Match: config.Match{Path: "/o"}, Required: true, Respond: &config.Respond{Status: 204, Body: "x"}},
	)
	c.Complete()
	m := metrics.New("test", "")
	r, err := newRegistry(c, m, nil)
	require.NoError(t, err)
	defer r.close()
	b, err := compile(c, r.pool, r, m)
	require.NoError(t, err)
	s, err := b.snapshot(7, c.Registration.RoutePrefix, nil, m)
	require.NoError(t, err)
	require.Equal(t, uint64(7), s.Generation)
	require.Len(t, s.Routes, 4)
	for i, want := range []exchange.Action{exchange.Proxy, exchange.Fanout, exchange.Metrics, exchange.Respond} {
		require.Equal(t, want, s.Routes[i].Action)
		require.Equal(t, i < 2, s.Routes[i].Pool != nil)
		require.Equal(t, want == exchange.Fanout, s.Routes[i].Plan != nil)
		require.NotNil(t, s.Routes[i].Instruments)
	}
	require.Equal(t, time.Minute, s.Routes[0].Timeout)
	require.Equal(t, []any{204, "x", true}, []any{s.Routes[3].Status, s.Routes[3].Body, s.Routes[3].Required})
	for _, row := range []struct {
		host, method, path string
		route              int
	}{{"h", "GET", "/w", 0}, {"h", "POST", "/w", 1}, {"m.example", "GET", "/m", 2}, {"h", "GET", "/m", 0}, {"h", "GET", "/o", 3}} {
		i, ok := s.Table.Match(row.host, row.method, row.path)
		require.True(t, ok)
		require.Equal(t, row.route, i, row)
	}
	for _, f := range r.fixtures {
		require.NotNil(t, f.delivery.Load(), "backends that get deliveries count them")
	}
}
