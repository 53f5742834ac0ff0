package app

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"time"

	"lb/internal/backend"
	"lb/internal/balance"
	"lb/internal/config"
	"lb/internal/health"
	"lb/internal/pool"
	"lb/internal/transport"
)

// layout is the pools as another configuration wants them: those that are there
// already, each in a wrapper of its own, and new ones.
type layout struct {
	pools  []*plot
	byName map[string]*site
}

// add puts a pool behind the others.
func (l *layout) add(p *plot) {
	l.pools = append(l.pools, p)
	l.byName[p.config.Name] = p.site
}

// plot is what becomes of one pool.
type plot struct {
	*site
	was    *site           // nil for a new pool
	policy balance.Factory // nil: it stays
	// members are those of the configuration, as they will be; fresh those among
	// them that are new, with what belongs to them.
	members []*backend.Backend
	fresh   map[*backend.Backend]*fixture
	// specs are what is said of those that stay.
	specs map[*backend.Backend]serverSpec
}

func newPlot(s, was *site) *plot {
	return &plot{
		site: s, was: was,
		fresh: make(map[*backend.Backend]*fixture), specs: make(map[*backend.Backend]serverSpec),
	}
}

// site returns the pool of that name as it will be, nil if there is none.
func (l *layout) site(name string) *site { return l.byName[name] }

// layOut plans the pools of a valid configuration. It changes nothing that is
// there: until rearrange, abandon undoes it.
func (r *registry) layOut(c *config.Config) (*layout, error) {
	l := &layout{byName: make(map[string]*site)}
	for _, s := range sitesOf(c) {
		p := newPlot(s, r.pool(s.config.Name))
		l.add(p)
		if err := r.plan(p); err != nil {
			r.abandon(l)
			return nil, err
		}
	}
	for _, s := range r.all() { // those that registration made stay
		if s.made && l.site(s.Name) == nil {
			kept := &site{Pool: s.Pool, config: s.config, made: true, transport: s.transport}
			kept.config.Limits = c.Registration.Limits
			l.add(&plot{site: kept, was: s})
		}
	}
	return l, nil
}

// plan fills in what p needs.
func (r *registry) plan(p *plot) error {
	policy, err := policyOf(p.config.Policy)
	if err != nil {
		return fmt.Errorf("pool %s: %w", p.config.Name, err)
	}
	if p.was == nil || p.was.config.Policy != p.config.Policy {
		p.policy = policy
	}
	if p.was != nil {
		p.Pool, p.reshaped = p.was.Pool, !equalTransports(p.was.transport, p.transport)
	}
	there := make(map[string]*backend.Backend)
	if p.was != nil {
		for _, b := range p.was.Members().All {
			there[b.ID] = b
		}
	}
	for _, bc := range p.config.Backends {
		spec := configured(p.config, bc)
		if b := there[bc.ID]; b != nil && b.Source == sourceConfig && b.Address == bc.Address {
			p.members = append(p.members, b)
			p.specs[b] = spec
			continue
		}
		b, f, err := r.newBackend(p.site, spec)
		if err != nil {
			return err
		}
		p.members = append(p.members, b)
		p.fresh[b] = f
	}
	if p.was == nil {
		p.Pool = pool.New(r.optionsOf(p.site, policy, p.members))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for b, f := range p.fresh {
		f.pool = p.Pool
		r.fixtures[b] = f
	}
	return nil
}

// abandon gives up what layOut has made.
func (r *registry) abandon(l *layout) {
	for _, p := range l.pools {
		for b, f := range p.fresh {
			if f.stop != nil {
				f.stop()
			}
			r.forget(b)
		}
		if p.was == nil && p.Pool != nil {
			p.Close()
		}
	}
}

// newcomersWait is how long a reload waits for the first probes of who is new:
// meanwhile nothing else can be changed.
const newcomersWait = 3 * time.Second

// awaitProbes probes who is new once, as at a start. Who has no result when the
// wait is over gets no requests until there is one.
func (r *registry) awaitProbes(ctx context.Context, l *layout) {
	ctx, cancel := context.WithTimeout(ctx, newcomersWait)
	defer cancel()
	for _, p := range l.pools {
		for _, f := range p.fresh {
			r.probe(f)
		}
	}
	for _, p := range l.pools {
		for b, f := range p.fresh {
			if f.loop == nil || f.initial != backend.HealthUnknown || f.stop == nil {
				continue
			}
			select {
			case <-f.loop.First():
			case <-ctx.Done():
			}
			if p.was == nil {
				continue // it is a member: the loop has told its pool
			}
			state := b.State()
			switch f.loop.State().Verdict {
			case health.Up:
				state.Health = backend.HealthUp
			case health.Down:
				state.Health = backend.HealthDown
			}
			b.SetState(state)
		}
	}
}

// gone is a backend that the configuration has no more, or a pool with all of
// its own.
type gone struct {
	pool string
	*backend.Backend
}

// rearrange makes the pools what the layout says, and returns who is gone.
func (a *App) rearrange(l *layout) (left []gone) {
	r := a.registry
	was := r.all()
	pools := make([]*site, 0, len(l.pools))
	for _, p := range l.pools {
		pools = append(pools, p.site)
		if p.was != nil {
			for b := range p.fresh { // no request gets ahead of an operator
				state := b.State()
				state.Admin = a.wordFor(b)
				b.SetState(state)
			}
			left = append(left, a.reshape(p)...)
		}
	}
	r.mu.Lock()
	r.pools, r.byName = pools, l.byName
	r.mu.Unlock()
	for _, p := range l.pools {
		for b, f := range p.fresh {
			a.repeatWord(p.Pool, b)
			if p.was != nil {
				a.repeatVerdict(p.Pool, b, f)
			}
			a.fanout.Rejoin(b)
			if left := r.away(b.Pool, b.ID); left != nil { // who registered under this id does not come back
				a.retire(left, false)
			}
		}
	}
	for _, s := range was {
		if l.site(s.Name) != nil {
			continue
		}
		s.Close()
		for _, b := range append(slices.Clip(s.Members().All), r.awayFrom(s.Name)...) {
			left = append(left, gone{s.Name, b})
		}
	}
	return left
}

// repeatVerdict tells p, of which b is a member now, what the probes of b found
// before: p did not listen then, and the next one may be hours away.
func (a *App) repeatVerdict(p *pool.Pool, b *backend.Backend, f *fixture) {
	if f.loop == nil || b.State().Admin == backend.Maintenance {
		return
	}
	switch found := f.loop.State(); found.Verdict {
	case health.Up:
		p.SetHealth(b, backend.HealthUp, "its checks pass")
	case health.Down:
		if found.LastError != "" { // else it is so before its first probe
			p.SetHealth(b, backend.HealthDown, "its checks fail: "+found.LastError)
		}
	}
}

// reshape brings a pool that is there in line with its plot, and returns who is
// gone.
func (a *App) reshape(p *plot) (left []gone) {
	if p.was.config.RetryBudget != p.config.RetryBudget {
		p.Budget.Configure(p.config.RetryBudget.Ratio, p.config.RetryBudget.PerSecond)
	}
	if p.policy != nil || !equalSettings(p.was.config, p.config) {
		p.Configure(settingsOf(p.config, p.policy))
	}
	if p.made {
		return nil
	}
	members := slices.Clone(p.members)
	ids := make(map[string]bool, len(members))
	for _, b := range members {
		ids[b.ID] = true
	}
	var replaced []*backend.Backend
	for _, b := range p.was.Members().All {
		if spec, stays := p.specs[b]; stays {
			_ = a.registry.fit(p.site, b, spec, p.reshaped) // its check compiled when the configuration was judged
			continue
		}
		taken := ids[b.ID]
		if b.Source == sourceRegistration && p.config.Registration && !taken {
			members = append(members, b)
			continue
		}
		if taken {
			replaced = append(replaced, b)
		} else {
			left = append(left, gone{p.Name, b})
		}
	}
	if !slices.Equal(members, p.was.Members().All) {
		p.Replace(members)
	}
	for _, b := range replaced { // now that somebody has their place
		a.retire(b, false)
	}
	return left
}

// letGoFor lets those go who are gone: what is under way there ends, and what is
// pending for them is cancelled.
func (a *App) letGoFor(ctx context.Context, left []gone) {
	for _, g := range left {
		a.retire(g.Backend, true)
		a.cancelFor(g.Backend)
	}
	a.cancelRest(ctx)
	a.nudge()
}

// equalSettings reports whether two configurations give a pool the same settings,
// but for its policy.
func equalSettings(a, b config.Pool) bool {
	return a.Limits == b.Limits && a.SlowStart == b.SlowStart && reflect.DeepEqual(a.Breaker, b.Breaker)
}

func equalTransports(a, b transport.Settings) bool {
	return a.Connect == b.Connect && a.ResponseHeader == b.ResponseHeader && a.Idle == b.Idle && a.MaxIdle == b.MaxIdle
}
