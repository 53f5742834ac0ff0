package exchange

import (
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"lb/internal/outcome"
	"lb/internal/pool"
	"lb/internal/route"
)

// Reserved is the path prefix that belongs to lb on every listener.
const Reserved = "/.lb/"

// RetryOutcomes name what became of the wish to try once more, by the numbers
// below: the `outcome` label of lb_retries_total.
var RetryOutcomes = []string{"redispatched", "retried", "no_budget", "no_backend"}

const (
	redispatched = iota // after a failed dial; costs nothing
	retried
	noBudget
	noBackend
)

// Decider makes the decisions about every request, each by the snapshot that
// was current when the request began. Safe for concurrent use.
type Decider struct {
	snapshot atomic.Pointer[Snapshot]
	finished func(*Exchange)
}

// NewDecider returns a decider over s. finished is told of every request when
// it is over; the record is only lent to it.
func NewDecider(s *Snapshot, finished func(*Exchange)) *Decider {
	d := &Decider{finished: finished}
	d.snapshot.Store(s)
	return d
}

// Snapshot returns what new requests are decided by.
func (d *Decider) Snapshot() *Snapshot { return d.snapshot.Load() }

// Begin opens the record of one request and says what is to be done with it.
func (d *Decider) Begin(x *Exchange, v View) Action {
	x.Start = time.Now()
	x.Snapshot = d.snapshot.Load()
	x.Method, x.Host = v.Method(), v.Host()
	x.Target.RawPath, _, _ = strings.Cut(v.Target(), "?") // for the log, if it is refused
	x.forward(v)

	if n := v.Fields(); n > x.Listener.MaxFields {
		return x.refuse(outcome.HeaderTooLarge, "the request has more fields than limits.header_fields of the listener allows")
	}
	if x.Method == "CONNECT" || x.Method == "TRACE" {
		x.Allow = []string{"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"}
		return x.refuse(outcome.MethodNotAllowed, x.Method+" is never proxied")
	}
	target, err := route.ParseTarget(v.Target())
	if err != nil {
		return x.refuse(outcome.BadRequest, err.Error())
	}
	host, err := route.NormalizeHost(v.Host())
	if err != nil {
		return x.refuse(outcome.BadRequest, err.Error())
	}
	x.Target, x.Host = target, host
	if strings.HasPrefix(x.Target.Path, Reserved) {
		return Status
	}
	i, ok := x.Snapshot.Table.Match(x.Host, x.Method, x.Target.Path)
	if !ok {
		return x.unmatched()
	}
	x.Route = &x.Snapshot.Routes[i]
	switch x.Route.Action {
	case Proxy:
		if x.Route.Procedure && !x.Route.anybody() {
			return x.refuse(outcome.NoSuchProcedure, "nobody is registered in the pool "+x.Route.Pool.Name)
		}
		if err := x.address(v); err != nil {
			return x.refuse(outcome.BadRequest, "behind the prefix that is stripped: "+err.Error())
		}
		if x.Route.Key.kind != keyNone {
			x.query.Key = x.Route.Key.of(x, v)
		}
		x.repeatable = repeatable(x.Method) || x.Route.Retry.Keyed && v.Lookup("Idempotency-Key") != ""
		x.Route.Pool.Budget.Deposit()
	case Fanout:
		if x.Target.EncodedSlash {
			return x.refuse(outcome.BadRequest, "the path of a fan-out route must not hold %2F")
		}
	}
	return x.Route.Action
}

// unmatched tells a path that nobody serves from one that wants other methods.
func (x *Exchange) unmatched() Action {
	if x.Allow = x.Snapshot.Table.Allow(x.Host, x.Target.Path); len(x.Allow) > 0 {
		return x.refuse(outcome.MethodNotAllowed, "this path takes "+strings.Join(x.Allow, ", "))
	}
	return x.refuse(outcome.NoRoute, "no route matches this host, method and path")
}

func (x *Exchange) refuse(code outcome.Code, detail string) Action {
	x.failWith(&outcome.Error{Code: code, Detail: detail})
	x.Outcome = outcome.Outcome{Class: outcome.Refused}
	return Refuse
}

// repeatable reports the methods that may be tried on another backend after a
// byte was sent: the idempotent ones of RFC 9110 §9.2.2.
func repeatable(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "PUT", "DELETE":
		return true
	}
	return false
}

// MayRetry reports whether the request could be retried at all, so that the
// carrier need not keep its body otherwise.
func (x *Exchange) MayRetry() bool {
	return x.repeatable && x.Route.Retry.Attempts > 0
}

// Kind says what the carrier does next.
type Kind uint8

// The kinds of a Step.
const (
	Try  Kind = iota // send the request to Exchange.Backend
	Pass             // the response at hand is the answer
	Fail             // answer with Exchange.Failure
	Wait             // call Decider.Wait: all slots are taken, and the request may wait for one
)

// Next takes how the last attempt ended (the zero outcome at first) and says
// what is to be done. First try, redispatch and retry are all decided here. A
// carrier that finds out, before it waits, that the request is not to be carried
// on says so as if it were the end of an attempt.
func (d *Decider) Next(x *Exchange, o outcome.Outcome) Kind {
	if o.Class == outcome.Undecided {
		if l, ok := x.Route.Pool.TryAcquire(&x.query); ok {
			x.moveTo(l, x.Start)
			return Try
		}
		return x.unserved()
	}
	now := time.Now()
	x.ended(o, now)
	switch o.Class {
	case outcome.Unsent, outcome.Starved:
		// Nothing was sent, so the next backend gets the request as if it
		// were the first, whatever the method.
		if l, ok := x.another(now); ok {
			x.redispatch(l, now)
			return Try
		}
		return x.unserved()
	case outcome.Success, outcome.Failure:
		if x.wantsRetry(o, now) && x.retry(now) {
			return Try
		}
		x.passing = true
		return Pass
	default:
		if x.wantsRetry(o, now) && x.retry(now) {
			return Try
		}
		return x.fail(outcome.CodeOf(o.Class), outcome.DetailOf(o.Class))
	}
}

// ended notes how the last attempt ended, if there was one.
func (x *Exchange) ended(o outcome.Outcome, now time.Time) {
	x.Outcome = o
	if x.lease.Backend == nil {
		return
	}
	x.attempt = o.Class
	judged := o.Class
	if o.Uploading {
		judged = outcome.Undecided // the client's slowness says nothing about the backend
	}
	x.lease.Answered(judged, now, now.Sub(x.began))
}

// wantsRetry reports whether the route retries what happened and the request
// allows it.
func (x *Exchange) wantsRetry(o outcome.Outcome, now time.Time) bool {
	r := &x.Route.Retry
	if !x.repeatable || !x.Replayable || x.retries >= r.Attempts || x.HeadSent.Load() {
		return false
	}
	switch o.Class {
	case outcome.Reset:
		return r.Reset
	case outcome.Timeout: // what lb itself would call a 504, while there is time for another try
		return r.Statuses[504] && now.Sub(x.Start) < x.Route.Timeout
	case outcome.Success, outcome.Failure:
		return r.Statuses[o.Status]
	}
	return false
}

// retry moves the request to another backend at the cost of one token. The
// backend is looked for first: a token is not spent on a wish. A retry never
// waits for a slot: who has been served badly is not served before others.
func (x *Exchange) retry(now time.Time) bool {
	l, ok := x.another(now)
	if !ok {
		x.Route.Retries[noBackend].Inc()
		return false
	}
	if !x.Route.Pool.Budget.Withdraw() {
		l.End(outcome.Undecided, now)
		x.Route.Retries[noBudget].Inc()
		return false
	}
	x.moveTo(l, now)
	x.retries++
	x.Route.Retries[retried].Inc()
	return true
}

// another acquires a backend that this request has not tried. Without an answer
// to fall back on, the last one's slot is given back first: the pool's total may
// have none but that.
func (x *Exchange) another(now time.Time) (pool.Lease, bool) {
	x.query.Exclude(x.Backend)
	x.query.Retry, x.query.Answered = true, x.Outcome.Status != 0
	if !x.query.Answered {
		x.leave(now)
	}
	return x.Route.Pool.TryAcquire(&x.query)
}

// redispatch moves the request, of which nothing was sent, on to l.
func (x *Exchange) redispatch(l pool.Lease, now time.Time) {
	x.moveTo(l, now)
	x.Route.Retries[redispatched].Inc()
}

// moveTo ends the lease on the last backend and goes on with l.
func (x *Exchange) moveTo(l pool.Lease, now time.Time) {
	x.leave(now)
	x.lease, x.Backend, x.began = l, l.Backend, now
	x.Attempts++
}

// leave counts how the attempt under way ended, if there is one, and ends its
// lease. What became of the request after the response's head is the backend's
// doing only if the response broke off.
func (x *Exchange) leave(now time.Time) {
	if x.lease.Backend == nil {
		return
	}
	brokeOff := x.Outcome.Class == outcome.Cut || x.Outcome.Class == outcome.Withdrawn
	if x.attempt == outcome.Undecided || x.passing && brokeOff {
		x.attempt = x.Outcome.Class
	}
	x.Backend.Outcomes.Count(int(x.attempt))
	x.lease.End(x.attempt, now)
	x.attempt = outcome.Undecided
}

func (x *Exchange) fail(code outcome.Code, detail string) Kind {
	x.failWith(&outcome.Error{Code: code, Detail: detail, Err: x.Outcome.Err})
	return Fail
}

// failWith makes e the answer, and counts it if it is one of RefusedCodes.
func (x *Exchange) failWith(e *outcome.Error) {
	x.Failure = e
	if x.Route != nil && x.Route.Refused != nil {
		if i := slices.Index(RefusedCodes, string(e.Code)); i >= 0 {
			x.Route.Refused[i].Inc()
		}
	}
}

// Finish closes the record: exactly once for every Begin, after the last byte.
func (d *Decider) Finish(x *Exchange) {
	now := time.Now()
	x.leave(now)
	x.Took = now.Sub(x.Start)
	if x.waiter.Waited() && x.Route.QueueWait != nil {
		x.Route.QueueWait.Observe(x.Queued.Seconds())
	}
	instruments := x.Snapshot.Unrouted
	if x.Route != nil {
		instruments = x.Route.Instruments
	}
	instruments.Observe(x.Status, x.Took.Seconds())
	d.finished(x)
}
