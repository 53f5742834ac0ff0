package app

import (
	"fmt"
	"time"

	"lb/internal/backend"
	"lb/internal/balance"
	"lb/internal/breaker"
	"lb/internal/config"
	"lb/internal/metrics"
	"lb/internal/outcome"
	"lb/internal/pool"
	"lb/internal/probe"
	"lb/internal/transport"
)

// registry holds what lives longer than a configuration: pools with their
// backends, and for each backend its transport, its probes and its counters.
type registry struct {
	pools      []*pool.Pool // in config order
	byName     map[string]*pool.Pool
	lagging    map[string]config.Lagging // by pool
	transports transport.Set
	backends   map[*backend.Backend]*fixture
}

// fixture is what belongs to one backend beside its state.
type fixture struct {
	pool     *pool.Pool
	delivery *metrics.Delivery  // nil if no route fans out to it
	changes  []*metrics.Counter // of its state, by backend.States
	loop     *probe.Loop        // nil without active checks
	initial  backend.Health     // its word before the first probe
}

// close stops the pools' timers and closes idle connections.
func (r *registry) close() {
	for _, p := range r.pools {
		p.Close()
	}
	r.transports.Close()
}

// newRegistry builds pools, backends, transports and probes of a valid
// configuration. It starts nothing.
func newRegistry(c *config.Config, m *metrics.Registry, onChange func(pool.Change)) (*registry, error) {
	r := &registry{
		byName: make(map[string]*pool.Pool), lagging: make(map[string]config.Lagging),
		backends: make(map[*backend.Backend]*fixture),
	}
	fanned := make(map[string]bool)
	for _, rt := range c.Routes {
		if rt.Fanout != nil {
			fanned[rt.Fanout.Pool] = true
		}
	}
	longest := longestWaits(c)
	for _, pc := range c.Pools {
		o := pool.Options{
			Name: pc.Name, SlowStart: pc.SlowStart.D(), OnChange: onChange,
			Budget: pool.NewBudget(pc.RetryBudget.Ratio, pc.RetryBudget.PerSecond),
		}
		if b := pc.Breaker; b != nil {
			o.MaxOpenShare = b.MaxOpenShare
			o.Breaker = &breaker.Settings{
				Consecutive: b.Consecutive, Ratio: b.Ratio, MinRequests: b.MinRequests, Window: b.Window.D(),
				Open: b.Open.D(), MaxOpen: b.MaxOpen.D(), HalfOpen: b.HalfOpen,
			}
		}
		var err error
		if o.Policy, err = balance.New(balance.Spec{Name: pc.Policy.Name, BoundedLoad: pc.Policy.BoundedLoad, Score: pc.Policy.Score}); err != nil {
			return nil, fmt.Errorf("pool %s: %w", pc.Name, err)
		}
		r.lagging[pc.Name] = pc.Lagging
		settings := transportSettings(pc.Transport, longest[pc.Name])
		for _, bc := range pc.Backends {
			b := &backend.Backend{
				Pool: pc.Name, ID: bc.ID, Address: bc.Address, Source: "config",
				Outcomes: m.Backend(pc.Name, bc.ID, outcome.Names[:]),
			}
			b.SetTraits(bc.Weight, bc.Labels)
			f := &fixture{changes: m.StateChanges(pc.Name, bc.ID, backend.States)}
			if fanned[pc.Name] {
				f.delivery = m.Delivery(pc.Name, bc.ID, bc.Address, outcome.Names[:])
			}
			r.transports.Add(b, transport.New(b, settings))
			r.backends[b] = f
			o.Backends = append(o.Backends, b)
		}
		if err := r.addPool(o, pc.Health, m); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// addPool makes the pool, and the probes of its backends. Before the first
// probe they are what the configuration says.
func (r *registry) addPool(o pool.Options, check *config.Health, m *metrics.Registry) error {
	for _, b := range o.Backends {
		if check != nil {
			r.backends[b].initial = initialWord(check.Initial)
			b.SetState(backend.State{Health: r.backends[b].initial})
		}
	}
	p := pool.New(o)
	for _, b := range o.Backends {
		f := r.backends[b]
		f.pool = p
		if check == nil {
			continue
		}
		var err error
		if f.loop, err = newLoop(f, b, check, m); err != nil {
			return fmt.Errorf("pool %s: health: %w", o.Name, err)
		}
	}
	r.pools = append(r.pools, p)
	r.byName[o.Name] = p
	return nil
}

func transportSettings(c config.Transport, longestWait time.Duration) transport.Settings {
	head := c.ResponseHeader.D()
	if head >= longestWait {
		head = 0 // no route waits so long, and a second timer for each request costs
	}
	return transport.Settings{
		Connect: c.Connect.D(), ResponseHeader: head,
		Idle: c.Idle.D(), MaxIdle: c.MaxIdlePerBackend,
	}
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
