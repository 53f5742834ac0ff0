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
	"lb/internal/route"
)

// blueprint is the compiled configuration of the data plane, without the routes
// of the pools that registration makes.
type blueprint struct {
	rules    []route.Rule
	routes   []exchange.Route
	unrouted *metrics.Route
}

// compile turns the routes of a valid configuration into a blueprint, over the
// pools that site finds.
func compile(c *config.Config, site func(name string) *site, r *registry, m *metrics.Registry) (*blueprint, error) {
	p := &blueprint{rules: matchRules(c), unrouted: m.Route("", "")}
	for _, rc := range c.Routes {
		rt := exchange.Route{Name: rc.Name, Required: rc.Required}
		switch {
		case rc.Proxy != nil:
			var err error
			if rt, err = proxied(rt, rc.Proxy, site(rc.Proxy.Pool), m); err != nil {
				return nil, fmt.Errorf("route %s: %w", rc.Name, err)
			}
		case rc.Fanout != nil:
			to := site(rc.Fanout.Pool)
			rt.Action, rt.Pool = exchange.Fanout, to.Pool
			rt.Plan = plan(rc.Name, rc.Fanout, members{to, r})
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
		p.routes = append(p.routes, rt)
	}
	return p, nil
}

// snapshot adds to the blueprint a route for each pool that registration made,
// at prefix and its name.
func (p *blueprint) snapshot(generation uint64, prefix string, made []*site, m *metrics.Registry) (*exchange.Snapshot, error) {
	rules, routes := slices.Clip(p.rules), slices.Clip(p.routes)
	for _, s := range made {
		at := prefix + s.Name
		var c config.Proxy
		c.SetDefaults()
		rt, err := proxied(exchange.Route{Name: at, Strip: at, Procedure: true}, &c, s, m)
		if err != nil {
			return nil, fmt.Errorf("pool %s: %w", s.Name, err)
		}
		rt.Instruments = m.Route(at, s.Name)
		rules, routes = append(rules, route.Rule{PathPrefix: at}), append(routes, rt)
	}
	return &exchange.Snapshot{Generation: generation, Table: route.Compile(rules), Routes: routes, Unrouted: p.unrouted}, nil
}

// proxied completes a route that sends each request to one backend of s.
func proxied(rt exchange.Route, c *config.Proxy, s *site, m *metrics.Registry) (exchange.Route, error) {
	rt.Action, rt.Pool = exchange.Proxy, s.Pool
	rt.Timeout, rt.Retry = c.Timeout.D(), retryPolicy(c.Retry)
	rt.Retries = m.Retries(s.Name, exchange.RetryOutcomes)
	rt.Refused, rt.QueueWait = m.Refused(s.Name, exchange.RefusedCodes), m.QueueWait(s.Name)
	var err error
	switch policy, _ := balance.Find(s.config.Policy.Name); {
	case policy.ByClient:
		rt.Key = exchange.ClientKey
	case policy.Keyed:
		rt.Key, err = exchange.ParseKeySource(s.config.Policy.Key)
	}
	return rt, err
}

// matchRules returns the match rules of the routes, in their order.
func matchRules(c *config.Config) []route.Rule {
	rules := make([]route.Rule, 0, len(c.Routes))
	for _, rc := range c.Routes {
		rule := route.Rule{Methods: rc.Match.Methods, Path: rc.Match.Path, PathPrefix: rc.Match.PathPrefix}
		for _, h := range rc.Match.Hosts {
			rule.Hosts = append(rule.Hosts, strings.ToLower(strings.TrimSuffix(h, ".")))
		}
		rules = append(rules, rule)
	}
	return rules
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
type members struct {
	*site
	registry *registry
}

func (m members) Name() string                { return m.Pool.Name }
func (m members) Members() []*backend.Backend { return m.Pool.Members().Present() }
func (m members) LaggingAfter() time.Duration { return m.config.Lagging.After.D() }

func (m members) Member(id string) *backend.Backend { return m.registry.known(m.site, id) }

func plan(name string, c *config.Fanout, p members) *fanout.Plan {
	return &fanout.Plan{
		Route: name, Pool: p,
		Success: c.Success, Reject: c.Reject, Already: c.Already,
		Ack:  fanout.Ack(c.Ack),
		Wait: c.Wait.D(), AttemptTimeout: c.AttemptTimeout.D(),
		Backoff:     fanout.Backoff{Base: c.Backoff.Base.D(), Cap: c.Backoff.Cap.D(), Jitter: c.Backoff.Jitter.D()},
		MaxAttempts: c.Backoff.MaxAttempts, MaxAge: c.Backoff.MaxAge.D(),
		MaxBody: int64(c.MaxBody), MaxPending: c.MaxPending, MaxPendingBytes: int64(c.MaxPendingBytes),
		OrderBy: orderBy(c.OrderBy),
	}
}

func orderBy(c config.OrderBy) fanout.OrderBy {
	switch {
	case c.Field != nil:
		return fanout.OrderBy{Kind: fanout.OrderField, Name: *c.Field}
	case c.Header != nil:
		return fanout.OrderBy{Kind: fanout.OrderHeader, Name: *c.Header}
	case c.JSON != nil:
		return fanout.OrderBy{Kind: fanout.OrderJSON, Name: *c.JSON}
	case c.PathSegment != nil:
		return fanout.OrderBy{Kind: fanout.OrderPathSegment, Segment: *c.PathSegment}
	}
	return fanout.OrderBy{}
}

// keptPlan returns the plan for a write that the journal has kept: its route's;
// where that is gone, or sends to another pool now, the defaults over the pool
// that the write was for; nil if that is gone too.
func (a *App) keptPlan(route, poolName string) *fanout.Plan {
	for _, r := range a.decider.Snapshot().Routes {
		if p, ok := r.Plan.(*fanout.Plan); ok && r.Name == route && p.Pool.Name() == poolName {
			return p
		}
	}
	s := a.registry.pool(poolName)
	if s == nil {
		return nil
	}
	var defaults config.Fanout
	defaults.SetDefaults()
	return plan(route, &defaults, members{s, a.registry})
}

// MatchOrder returns the places of the routes in the order in which they match.
func MatchOrder(c *config.Config) []int { return route.Compile(matchRules(c)).Order() }
