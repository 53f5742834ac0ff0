package app

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
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
// Whoever changes it holds App.operating; anybody may read it.
type registry struct {
	metrics    *metrics.Registry
	onChange   func(pool.Change)
	allow      func(netip.AddrPort) error // judges where registered backends are
	transports transport.Set

	mu       sync.RWMutex // guards what follows; what it points to guards itself
	pools    []*site      // in config order, then in the order in which they were made
	byName   map[string]*site
	fixtures map[*backend.Backend]*fixture
	absent   map[identity]*backend.Backend // those that left a pool and may come back
	probing  *probing                      // nil until the daemon runs
}

// identity is the name of a backend in all pools.
type identity struct{ pool, id string }

// site is a pool and what belongs to it.
type site struct {
	*pool.Pool
	config    config.Pool
	made      bool // by registration
	fanned    bool // some route fans out to it
	transport transport.Settings
	reshaped  bool // transport is another than before the last reload
}

// fixture is what belongs to one backend beside its state.
type fixture struct {
	pool     *pool.Pool
	delivery atomic.Pointer[metrics.Delivery] // nil if no route fans out to it
	changes  []*metrics.Counter               // of its state, by backend.States
	check    *config.Health                   // nil without active checks, and so is loop
	loop     *probe.Loop
	initial  backend.Health            // its word before the first probe
	stop     func()                    // ends the loop, and waits for that; nil before it runs
	cut      bool                      // its connections were cut, and it makes no more
	dropped  bool                      // what it counts is not shown any more
	expires  atomic.Pointer[time.Time] // unless it registers again; nil for one that did not register
}

// spent reports whether the backend cannot be used again: who comes back in its
// place is a new one.
func (f *fixture) spent() bool { return f.cut || f.dropped }

// probing is what the probes run under.
type probing struct {
	ctx     context.Context
	running *sync.WaitGroup
}

// newRegistry builds pools, backends, transports and probes of a valid
// configuration. It starts nothing.
func newRegistry(c *config.Config, m *metrics.Registry, onChange func(pool.Change)) (*registry, error) {
	r := &registry{
		metrics: m, onChange: onChange,
		byName: make(map[string]*site), fixtures: make(map[*backend.Backend]*fixture),
		absent: make(map[identity]*backend.Backend),
	}
	for _, s := range sitesOf(c) {
		if err := r.addPool(s); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// sitesOf returns what is configured for each pool, without the pools.
func sitesOf(c *config.Config) []*site {
	fanned, longest := fannedPools(c), longestWaits(c)
	sites := make([]*site, len(c.Pools))
	for i, pc := range c.Pools {
		sites[i] = &site{config: pc, fanned: fanned[pc.Name], transport: transportSettings(pc.Transport, longest[pc.Name])}
	}
	return sites
}

// fannedPools returns the pools that some route fans out to.
func fannedPools(c *config.Config) map[string]bool {
	fanned := make(map[string]bool)
	for _, rt := range c.Routes {
		if rt.Fanout != nil {
			fanned[rt.Fanout.Pool] = true
		}
	}
	return fanned
}

// addPool makes the pool of s with the backends of its configuration, and adds
// both.
func (r *registry) addPool(s *site) error {
	if err := r.plan(newPlot(s, nil)); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pools = append(slices.Clip(r.pools), s)
	r.byName[s.Name] = s
	return nil
}

// configured is what a backend of the configuration is made of.
func configured(p config.Pool, b config.Backend) serverSpec {
	return serverSpec{
		id: b.ID, address: b.Address, source: sourceConfig, weight: b.Weight, labels: b.Labels,
		limit: p.Limits.PerBackend, check: p.Health,
	}
}

func (r *registry) optionsOf(s *site, policy balance.Factory, members []*backend.Backend) pool.Options {
	c := settingsOf(s.config, policy)
	return pool.Options{
		Name: s.config.Name, Backends: members, OnChange: r.onChange,
		Budget: pool.NewBudget(s.config.RetryBudget.Ratio, s.config.RetryBudget.PerSecond),
		Policy: policy, Limits: c.Limits, Breaker: c.Breaker, MaxOpenShare: c.MaxOpenShare, SlowStart: c.SlowStart,
	}
}

// settingsOf compiles what of a pool can change while it runs. A nil policy is
// one that stays.
func settingsOf(c config.Pool, policy balance.Factory) pool.Settings {
	s := pool.Settings{Policy: policy, Limits: limitsOf(c.Limits), SlowStart: c.SlowStart.D()}
	if b := c.Breaker; b != nil {
		s.MaxOpenShare = b.MaxOpenShare
		s.Breaker = &breaker.Settings{
			Consecutive: b.Consecutive, Ratio: b.Ratio, MinRequests: b.MinRequests, Window: b.Window.D(),
			Open: b.Open.D(), MaxOpen: b.MaxOpen.D(), HalfOpen: b.HalfOpen,
		}
	}
	return s
}

// dropPool takes a pool out that has no members any more.
func (r *registry) dropPool(s *site) {
	s.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.byName, s.Name)
	r.pools = slices.DeleteFunc(slices.Clone(r.pools), func(other *site) bool { return other == s })
}

// The values of Backend.Source.
const (
	sourceConfig       = "config"
	sourceRegistration = "registration"
)

// serverSpec is what a backend is made of.
type serverSpec struct {
	id, address, source string
	weight, limit       int
	labels              map[string]string
	check               *config.Health // nil: none
}

// newBackend makes a backend of s with its transport and its probes, which do
// not run yet. Before the first probe it is what the check says.
func (r *registry) newBackend(s *site, from serverSpec) (*backend.Backend, *fixture, error) {
	name := s.config.Name
	b := &backend.Backend{
		Pool: name, ID: from.id, Address: from.address, Source: from.source,
		Outcomes: r.metrics.Backend(name, from.id, outcome.Names[:]),
	}
	b.SetTraits(from.weight, from.labels)
	b.SetLimit(from.limit)
	f := &fixture{pool: s.Pool, changes: r.metrics.StateChanges(name, from.id, backend.States)}
	r.countDeliveries(s, b, f)
	settings := r.transportOf(s, from.source)
	if from.check != nil {
		var err error
		if f.loop, err = newLoop(f, b, from.check, r.metrics, settings.Allow); err != nil {
			return nil, nil, fmt.Errorf("pool %s: health: %w", name, err)
		}
		f.check, f.initial = from.check, initialWord(from.check.Initial)
		b.SetState(backend.State{Health: f.initial})
	}
	r.transports.Add(b, transport.New(b, settings))
	return b, f, nil
}

// countDeliveries gives f what counts the deliveries to b, if some route fans out
// to its pool.
func (r *registry) countDeliveries(s *site, b *backend.Backend, f *fixture) {
	if s.fanned && f.delivery.Load() == nil {
		f.delivery.Store(r.metrics.Delivery(b.Pool, b.ID, b.Address, outcome.Names[:]))
	}
}

// transportOf returns the settings of connections to backends of s that come from
// that source: who names its own address is judged at each dial.
func (r *registry) transportOf(s *site, source string) transport.Settings {
	settings := s.transport
	if source != sourceConfig {
		settings.Allow = r.allow
	}
	return settings
}

// fit brings b, a member of s, in line with what is said of it now. reshaped says
// that the settings of its connections may be others than it has.
func (r *registry) fit(s *site, b *backend.Backend, spec serverSpec, reshaped bool) error {
	if b.Limit() != spec.limit {
		s.SetLimit(b, spec.limit)
	}
	if b.Weight() != spec.weight || !maps.Equal(b.Labels(), spec.labels) {
		s.SetTraits(b, spec.weight, spec.labels)
	}
	if reshaped {
		r.transports.For(b).Configure(r.transportOf(s, b.Source))
	}
	f := r.fixture(b)
	r.countDeliveries(s, b, f)
	if reflect.DeepEqual(f.check, spec.check) {
		return nil
	}
	return r.recheck(s, b, spec.check)
}

// recheck gives b, a member of s, the active check c in place of the one it has.
func (r *registry) recheck(s *site, b *backend.Backend, c *config.Health) error {
	old := r.fixture(b)
	f := &fixture{pool: old.pool, changes: old.changes}
	f.delivery.Store(old.delivery.Load())
	if c != nil {
		var err error
		if f.loop, err = newLoop(f, b, c, r.metrics, r.transportOf(s, b.Source).Allow); err != nil {
			return fmt.Errorf("pool %s: health: %w", s.Name, err)
		}
		f.check, f.initial = c, initialWord(c.Initial)
	}
	if old.stop != nil {
		old.stop()
	}
	f.expires.Store(old.expires.Load())
	r.mu.Lock()
	r.fixtures[b] = f
	r.mu.Unlock()
	if c == nil {
		s.SetHealth(b, backend.HealthUp, "it is not checked any more")
	}
	r.probe(f) // until it has a result, what the former check said holds
	return nil
}

// join makes b, of which f is the rest, a member of its pool, the last in order.
// A member of the same id loses its place to it.
func (r *registry) join(s *site, b *backend.Backend, f *fixture) {
	r.mu.Lock()
	r.fixtures[b] = f
	delete(r.absent, identity{s.Name, b.ID})
	r.mu.Unlock()
	s.Replace(append(slices.DeleteFunc(slices.Clone(s.Members().All), func(m *backend.Backend) bool { return m.ID == b.ID }), b))
	r.probe(f)
}

// leave takes b out of its pool. It may come back, and until it is forgotten
// deliveries for it are kept.
func (r *registry) leave(s *site, b *backend.Backend) {
	s.Replace(slices.DeleteFunc(slices.Clone(s.Members().All), func(m *backend.Backend) bool { return m == b }))
	r.rest(b)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.absent[identity{s.Name, b.ID}] = b
}

// rest ends the probes and the idle connections of b, which is no member any
// more.
func (r *registry) rest(b *backend.Backend) {
	if f := r.fixture(b); f.stop != nil {
		f.stop()
	}
	r.transports.For(b).Close()
}

// keepAway notes that b, which is no member now, may come back.
func (r *registry) keepAway(b *backend.Backend, f *fixture) {
	b.SetState(backend.State{Health: f.initial, Presence: backend.Leaving})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fixtures[b] = f
	r.absent[identity{b.Pool, b.ID}] = b
}

// dismiss notes that b, which has left its pool, does not come back.
func (r *registry) dismiss(b *backend.Backend) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if key := (identity{b.Pool, b.ID}); r.absent[key] == b {
		delete(r.absent, key)
	}
}

// forget drops what is kept of b, which was dismissed so long ago that nobody
// holds it any more.
func (r *registry) forget(b *backend.Backend) {
	r.transports.For(b).Close() // what a late pick has left
	r.mu.Lock()
	delete(r.fixtures, b)
	r.mu.Unlock()
	r.transports.Remove(b)
}

// probe starts the probes of f, if it has any and the daemon runs.
func (r *registry) probe(f *fixture) {
	r.mu.RLock()
	p := r.probing
	r.mu.RUnlock()
	if p == nil || f.loop == nil || f.stop != nil {
		return
	}
	ctx, stop := context.WithCancel(p.ctx)
	loop, ended := f.loop, make(chan struct{})
	f.stop = func() { // who has stopped it hears nothing of it any more
		stop()
		<-ended
	}
	p.running.Go(func() {
		defer close(ended)
		loop.Run(ctx)
	})
}

// all returns the pools as they are now. The slice is not to be changed.
func (r *registry) all() []*site {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.pools
}

// pool returns the pool of that name, nil if there is none.
func (r *registry) pool(name string) *site {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.byName[name]
}

// fixture returns what belongs to b; it is there as long as b is a member, and
// until it is forgotten.
func (r *registry) fixture(b *backend.Backend) *fixture {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.fixtures[b]
}

// known returns the backend of that id in s: a member, or one that has left and
// may come back; nil without one.
func (r *registry) known(s *site, id string) *backend.Backend {
	if b := s.member(id); b != nil {
		return b
	}
	return r.away(s.Name, id)
}

// away returns the backend of that name that has left and may come back, nil
// without one.
func (r *registry) away(pool, id string) *backend.Backend {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.absent[identity{pool, id}]
}

// awayFrom returns those that have left a pool and may come back.
func (r *registry) awayFrom(pool string) (all []*backend.Backend) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for name, b := range r.absent {
		if name.pool == pool {
			all = append(all, b)
		}
	}
	return all
}

// close stops the pools' timers and closes idle connections.
func (r *registry) close() {
	for _, s := range r.all() {
		s.Close()
	}
	r.transports.Close()
}

// member returns the member of s with that id, nil if there is none.
func (s *site) member(id string) *backend.Backend {
	for _, b := range s.Members().All {
		if b.ID == id {
			return b
		}
	}
	return nil
}

func policyOf(c config.Policy) (balance.Factory, error) {
	return balance.New(balance.Spec{Name: c.Name, BoundedLoad: c.BoundedLoad, Score: c.Score})
}

func limitsOf(c config.Limits) pool.Limits {
	return pool.Limits{Total: c.Total, Queue: c.Queue.Limit, Timeout: c.Queue.Timeout.D()}
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
