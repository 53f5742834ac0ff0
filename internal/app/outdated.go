package app

import (
	"slices"
	"time"
)

// outdated is a route or, without one, a pool that the configuration has no
// more, since when. A route that leads to another pool now is another one.
type outdated struct {
	served
	since time.Time
}

// served is what bears series beside the backends.
type served struct{ route, pool string }

// servedBy returns what serves by the configuration as it is now.
func (a *App) servedBy() map[served]bool {
	all := make(map[served]bool)
	for _, r := range a.blueprint.routes {
		s := served{route: r.Name}
		if r.Pool != nil {
			s.pool = r.Pool.Name
		}
		all[s] = true
	}
	for _, s := range a.registry.all() {
		all[served{pool: s.Name}] = true
		if s.made {
			all[served{a.conf().Registration.RoutePrefix + s.Name, s.Name}] = true
		}
	}
	return all
}

// outdate notes what of was serves no more: its series go after a while.
func (a *App) outdate(was map[served]bool) {
	now, serves := time.Now(), a.servedBy()
	d := &a.departures
	d.outdated = slices.DeleteFunc(d.outdated, func(o outdated) bool { return serves[o.served] }) // they are back
	for s := range was {
		if !serves[s] {
			d.outdated = append(d.outdated, outdated{s, now})
		}
	}
}

// forgetOutdated drops the series that have been shown long enough.
func (a *App) forgetOutdated(now time.Time) {
	d := &a.departures
	if len(d.outdated) == 0 {
		return
	}
	serves := a.servedBy() // somebody may have registered since
	d.outdated = slices.DeleteFunc(d.outdated, func(o outdated) bool {
		switch {
		case now.Sub(o.since) < stillShown:
			return false
		case serves[o.served]:
		case o.route != "":
			a.metrics.ForgetRoute(o.route, o.pool)
		default:
			a.metrics.ForgetPool(o.pool, "")
		}
		return true
	})
}
