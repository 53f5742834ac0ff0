package app

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"lb/internal/backend"
	"lb/internal/balance"
	"lb/internal/config"
	"lb/internal/exchange"
	"lb/internal/fanout"
	"lb/internal/metrics"
	"lb/internal/outcome"
	"lb/internal/pool"
	"lb/internal/route"
	"lb/internal/transport"
)

// registry holds what lives longer than a configuration: pools with their
// backends, and the transports to those.
type registry struct {
	pools      []*pool.Pool
	transports transport.Set
	deliveries map[*backend.Backend]*metrics.Delivery
}

func (r *registry) pool(name string) *pool.Pool {
	i := slices.IndexFunc(r.pools, func(p *pool.Pool) bool { return p.Name == name })
	return r.pools[i]
}

// close stops the pools' timers and closes idle connections.
func (r *registry) close() {
	for _, p := range r.pools {
		p.Close()
	}
	r.transports.Close()
}

// newRegistry builds pools, backends and transports of a valid configuration.
func newRegistry(c *config.Config, m *metrics.Registry, onChange func(pool.Change)) (*registry, error) {
	r := &registry{deliveries: make(map[*backend.Backend]*metrics.Delivery)}
	fanned := make(map[string]bool)
	for _, rt := range c.Routes {
		if rt.Fanout != nil {
			fanned[rt.Fanout.Pool] = true
		}
	}
	longest := longestWaits(c)
	for _, pc := range c.Pools {
		head := pc.Transport.ResponseHeader.D()
		if head >= longest[pc.Name] {
			head = 0 // no route waits so long, and a second timer for each request costs
		}
		factory, err := balance.For(pc.Policy.Name)
		if err != nil {
			return nil, fmt.Errorf("pool %s: %w", pc.Name, err)
		}
		backends := make([]*backend.Backend, 0, len(pc.Backends))
		for _, bc := range pc.Backends {
			b := &backend.Backend{
				Pool: pc.Name, ID: bc.ID, Address: bc.Address, Source: "config",
				Weight: bc.Weight, Labels: bc.Labels,
				Outcomes: m.Backend(pc.Name, bc.ID, outcome.Names[:]),
			}
			if fanned[pc.Name] {
				r.deliveries[b] = m.Delivery(pc.Name, bc.ID, bc.Address, outcome.Names[:])
			}
			r.transports.Add(b, transport.New(b, transport.Settings{
				Connect: pc.Transport.Connect.D(), ResponseHeader: head,
				Idle: pc.Transport.Idle.D(), MaxIdle: pc.Transport.MaxIdlePerBackend,
			}))
			backends = append(backends, b)
		}
		budget := pool.NewBudget(pc.RetryBudget.Ratio, pc.RetryBudget.PerSecond)
		r.pools = append(r.pools, pool.New(pc.Name, factory, budget, backends, onChange))
	}
	return r, nil
}

// longestWaits returns for each pool how long any route waits for a response
// head from one of its backends.
func longestWaits(c *config.Config) map[string]time.Duration {
	longest := make(map[string]time.Duration)
	for _, rc := range c.Routes {
		switch {
		case rc.Proxy != nil:
			longest[rc.Proxy.Pool] = max(longest[rc.Proxy.Pool], rc.Proxy.Timeout.D())
		case rc.Fanout != nil:
			longest[rc.Fanout.Pool] = max(longest[rc.Fanout.Pool], rc.Fanout.AttemptTimeout.D())
		}
	}
	return longest
}

// compile turns the routes of a valid configuration into a snapshot.
func compile(c *config.Config, generation uint64, r *registry, m *metrics.Registry) *exchange.Snapshot {
	s := &exchange.Snapshot{
		Generation: generation,
		Table:      matchTable(c),
		Unrouted:   m.Route("", ""),
	}
	for _, rc := range c.Routes {
		rt := exchange.Route{Name: rc.Name, Required: rc.Required}
		switch {
		case rc.Proxy != nil:
			rt.Action, rt.Pool = exchange.Proxy, r.pool(rc.Proxy.Pool)
			rt.Timeout, rt.Retry = rc.Proxy.Timeout.D(), retryPolicy(rc.Proxy.Retry)
			rt.Retries = m.Retries(rt.Pool.Name, exchange.RetryOutcomes)
		case rc.Fanout != nil:
			rt.Action, rt.Pool = exchange.Fanout, r.pool(rc.Fanout.Pool)
			rt.Plan = plan(rc.Name, rc.Fanout, rt.Pool)
		case rc.Metrics:
			rt.Action = exchange.Metrics
		default:
			rt.Action, rt.Status, rt.Body = exchange.Respond, rc.Respond.Status, rc.Respond.Body
		}
		poolName := ""
		if rt.Pool != nil {
			poolName = rt.Pool.Name
		}
		rt.Instruments = m.Route(rc.Name, poolName)
		s.Routes = append(s.Routes, rt)
	}
	return s
}

// matchTable compiles the match rules of the routes, in their order.
func matchTable(c *config.Config) *route.Table {
	rules := make([]route.Rule, 0, len(c.Routes))
	for _, rc := range c.Routes {
		rule := route.Rule{Methods: rc.Match.Methods, Path: rc.Match.Path, PathPrefix: rc.Match.PathPrefix}
		for _, h := range rc.Match.Hosts {
			rule.Hosts = append(rule.Hosts, strings.ToLower(strings.TrimSuffix(h, ".")))
		}
		rules = append(rules, rule)
	}
	return route.Compile(rules)
}

func retryPolicy(c config.Retry) exchange.RetryPolicy {
	p := exchange.RetryPolicy{Attempts: c.Attempts, Keyed: c.Keyed, Statuses: make(map[int]bool)}
	for _, on := range c.On {
		if status, err := strconv.Atoi(on); err == nil {
			p.Statuses[status] = true
		} else {
			p.Reset = true // "reset" is the only word
		}
	}
	return p
}

// listenerOf compiles what a listener allows.
func listenerOf(c config.Listener) (*exchange.Listener, error) {
	l := &exchange.Listener{Name: c.Name, MaxFields: c.Limits.HeaderFields, Scheme: "http"}
	for _, t := range c.TrustedProxies {
		if t == "unix" {
			l.TrustUnix = true
			continue
		}
		p, err := netip.ParsePrefix(t)
		if err != nil {
			a, aerr := netip.ParseAddr(t)
			if aerr != nil {
				return nil, fmt.Errorf("listener %s: trusted_proxies: %w", c.Name, err)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		l.Trusted = append(l.Trusted, p.Masked())
	}
	return l, nil
}

// members shows a pool to the fan-out carrier.
type members struct{ *pool.Pool }

func (m members) Name() string                { return m.Pool.Name }
func (m members) Members() []*backend.Backend { return m.Pool.Members().All }

func plan(name string, c *config.Fanout, p *pool.Pool) *fanout.Plan {
	return &fanout.Plan{
		Route: name, Pool: members{p},
		Success: c.Success, Reject: c.Reject, Already: c.Already,
		Ack:  fanout.Ack(c.Ack),
		Wait: c.Wait.D(), AttemptTimeout: c.AttemptTimeout.D(),
		Backoff:     fanout.Backoff{Base: c.Backoff.Base.D(), Cap: c.Backoff.Cap.D(), Jitter: c.Backoff.Jitter.D()},
		MaxAttempts: c.Backoff.MaxAttempts, MaxAge: c.Backoff.MaxAge.D(),
		MaxBody: int64(c.MaxBody), MaxPending: c.MaxPending, MaxPendingBytes: int64(c.MaxPendingBytes),
	}
}

// MatchOrder returns the places of the routes in the order in which they match.
func MatchOrder(c *config.Config) []int { return matchTable(c).Order() }
