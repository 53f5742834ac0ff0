package app

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"lb/internal/backend"
	"lb/internal/config"
	"lb/internal/exchange"
	"lb/internal/fanout"
	"lb/internal/metrics"
	"lb/internal/pool"
	"lb/internal/route"
)

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
			rt.Action, rt.Pool = exchange.Proxy, r.byName[rc.Proxy.Pool]
			rt.Timeout, rt.Retry = rc.Proxy.Timeout.D(), retryPolicy(rc.Proxy.Retry)
			rt.Retries = m.Retries(rt.Pool.Name, exchange.RetryOutcomes)
		case rc.Fanout != nil:
			rt.Action, rt.Pool = exchange.Fanout, r.byName[rc.Fanout.Pool]
			rt.Plan = plan(rc.Name, rc.Fanout, members{rt.Pool, r.lagging[rt.Pool.Name].After.D()})
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
type members struct {
	*pool.Pool
	laggingAfter time.Duration
}

func (m members) Name() string                { return m.Pool.Name }
func (m members) Members() []*backend.Backend { return m.Pool.Members().All }
func (m members) LaggingAfter() time.Duration { return m.laggingAfter }

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
	p := a.registry.byName[poolName]
	if p == nil {
		return nil
	}
	var defaults config.Fanout
	defaults.SetDefaults()
	return plan(route, &defaults, members{p, a.registry.lagging[poolName].After.D()})
}

// MatchOrder returns the places of the routes in the order in which they match.
func MatchOrder(c *config.Config) []int { return matchTable(c).Order() }
