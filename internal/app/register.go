package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"go.uber.org/zap"

	"lb/internal/admin"
	"lb/internal/allow"
	"lb/internal/backend"
	"lb/internal/config"
	"lb/internal/outcome"
	"lb/internal/registration"
	"lb/internal/store"
)

// RegisterInstance takes a registration, which is new, renews one that is
// there, or changes it. The admin listener asks only where registration is
// enabled.
func (a *App) RegisterInstance(ctx context.Context, body []byte, by string) (admin.Registered, bool, error) {
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

// judge refuses an address that lb would not dial for a backend that names it.
// It is judged again at every dial: a name may resolve to something else then.
func (a *App) judge(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, resolveWithin)
	defer cancel()
	err := a.registered.allow.Load().Check(ctx, net.DefaultResolver, address)
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
			zap.String("path", a.conf().Registration.RoutePrefix+i.Pool))
	case d.NewPolicy:
		if err := a.repolicy(s, d.Policy); err != nil {
			return err
		}
	}
	was := s.member(i.ID)
	if err := a.admit(s, i); err != nil {
		return err
	}
	a.setExpiry(s, i)
	a.evict(s, d) // now that somebody has their place
	if d.Returned && (d.Created || s.member(i.ID) != was) {
		a.sort(s)
	}
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

// evict lets those go who stood in the way. One with the id of the newcomer has
// lost its place already.
func (a *App) evict(s *site, d registration.Decision) {
	if len(d.Evicts) == 0 {
		return
	}
	for _, e := range d.Evicts {
		a.log.Info("backend evicted", zap.String("pool", e.Pool), zap.String("backend", e.ID), zap.String("for", d.Instance.Address))
		if b := s.member(e.ID); b != nil && e.ID != d.Instance.ID {
			a.letGo(s, b, "evicted by "+d.Instance.ID)
		}
	}
	a.seeOff()
}

// sort puts the members of s into the order that they have in the book: who came
// back is where it would be after a restart, too.
func (a *App) sort(s *site) {
	place := make(map[string]int)
	for n, i := range a.registered.book.Instances(s.Name) {
		place[i.ID] = n + 1 // behind those of the configuration
	}
	was := s.Members().All
	all := slices.Clone(was)
	slices.SortStableFunc(all, func(a, b *backend.Backend) int { return place[a.ID] - place[b.ID] })
	if !slices.Equal(all, was) {
		s.Replace(all)
	}
}

// letGo gives b, a member of s, nothing new; seeOff takes it out when what is
// under way there has ended.
func (a *App) letGo(s *site, b *backend.Backend, why string) {
	if b.State().Presence == backend.Leaving {
		return
	}
	s.SetPresence(b, backend.Leaving, why)
	a.departures.leaving = append(a.departures.leaving, b)
}

// repolicy gives a pool that registration made, and that has nobody in it who
// stays, another policy.
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
	b := r.known(s, i.ID)
	if b == nil || b.Address != i.Address || r.fixture(b).spent() {
		fresh, f, err := r.newBackend(s, spec)
		if err != nil {
			return err
		}
		fresh.SetState(backend.State{Admin: a.wordFor(fresh), Health: f.initial}) // no request gets ahead of an operator
		r.join(s, fresh, f)
		if b != nil {
			a.retire(b, false)
		}
		a.repeatWord(s.Pool, fresh)
		a.fanout.Rejoin(fresh)
		return nil
	}
	away := s.member(i.ID) == nil
	if away {
		r.join(s, b, r.fixture(b))
		if err := r.recheck(s, b, spec.check); err != nil { // its probes have ended
			return err
		}
	}
	if err := r.fit(s, b, spec, away); err != nil { // its pool may have changed while it was away
		return err
	}
	if b.State().Presence != backend.Present {
		a.probeFirst(s.Pool, b, "not probed since it came back")
		s.SetPresence(b, backend.Present, "it registered")
		a.fanout.Rejoin(b)
	}
	return nil
}

// setExpiry notes until when the backend of i need not be heard of again.
func (a *App) setExpiry(s *site, i registration.Instance) {
	a.registry.fixture(s.member(i.ID)).expires.Store(new(i.Seen.Add(i.TTL).UTC()))
}

// nudge has the book looked at now.
func (a *App) nudge() {
	select {
	case a.departures.nudged <- struct{}{}:
	default:
	}
}
