package app

import (
	"context"
	"slices"
	"time"

	"go.uber.org/zap"

	"lb/internal/backend"
	"lb/internal/registration"
	"lb/internal/store"
)

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
		a.forget(i)
	}
	a.cancelRest(ctx)
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
	if len(a.registered.retired)+len(a.registered.uncancelled) > 0 {
		next = min(next, retirement)
	}
	return next
}

// drop takes an instance out of sight that has been gone for long: its state and
// its series. Deliveries for it are kept on, for whoever comes back under its id.
func (a *App) drop(i registration.Instance) {
	s := a.registry.pool(i.Pool)
	if s == nil {
		return
	}
	if b := s.member(i.ID); b != nil && b.Source == sourceRegistration {
		a.registry.leave(s, b)
	}
	if b := a.registry.away(i.Pool, i.ID); b != nil {
		a.registry.fixture(b).dropped = true
	}
	a.metrics.Forget(i.Pool, i.ID)
	a.log.Info("backend is gone", zap.String("pool", i.Pool), zap.String("backend", i.ID))
}

// forget drops the last that is kept of an instance: what is pending for it.
func (a *App) forget(i registration.Instance) {
	b := a.registry.away(i.Pool, i.ID)
	if b == nil {
		return
	}
	a.registry.dismiss(b)
	a.registered.retired = append(a.registered.retired, retired{b, time.Now()})
	a.registered.uncancelled = append(a.registered.uncancelled, identity{i.Pool, i.ID})
}

// cancelRest cancels what is pending for those who were forgotten. After a
// failure the rest waits for the next time.
func (a *App) cancelRest(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, patience) // others wait for their turn
	defer cancel()
	failed := false
	a.registered.uncancelled = slices.DeleteFunc(a.registered.uncancelled, func(gone identity) bool {
		if failed {
			return false
		}
		if s := a.registry.pool(gone.pool); s != nil && a.registry.known(s, gone.id) != nil {
			return true // somebody has come back under that id, and gets it
		}
		err := a.fanout.Cancel(ctx, gone.pool, gone.id)
		if failed = err != nil; failed {
			a.log.Error("what is pending for a backend that is gone could not be cancelled yet",
				zap.String("pool", gone.pool), zap.String("backend", gone.id), zap.Error(err))
		}
		return !failed
	})
}

// dropPools forgets the pools that registration made and nobody is in, after
// those have gone out of sight.
func (a *App) dropPools(gone []registration.Instance) {
	var dropped []string
	for _, i := range gone {
		s := a.registry.pool(i.Pool)
		if s == nil || !s.made || len(s.Members().All) > 0 || len(a.registered.book.Instances(i.Pool)) > 0 {
			continue
		}
		a.registry.dropPool(s)
		dropped = append(dropped, i.Pool)
		a.log.Info("pool is forgotten", zap.String("pool", i.Pool))
	}
	if len(dropped) == 0 {
		return
	}
	if err := a.publish(a.decider.Snapshot().Generation + 1); err != nil {
		a.log.Error("the routes could not be compiled anew", zap.Error(err))
	}
	for _, name := range dropped { // after its route: nobody counts there any more
		a.metrics.ForgetPool(name, a.config.Registration.RoutePrefix+name)
	}
}

// retire puts b, whose place somebody else has, out of use. What is under way
// there ends.
func (a *App) retire(b *backend.Backend) {
	a.registry.rest(b)
	a.registry.dismiss(b)
	a.registered.retired = append(a.registered.retired, retired{b, time.Now()})
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
