package exchange

import (
	"time"

	"lb/internal/backend"
	"lb/internal/outcome"
)

// RefusedCodes are the codes that a request is refused with for want of a
// backend that could take it: the `code` label of lb_refused_total.
var RefusedCodes = []string{
	string(outcome.MaxConcurrency), string(outcome.QueueFull), string(outcome.QueueTimeout),
	string(outcome.NoBackend), string(outcome.NoSuchProcedure),
}

// unserved says what becomes of a request for which no backend could be had and
// of which nothing was sent: it waits if that helps and it may, else it fails.
func (x *Exchange) unserved() Kind {
	refusal := x.Route.Pool.Refusal(&x.query)
	if refusal.Code == outcome.MaxConcurrency && x.Route.Pool.MayWait() {
		return Wait
	}
	return x.turnedAway(refusal)
}

// Wait waits in the pool's queue, as Next has said, until a backend can be had,
// the queue's or the route's time is over, or gone is closed because the client
// left. It returns Try or Fail.
func (d *Decider) Wait(x *Exchange, gone <-chan struct{}) Kind {
	began := time.Now()
	l, refusal := x.Route.Pool.Wait(&x.query, &x.waiter, x.Start.Add(x.Route.Timeout), gone)
	now := time.Now()
	x.Queued += now.Sub(began)
	switch {
	case refusal != nil:
		return x.turnedAway(refusal)
	case x.Attempts > 0:
		x.redispatch(l, now)
	default:
		x.moveTo(l, now)
	}
	return Try
}

// turnedAway fails a request that got no backend. Until one was tried that is a
// refusal, and no failure of a backend.
func (x *Exchange) turnedAway(refusal *outcome.Error) Kind {
	switch {
	case refusal.Code == outcome.ClientClosed:
		x.Outcome = outcome.Outcome{Class: outcome.ClientGone}
	case x.Attempts == 0:
		x.Outcome = outcome.Outcome{Class: outcome.Refused}
	case refusal.Code == outcome.NoBackend:
		refusal.Detail = outcome.DetailOf(x.Outcome.Class)
	}
	if x.Attempts > 0 {
		x.Route.Retries[noBackend].Inc()
		refusal.Err = x.Outcome.Err
	}
	x.failWith(refusal)
	return Fail
}

// anybody reports whether anybody is there in the route's pool, well or not.
func (rt *Route) anybody() bool {
	for _, b := range rt.Pool.Members().All {
		if b.State().Presence == backend.Present {
			return true
		}
	}
	return false
}
