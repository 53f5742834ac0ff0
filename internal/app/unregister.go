package app

import (
	"context"
	"slices"
	"time"

	"go.uber.org/zap"

	"lb/internal/admin"
	"lb/internal/backend"
	"lb/internal/outcome"
	"lb/internal/registration"
)

// UnregisterInstance lets a backend go: when what is under way there has ended,
// or at once. To say the same twice is no error.
func (a *App) UnregisterInstance(ctx context.Context, u admin.Unregistration) error {
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
	if d.Changed || u.Force && a.cuttable(i) {
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
	if b := s.member(i.ID); b != nil && b.Source == sourceRegistration {
		a.letGo(s, b, "unregistered")
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

// cuttable reports whether anything of an instance may be under way, or wait,
// that was not cut yet.
func (a *App) cuttable(i registration.Instance) bool {
	s := a.registry.pool(i.Pool)
	if s == nil {
		return false
	}
	b := a.registry.known(s, i.ID)
	return b != nil && !a.registry.fixture(b).cut
}

// cutOff ends what is under way at a backend that leaves, and what waits for it.
func (a *App) cutOff(ctx context.Context, s *site, id string) error {
	b := a.registry.known(s, id)
	if b == nil {
		return nil
	}
	a.registry.fixture(b).cut = true
	a.registry.transports.For(b).Cut()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience) // others wait for their turn
	defer cancel()
	if err := a.fanout.Cancel(ctx, s.Name, id); err != nil {
		return &outcome.Error{Code: outcome.StorageUnavailable,
			Detail: "it is unregistered and cut, but what is pending for it could not be cancelled; the log tells more", Err: err}
	}
	return nil
}

// seeOff takes those out of their pools that were leaving and are done.
func (a *App) seeOff() {
	a.departures.leaving = slices.DeleteFunc(a.departures.leaving, func(b *backend.Backend) bool {
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
