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

// departures are backends on their way out. Whoever touches them holds
// App.operating.
type departures struct {
	// leaving get nothing new, and are still at work.
	leaving []*backend.Backend
	// retired are out of use, and kept until nobody can hold them any more.
	retired []retired
	// outdated serve no more, and their series are shown still.
	outdated []outdated
	// uncancelled do not come back, and what is pending for them is pending still.
	uncancelled []identity
	// nudged says that there is something to do sooner than it was said.
	nudged chan struct{}
}

// retired is a backend that is out of use, since when.
type retired struct {
	*backend.Backend
	since time.Time
	gone  bool // nobody has its id: its series go, too
}

const (
	// lookAtLeaving is how often lb looks whether a backend that leaves is done.
	lookAtLeaving = 100 * time.Millisecond
	// stillHeld is how long a backend that is out of use is kept. A pick from
	// members that were current a moment ago takes microseconds.
	stillHeld = 10 * time.Second
	// stillShown is how long the series of one that is gone are.
	stillShown = 10 * time.Minute
	// lookAgain is when what could not be done is tried again.
	lookAgain = time.Second
)

// seeAfterDepartures lets those go that are done, those expire that are silent,
// and forgets those that have gone, until ctx ends.
func (a *App) seeAfterDepartures(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-a.departures.nudged:
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
	now, next := time.Now(), time.Hour
	a.seeOff()
	if a.registered != nil {
		next = a.expire(ctx, now)
	}
	a.cancelRest(ctx)
	a.retireFully(now)
	a.forgetOutdated(now)
	if len(a.departures.leaving) > 0 {
		next = min(next, lookAtLeaving)
	}
	if len(a.departures.retired)+len(a.departures.uncancelled)+len(a.departures.outdated) > 0 {
		next = min(next, stillHeld)
	}
	return next
}

// expire carries out what the book says is due, and returns when something is
// due again.
func (a *App) expire(ctx context.Context, now time.Time) (next time.Duration) {
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
	a.dropPools(dropped)
	if len(expired)+len(forget) > 0 {
		rows, err := rowsOf(expired)
		if err == nil {
			err = a.store.SaveRegistrations(ctx, rows, forget, records...)
		}
		if err != nil { // after a restart they get another ttl, which harms nobody
			a.log.Error("what became of registrations could not be stored", zap.Error(err))
		}
	}
	if due.IsZero() {
		return time.Hour
	}
	return max(0, time.Until(due))
}

// drop takes an instance out of sight that has been gone for long: its state and
// its series. Deliveries for it are kept on, for whoever comes back under its id.
func (a *App) drop(i registration.Instance) {
	s := a.registry.pool(i.Pool)
	if s == nil {
		return
	}
	if b := s.member(i.ID); b != nil {
		if b.Source != sourceRegistration {
			return // the configuration has the id now, and its series
		}
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
	a.retire(b, false)
	a.cancelFor(b)
}

// cancelRest cancels what is pending for those who were forgotten. After a
// failure the rest waits for the next time.
func (a *App) cancelRest(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, patience) // others wait for their turn
	defer cancel()
	failed := false
	a.departures.uncancelled = slices.DeleteFunc(a.departures.uncancelled, func(gone identity) bool {
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
		a.metrics.ForgetPool(name, a.conf().Registration.RoutePrefix+name)
	}
}

// retire puts b, which is no member any more and does not come back, out of use.
// What is under way there ends. gone says that nobody has its id now.
func (a *App) retire(b *backend.Backend, gone bool) {
	state := b.State()
	state.Presence = backend.Leaving // nothing more is begun there, not by writes either that were admitted before
	b.SetState(state)
	a.registry.rest(b)
	a.registry.dismiss(b)
	a.departures.retired = append(a.departures.retired, retired{b, time.Now(), gone})
}

// retireFully drops those that have been out of use long enough.
func (a *App) retireFully(now time.Time) {
	a.departures.retired = slices.DeleteFunc(a.departures.retired, func(b retired) bool {
		wait := stillHeld
		if b.gone {
			wait = stillShown
		}
		if now.Sub(b.since) < wait || b.InFlight() > 0 {
			return false
		}
		a.registry.forget(b.Backend)
		s := a.registry.pool(b.Pool)
		if s != nil {
			if heir := s.member(b.ID); heir != nil && heir.State().Presence == backend.Present {
				a.fanout.Rejoin(heir) // a write that was admitted before may have come to b after all
			}
		}
		if b.gone && (s == nil || a.registry.known(s, b.ID) == nil) {
			a.metrics.Forget(b.Pool, b.ID)
			a.log.Info("backend is gone", zap.String("pool", b.Pool), zap.String("backend", b.ID))
		}
		return true
	})
}

// cancelFor has what is pending for b, which does not come back, cancelled with
// the next review.
func (a *App) cancelFor(b *backend.Backend) {
	a.departures.uncancelled = append(a.departures.uncancelled, identity{b.Pool, b.ID})
}
