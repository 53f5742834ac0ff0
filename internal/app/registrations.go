package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"lb/internal/allow"
	"lb/internal/backend"
	"lb/internal/balance"
	"lb/internal/config"
	"lb/internal/exchange"
	"lb/internal/registration"
)

// registrations is what the daemon knows of the backends that registered
// themselves. The book decides; App carries out, one change at a time: whoever
// touches it holds App.operating.
type registrations struct {
	book  *registration.Book
	allow atomic.Pointer[allow.List]
}

// resolveWithin is how long the name of a backend that registers may take to
// resolve.
const resolveWithin = 2 * time.Second

// openRegistrations makes the book, and brings back who is in it.
func (a *App) openRegistrations(ctx context.Context) error {
	c := a.conf().Registration
	if !c.Enabled {
		return nil
	}
	list, err := allow.Parse(c.Allow)
	if err != nil {
		return fmt.Errorf("registration.allow: %w", err)
	}
	r := &registrations{book: registration.NewBook(bookSettings(c))}
	r.allow.Store(list)
	a.registry.allow = func(to netip.AddrPort) error { return r.allow.Load().Judge(to) }
	a.registered = r
	rows, err := a.store.Registrations(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrStorage, err)
	}
	var kept []registration.Instance
	for _, row := range rows {
		var i registration.Instance
		err := json.Unmarshal(row.Document, &i)
		if err == nil {
			err = a.fits(i)
		}
		if err != nil {
			a.log.Warn("a registration is not taken up again",
				zap.String("pool", row.Pool), zap.String("backend", row.Instance), zap.Error(err))
			continue
		}
		kept = append(kept, i)
	}
	a.registered.book.Restore(time.Now(), kept, func(pool string) bool { return a.registry.pool(pool) != nil })
	for _, p := range a.registered.book.Pools() {
		if a.registry.pool(p.Name) == nil {
			if _, err := a.makePool(p.Name, p.Policy); err != nil {
				return err
			}
		}
		for _, i := range a.registered.book.Instances(p.Name) {
			if err := a.bringBack(i); err != nil {
				return err
			}
		}
	}
	for _, i := range kept {
		if a.registry.pool(i.Pool) != nil && a.registry.pool(i.Pool).member(i.ID) == nil {
			if err := a.keepForWrites(i); err != nil {
				return err
			}
		}
	}
	return nil
}

func bookSettings(c config.Registration) registration.Settings {
	return registration.Settings{TTL: c.TTL.D(), MaxInstances: c.MaxInstances, MaxPools: c.MaxPools}
}

// configureRegistration goes by another configuration, of which the pools are
// there. Who may not be registered any more by what it says has left.
func (a *App) configureRegistration(ctx context.Context) {
	if a.registered == nil {
		return
	}
	c := a.conf().Registration
	if list, err := allow.Parse(c.Allow); err == nil { // it was validated
		a.registered.allow.Store(list)
	}
	book := a.registered.book
	book.SetSettings(bookSettings(c))
	var rows []registration.Instance
	for _, p := range book.Pools() {
		s := a.registry.pool(p.Name)
		for _, i := range book.Instances(p.Name) {
			if s != nil && (s.made || s.config.Registration) && (s.member(i.ID) == nil || s.member(i.ID).Source == sourceRegistration) {
				a.bringInLine(s, i)
				continue
			}
			if d, bad := book.Unregister(time.Now(), i.ID, p.Name, nil); bad == nil && d.Changed {
				book.Commit(d)
				rows = append(rows, d.Instance)
				a.log.Info("backend unregistered", zap.String("pool", i.Pool), zap.String("backend", i.ID),
					zap.String("by", "the configuration"))
			}
		}
	}
	documents, err := rowsOf(rows)
	if err == nil && len(rows) > 0 {
		err = a.store.SaveRegistrations(ctx, documents, nil)
	}
	if err != nil {
		a.log.Error("what became of registrations could not be stored", zap.Error(err))
	}
}

// bringInLine gives the backend of i, which stays, what its pool says now where
// it says nothing itself.
func (a *App) bringInLine(s *site, i registration.Instance) {
	b := s.member(i.ID)
	if b == nil {
		return
	}
	if err := a.registry.fit(s, b, a.specOf(s, i), s.reshaped); err != nil {
		a.log.Error("the check of a registered backend stays as it was", zap.String("pool", s.Name), zap.String("backend", b.ID), zap.Error(err))
	}
}

// fits reports why an instance that was registered before the start cannot be
// now: the configuration has changed.
func (a *App) fits(i registration.Instance) error {
	if i.Health != nil {
		if _, err := newCheck(i.Health, nil); err != nil {
			return fmt.Errorf("health: %w", err)
		}
	}
	s := a.registry.pool(i.Pool)
	switch {
	case s == nil:
		return fitsAlone(i.Policy)
	case !s.config.Registration:
		return errors.New("backends may not register into this pool any more")
	case s.member(i.ID) != nil:
		return errors.New("the configuration has a backend of this id now")
	}
	return nil
}

// fitsAlone reports why a pool that registration makes cannot have a policy: it
// had it from the configuration, which does not have the pool any more.
func fitsAlone(name string) error {
	if policy, _ := balance.Find(name); policy.Keyed {
		return fmt.Errorf("the configuration does not have its pool any more, and the policy %s needs a key", name)
	}
	if _, err := balance.New(balance.Spec{Name: name}); err != nil {
		return fmt.Errorf("the configuration does not have its pool any more, and its policy cannot do without: %w", err)
	}
	return nil
}

// bringBack makes the backend of an instance that was there before the start.
func (a *App) bringBack(i registration.Instance) error {
	if i.State == registration.Left {
		return nil
	}
	s := a.registry.pool(i.Pool)
	b, f, err := a.registry.newBackend(s, a.specOf(s, i))
	if err != nil {
		return err
	}
	a.registry.join(s, b, f)
	a.setExpiry(s, i)
	if i.State == registration.Expired {
		s.SetPresence(b, backend.Expired, silent(i))
	}
	return nil
}

// keepForWrites makes the backend of an instance that is gone, and for which
// deliveries may be pending. The pools that registration makes have none.
func (a *App) keepForWrites(i registration.Instance) error {
	s := a.registry.pool(i.Pool)
	if s.made {
		return nil
	}
	b, f, err := a.registry.newBackend(s, a.specOf(s, i))
	if err != nil {
		return err
	}
	f.dropped = true
	a.registry.keepAway(b, f)
	a.metrics.Forget(i.Pool, i.ID)
	return nil
}

func silent(i registration.Instance) string {
	return fmt.Sprintf("not heard of for its ttl of %v", i.TTL)
}

// specOf is what the backend of an instance is made of.
func (a *App) specOf(s *site, i registration.Instance) serverSpec {
	spec := serverSpec{
		id: i.ID, address: i.Address, source: sourceRegistration, weight: i.Weight, labels: i.Labels,
		limit: s.config.Limits.PerBackend, check: i.Health,
	}
	if i.Concurrency != nil && *i.Concurrency > 0 {
		spec.limit = *i.Concurrency
	}
	if spec.check == nil {
		spec.check = s.config.Health
	}
	return spec
}

// makePool makes a pool for those that register into it. It serves once it is
// published.
func (a *App) makePool(name, policy string) (*site, error) {
	var c config.Pool
	c.SetDefaults()
	c.Name, c.Registration = name, true
	c.Policy.Name, c.Limits = policy, a.conf().Registration.Limits
	var p config.Proxy
	p.SetDefaults()
	s := &site{config: c, made: true, transport: transportSettings(c.Transport, p.Timeout.D())}
	return s, a.registry.addPool(s)
}

// publish makes requests be decided by the pools as they are now.
func (a *App) publish(generation uint64) error {
	var made []*site
	for _, s := range a.registry.all() {
		if s.made {
			made = append(made, s)
		}
	}
	snapshot, err := a.blueprint.snapshot(generation, a.conf().Registration.RoutePrefix, made, a.metrics)
	if err != nil {
		return err
	}
	if a.decider == nil {
		a.decider = exchange.NewDecider(snapshot, a.options.Logs.access.write)
	} else {
		a.decider.Publish(snapshot)
	}
	a.metrics.SetGeneration(generation)
	return nil
}

// guardOwnSockets keeps lb from being registered as a backend of itself.
func (a *App) guardOwnSockets() {
	if a.registered == nil {
		return
	}
	var own []netip.AddrPort
	for _, s := range a.allServers() {
		if tcp, ok := s.Addr().(*net.TCPAddr); ok {
			own = append(own, tcp.AddrPort())
		}
	}
	var local []netip.Addr
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		a.log.Warn("the addresses of this machine are not known", zap.Error(err))
	}
	for _, address := range addresses {
		if prefix, err := netip.ParsePrefix(address.String()); err == nil {
			local = append(local, prefix.Addr())
		}
	}
	a.registered.allow.Load().SetOwn(own, local)
}
