package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"go.uber.org/zap"

	"lb/internal/admin"
	"lb/internal/allow"
	"lb/internal/backend"
	"lb/internal/config"
	"lb/internal/exchange"
	"lb/internal/outcome"
	"lb/internal/registration"
	"lb/internal/store"
)

// registrations is what the daemon knows of the backends that registered
// themselves. The book decides; App carries out, one change at a time: whoever
// touches it holds App.operating.
type registrations struct {
	book  *registration.Book
	allow *allow.List
	// leaving are unregistered, and still at work.
	leaving []*backend.Backend
	// retired are out of use, and kept until nobody can hold them any more.
	retired []retired
	// nudged says that the book may have something to do sooner than it said.
	nudged chan struct{}
}

// retired is a backend that is out of use, since when.
type retired struct {
	*backend.Backend
	since time.Time
}

const (
	// resolveWithin is how long the name of a backend that registers may take to
	// resolve.
	resolveWithin = 2 * time.Second
	// lookAtLeaving is how often lb looks whether a backend that leaves is done.
	lookAtLeaving = 100 * time.Millisecond
	// retirement is how long a backend that is out of use is kept. A pick from
	// members that were current a moment ago takes microseconds.
	retirement = time.Minute
	// lookAgain is when what could not be done is tried again.
	lookAgain = time.Second
)

// openRegistrations makes the book, and brings back who is in it.
func (a *App) openRegistrations(ctx context.Context) error {
	c := a.config.Registration
	if !c.Enabled {
		return nil
	}
	list, err := allow.Parse(c.Allow)
	if err != nil {
		return fmt.Errorf("registration.allow: %w", err)
	}
	a.registry.allow = list.Judge
	a.registered = &registrations{
		allow: list, nudged: make(chan struct{}, 1),
		book: registration.NewBook(registration.Settings{
			TTL: c.TTL.D(), MaxInstances: c.MaxInstances, MaxPools: c.MaxPools,
		}),
	}
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
	a.registered.book.Restore(time.Now(), kept)
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

// fits reports why an instance that was registered before the start cannot be
// now: the configuration has changed.
func (a *App) fits(i registration.Instance) error {
	s := a.registry.pool(i.Pool)
	switch {
	case s == nil || s.made:
		return nil
	case !s.config.Registration:
		return errors.New("backends may not register into this pool any more")
	case s.member(i.ID) != nil:
		return errors.New("the configuration has a backend of this id now")
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
	a.registry.keepAway(b, f)
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
	if i.Concurrency != nil {
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
	c.Policy.Name, c.Limits = policy, a.config.Registration.Limits
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
	snapshot, err := a.blueprint.snapshot(generation, a.config.Registration.RoutePrefix, made, a.metrics)
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

// RegisterInstance takes a registration, which is new, renews one that is
// there, or changes it.
func (a *App) RegisterInstance(ctx context.Context, body []byte, by string) (admin.Registered, bool, error) {
	if a.registered == nil {
		return admin.Registered{}, false, registrationOff()
	}
	request, bad := registration.Parse(body)
	if bad != nil {
		return admin.Registered{}, false, bad
	}
	if err := a.judge(ctx, request.Address); err != nil {
		return admin.Registered{}, false, err
	}
	if err := a.takeTurn(ctx); err != nil {
		return admin.Registered{}, false, unchanged(err)
	}
	defer func() { <-a.operating }()
	now := time.Now()
	d, bad := a.registered.book.Decide(now, request, a.poolView(request.Pool))
	if bad != nil {
		return admin.Registered{}, false, bad
	}
	if d.Changed {
		if err := a.keep(ctx, now, by, d); err != nil {
			return admin.Registered{}, false, err
		}
	}
	a.registered.book.Commit(d)
	if err := a.carryOut(d); err != nil {
		return admin.Registered{}, false, err
	}
	a.nudge()
	i := d.Instance
	return admin.Registered{
		InstanceID: i.ID, Pool: i.Pool, TTL: i.TTL.String(), Heartbeat: i.Heartbeat().String(),
		Generation: a.decider.Snapshot().Generation,
	}, d.Created, nil
}

func registrationOff() error {
	return &outcome.Error{Code: outcome.RegistrationDisabled, Detail: "set registration.enabled in the configuration"}
}

// judge refuses an address that lb would not dial for a backend that names it.
// It is judged again at every dial: a name may resolve to something else then.
func (a *App) judge(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, resolveWithin)
	defer cancel()
	err := a.registered.allow.Check(ctx, net.DefaultResolver, address)
	switch refused := (*allow.Refused)(nil); {
	case err == nil:
		return nil
	case errors.As(err, &refused):
		return &outcome.Error{Code: outcome.AddressNotAllowed, Detail: err.Error(), Err: err}
	}
	return &outcome.Error{
		Code: outcome.RegistrationInvalid, Detail: err.Error(), Err: err,
		Fields: []outcome.FieldError{{Field: "address", Detail: err.Error()}},
	}
}

// poolView is what the configuration says of a pool.
func (a *App) poolView(name string) registration.PoolView {
	s := a.registry.pool(name)
	if s == nil || s.made {
		return registration.PoolView{}
	}
	v := registration.PoolView{
		Exists: true, Registration: s.config.Registration, Policy: s.config.Policy.Name,
		Configured: make(map[string]string),
	}
	for _, b := range s.Members().All {
		if b.Source == sourceConfig {
			v.Configured[b.ID] = b.Address
		}
	}
	return v
}

// keep stores what a decision changes: what a backend was told survives a
// restart.
func (a *App) keep(ctx context.Context, now time.Time, by string, d registration.Decision) error {
	if err := a.whole(); err != nil {
		return err
	}
	i := d.Instance
	action := "update registration"
	if d.Created {
		action = "register"
	}
	records := []store.Record{a.record(now, by, action, i, "at "+i.Address)}
	for _, e := range d.Evicts {
		records = append(records, a.record(now, by, "evict", e, fmt.Sprintf("at %s, for %s at %s", e.Address, i.ID, i.Address)))
	}
	rows, err := rowsOf(d.Stores())
	if err != nil {
		return err
	}
	if err := a.store.SaveRegistrations(ctx, rows, nil, records...); err != nil {
		return unchanged(err)
	}
	return nil
}

func (a *App) record(at time.Time, who, action string, i registration.Instance, detail string) store.Record {
	return store.Record{
		At: at, Who: who, Action: action, Target: i.Pool + "/" + i.ID, Detail: detail,
		Generation: a.decider.Snapshot().Generation,
	}
}

func rowsOf(instances []registration.Instance) ([]store.Registration, error) {
	rows := make([]store.Registration, len(instances))
	for n, i := range instances {
		document, err := json.Marshal(i)
		if err != nil {
			return nil, err
		}
		rows[n] = store.Registration{
			Pool: i.Pool, Instance: i.ID, State: i.State.String(), Seen: i.Seen, Left: i.LeftAt, Document: document,
		}
	}
	return rows, nil
}

// carryOut does what was decided and kept.
func (a *App) carryOut(d registration.Decision) error {
	i, s := d.Instance, a.registry.pool(d.Instance.Pool)
	fields := []zap.Field{zap.String("pool", i.Pool), zap.String("backend", i.ID), zap.String("address", i.Address)}
	for _, e := range d.Evicts {
		if b := s.member(e.ID); b != nil {
			a.retire(s, b)
			a.log.Info("backend evicted", zap.String("pool", i.Pool), zap.String("backend", e.ID), zap.String("for", i.Address))
		}
	}
	switch {
	case s == nil:
		var err error
		if s, err = a.makePool(i.Pool, d.Policy); err != nil {
			return err
		}
		if err := a.publish(a.decider.Snapshot().Generation + 1); err != nil {
			return err
		}
		a.log.Info("pool made by registration", zap.String("pool", i.Pool), zap.String("policy", d.Policy),
			zap.String("path", a.config.Registration.RoutePrefix+i.Pool))
	case d.NewPolicy:
		if err := a.repolicy(s, d.Policy); err != nil {
			return err
		}
	}
	if err := a.admit(s, i); err != nil {
		return err
	}
	a.setExpiry(s, i)
	switch {
	case d.Created:
		a.log.Info("backend registered", append(fields, zap.Duration("ttl", i.TTL), zap.Int("limit", s.member(i.ID).Limit()))...)
	case d.Returned:
		a.log.Info("backend is back", fields...)
	case d.Changed:
		a.log.Info("backend changed its registration", fields...)
	}
	return nil
}

// repolicy gives a pool that registration made, and that has nobody in it,
// another policy.
func (a *App) repolicy(s *site, policy string) error {
	f, err := policyOf(config.Policy{Name: policy})
	if err != nil {
		return err
	}
	s.SetPolicy(f)
	s.config.Policy.Name = policy
	return a.publish(a.decider.Snapshot().Generation + 1)
}

// admit brings the backend of i in line with it: a member that is present.
func (a *App) admit(s *site, i registration.Instance) error {
	r, spec := a.registry, a.specOf(s, i)
	b := s.member(i.ID)
	if b == nil {
		b = r.away(s.Name, i.ID)
	}
	if b == nil || b.Address != i.Address || r.fixture(b).cut {
		fresh, f, err := r.newBackend(s, spec)
		if err != nil {
			return err
		}
		if b != nil {
			a.retire(s, b)
		}
		r.join(s, fresh, f)
		a.repeatWord(s.Pool, fresh)
		a.fanout.Rejoin(fresh)
		return nil
	}
	if s.member(i.ID) == nil {
		r.join(s, b, r.fixture(b))
	}
	if b.Limit() != spec.limit {
		s.SetLimit(b, spec.limit)
	}
	if b.Weight() != spec.weight || !maps.Equal(b.Labels(), spec.labels) {
		s.SetTraits(b, spec.weight, spec.labels)
	}
	if !reflect.DeepEqual(r.fixture(b).check, spec.check) {
		if err := r.recheck(s, b, spec.check); err != nil {
			return err
		}
	}
	if b.State().Presence != backend.Present {
		a.probeFirst(s.Pool, b, "not probed since it came back")
		s.SetPresence(b, backend.Present, "it registered")
	}
	return nil
}

// setExpiry notes until when the backend of i need not be heard of again.
func (a *App) setExpiry(s *site, i registration.Instance) {
	a.registry.fixture(s.member(i.ID)).expires.Store(new(i.Seen.Add(i.TTL).UTC()))
}

// retire puts b, whose place somebody else takes, out of use. What is under way
// there ends.
func (a *App) retire(s *site, b *backend.Backend) {
	if s.member(b.ID) == b {
		a.registry.leave(s, b)
	}
	a.registry.dismiss(b)
	a.registered.retired = append(a.registered.retired, retired{b, time.Now()})
}

// nudge has the book looked at now.
func (a *App) nudge() {
	select {
	case a.registered.nudged <- struct{}{}:
	default:
	}
}

// UnregisterInstance lets a backend go: when what is under way there has ended,
// or at once. To say the same twice is no error.
func (a *App) UnregisterInstance(ctx context.Context, u admin.Unregistration) error {
	if a.registered == nil {
		return registrationOff()
	}
	if err := a.takeTurn(ctx); err != nil {
		return unchanged(err)
	}
	defer func() { <-a.operating }()
	now := time.Now()
	d, bad := a.registered.book.Unregister(now, u.ID, u.Pool, a.configuredIn(u.ID, u.Pool))
	if bad != nil {
		return bad
	}
	i := d.Instance
	if d.Changed {
		if err := a.whole(); err != nil {
			return err
		}
		rows, err := rowsOf([]registration.Instance{i})
		if err != nil {
			return err
		}
		detail := "drained"
		if u.Force {
			detail = "by force"
		}
		if err := a.store.SaveRegistrations(ctx, rows, nil, a.record(now, u.By, "unregister", i, detail)); err != nil {
			return unchanged(err)
		}
		a.registered.book.Commit(d)
		a.log.Info("backend unregistered", zap.String("pool", i.Pool), zap.String("backend", i.ID),
			zap.String("address", i.Address), zap.Bool("force", u.Force), zap.String("by", u.By))
	}
	s := a.registry.pool(i.Pool)
	if s == nil {
		return nil
	}
	if b := s.member(i.ID); b != nil && b.Source == sourceRegistration && b.State().Presence != backend.Leaving {
		s.SetPresence(b, backend.Leaving, "unregistered")
		a.registered.leaving = append(a.registered.leaving, b)
	}
	if u.Force {
		if err := a.cutOff(ctx, s, i.ID); err != nil {
			return err
		}
	}
	a.seeOff()
	a.nudge()
	return nil
}

// configuredIn returns the pools, or that one pool, whose configuration has a
// backend of that id.
func (a *App) configuredIn(id, pool string) []string {
	var in []string
	for _, s := range a.registry.all() {
		if b := s.member(id); (pool == "" || s.Name == pool) && b != nil && b.Source == sourceConfig {
			in = append(in, s.Name)
		}
	}
	return in
}

// cutOff ends what is under way at a backend that leaves, and what waits for it.
func (a *App) cutOff(ctx context.Context, s *site, id string) error {
	b := s.member(id)
	if b == nil {
		b = a.registry.away(s.Name, id)
	}
	if b == nil {
		return nil
	}
	a.registry.fixture(b).cut = true
	a.registry.transports.For(b).Cut()
	if err := a.fanout.Cancel(context.WithoutCancel(ctx), s.Name, id); err != nil {
		return &outcome.Error{Code: outcome.StorageUnavailable,
			Detail: "it is unregistered and cut, but what is pending for it could not be cancelled; the log tells more", Err: err}
	}
	return nil
}

// seeOff takes those out of their pools that were leaving and are done.
func (a *App) seeOff() {
	a.registered.leaving = slices.DeleteFunc(a.registered.leaving, func(b *backend.Backend) bool {
		s := a.registry.pool(b.Pool)
		switch {
		case s == nil || s.member(b.ID) != b || b.State().Presence != backend.Leaving:
			return true // it came back, or went another way
		case b.InFlight() > 0:
			return false
		}
		a.registry.leave(s, b)
		a.log.Info("backend has left", zap.String("pool", b.Pool), zap.String("backend", b.ID))
		return true
	})
}

// runRegistrations lets those expire that are silent, and forgets those that
// have gone, until ctx ends.
func (a *App) runRegistrations(ctx context.Context) {
	if a.registered == nil {
		return
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-a.registered.nudged:
		}
		timer.Reset(a.review(ctx))
	}
}

// review does what time has brought, and returns how long nothing more is to be
// done.
func (a *App) review(ctx context.Context) time.Duration {
	if err := a.takeTurn(ctx); err != nil {
		return lookAgain
	}
	defer func() { <-a.operating }()
	now := time.Now()
	a.seeOff()
	expired, dropped, forgotten, due := a.registered.book.Expire(now, func(pool, id string) bool {
		s := a.registry.pool(pool)
		if s == nil {
			return false
		}
		b := s.member(id)
		return b != nil && b.InFlight() > 0
	})
	var records []store.Record
	for _, i := range expired {
		if s := a.registry.pool(i.Pool); s != nil {
			if b := s.member(i.ID); b != nil {
				s.SetPresence(b, backend.Expired, silent(i))
			}
		}
		records = append(records, a.record(now, "lb", "expire", i, silent(i)))
	}
	for _, i := range dropped {
		a.drop(i)
	}
	var forget []store.RegistrationKey
	for _, i := range forgotten {
		forget = append(forget, store.RegistrationKey{Pool: i.Pool, Instance: i.ID})
		a.forget(ctx, i)
	}
	a.dropPools(dropped)
	a.retireFully(now)
	if len(expired)+len(forget) > 0 {
		rows, err := rowsOf(expired)
		if err == nil {
			err = a.store.SaveRegistrations(ctx, rows, forget, records...)
		}
		if err != nil { // after a restart they get another ttl, which harms nobody
			a.log.Error("what became of registrations could not be stored", zap.Error(err))
		}
	}
	next := time.Hour
	if !due.IsZero() {
		next = max(0, time.Until(due))
	}
	if len(a.registered.leaving) > 0 {
		next = min(next, lookAtLeaving)
	}
	if len(a.registered.retired) > 0 {
		next = min(next, retirement)
	}
	return next
}

// drop takes an instance out of sight that has been gone for long: its state and
// its series. Deliveries for it are kept on.
func (a *App) drop(i registration.Instance) {
	s := a.registry.pool(i.Pool)
	if s == nil {
		return
	}
	if b := s.member(i.ID); b != nil && b.Source == sourceRegistration {
		a.registry.leave(s, b)
	}
	a.metrics.Forget(i.Pool, i.ID)
	a.log.Info("backend is gone", zap.String("pool", i.Pool), zap.String("backend", i.ID))
}

// forget drops the last that is kept of an instance: what is pending for it.
func (a *App) forget(ctx context.Context, i registration.Instance) {
	b := a.registry.away(i.Pool, i.ID)
	if b == nil {
		return
	}
	a.registry.dismiss(b)
	a.registered.retired = append(a.registered.retired, retired{b, time.Now()})
	if err := a.fanout.Cancel(ctx, i.Pool, i.ID); err != nil {
		a.log.Error("what is pending for a backend that is gone could not be cancelled",
			zap.String("pool", i.Pool), zap.String("backend", i.ID), zap.Error(err))
	}
}

// dropPools forgets the pools that registration made and nobody is in, after
// those have gone out of sight.
func (a *App) dropPools(gone []registration.Instance) {
	dropped := false
	for _, i := range gone {
		s := a.registry.pool(i.Pool)
		if s == nil || !s.made || len(s.Members().All) > 0 || len(a.registered.book.Instances(i.Pool)) > 0 {
			continue
		}
		a.registry.dropPool(s)
		dropped = true
		a.log.Info("pool is forgotten", zap.String("pool", i.Pool))
		defer a.metrics.ForgetPool(i.Pool, a.config.Registration.RoutePrefix+i.Pool)
	}
	if !dropped {
		return
	}
	if err := a.publish(a.decider.Snapshot().Generation + 1); err != nil {
		a.log.Error("the routes could not be compiled anew", zap.Error(err))
	}
}

// retireFully drops those that have been out of use long enough.
func (a *App) retireFully(now time.Time) {
	a.registered.retired = slices.DeleteFunc(a.registered.retired, func(b retired) bool {
		if now.Sub(b.since) < retirement || b.InFlight() > 0 {
			return false
		}
		a.registry.forget(b.Backend)
		return true
	})
}

// guardOwnSockets keeps lb from being registered as a backend of itself.
func (a *App) guardOwnSockets() {
	if a.registered == nil {
		return
	}
	var own []netip.AddrPort
	for _, s := range a.servers {
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
	a.registered.allow.SetOwn(own, local)
}
