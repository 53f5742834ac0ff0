package metrics

import (
	"strconv"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// Statuses outside of these bounds are counted together, so that a backend
// cannot make series without end.
const (
	minStatus = 100
	maxStatus = 599
	otherCode = maxStatus - minStatus + 1 // index of code="other"
)

// Route counts the requests of one route.
type Route struct {
	requests    *prometheus.CounterVec
	duration    prometheus.Observer
	route, pool string
	codes       [otherCode + 1]atomic.Pointer[Counter]
	gone        atomic.Bool // forgotten: what still ends makes no series any more
}

// Route returns the instrument of a route: lb_requests_total{route,pool,code}
// and lb_request_duration_seconds{route}. Pool is empty for a route that has
// none.
func (r *Registry) Route(route, pool string) *Route {
	route, pool = valid(route), valid(pool)
	r.mu.Lock()
	defer r.mu.Unlock()
	return once(r.routes, [2]string{route, pool}, func() *Route {
		return &Route{
			requests: r.requests,
			duration: r.duration.WithLabelValues(route),
			route:    route,
			pool:     pool,
		}
	})
}

// Observe counts one request that was answered with status after so many
// seconds. A status outside of 100 to 599 counts as code="other". Only the
// first request of a status allocates.
func (m *Route) Observe(status int, seconds float64) {
	m.code(status).Inc()
	m.duration.Observe(seconds)
}

// codeAt is the label for the status at that place of Route.codes.
func codeAt(i int) string {
	if i == otherCode {
		return "other"
	}
	return strconv.Itoa(minStatus + i)
}

// unseen counts what nobody is to see.
var unseen = &Counter{prometheus.NewCounter(prometheus.CounterOpts{Name: "unseen"})}

func (m *Route) code(status int) *Counter {
	i := otherCode
	if status >= minStatus && status <= maxStatus {
		i = status - minStatus
	}
	if c := m.codes[i].Load(); c != nil {
		return c
	}
	if m.gone.Load() {
		return unseen
	}
	// Two goroutines may come here at once; both get the same series.
	c := &Counter{m.requests.WithLabelValues(m.route, m.pool, codeAt(i))}
	m.codes[i].Store(c)
	return c
}

// Backend counts what came of the requests sent to one backend.
type Backend struct{ outcomes []*Counter }

// Backend returns the instrument of a backend:
// lb_backend_requests_total{pool,backend,outcome}, one series for each of
// outcomes. Outcomes must be the same at each call.
func (r *Registry) Backend(pool, backend string, outcomes []string) *Backend {
	pool, backend = valid(pool), valid(backend)
	r.mu.Lock()
	defer r.mu.Unlock()
	return once(r.backends, [2]string{pool, backend}, func() *Backend {
		r.outcomes = outcomes
		return &Backend{each(r.backendRequests, outcomes, pool, backend)}
	})
}

// Count counts one request; outcome is an index into the outcomes that the
// instrument was made with. It does not allocate.
func (m *Backend) Count(outcome int) { m.outcomes[outcome].Inc() }

// Retries returns the counters of a pool's retries,
// lb_retries_total{pool,outcome}, in the order of outcomes. Outcomes must be
// the same at each call.
func (r *Registry) Retries(pool string, outcomes []string) []*Counter {
	pool = valid(pool)
	r.mu.Lock()
	defer r.mu.Unlock()
	return once(r.retryOf, pool, func() []*Counter { return each(r.retries, outcomes, pool) })
}

// Refused returns the counters of a pool's requests that got no backend,
// lb_refused_total{pool,code}, in the order of codes. Codes must be the same at
// each call.
func (r *Registry) Refused(pool string, codes []string) []*Counter {
	pool = valid(pool)
	r.mu.Lock()
	defer r.mu.Unlock()
	return once(r.refusedOf, pool, func() []*Counter { return each(r.refused, codes, pool) })
}

// QueueWait returns the histogram lb_queue_wait_seconds{pool}.
func (r *Registry) QueueWait(pool string) *Histogram {
	pool = valid(pool)
	r.mu.Lock()
	defer r.mu.Unlock()
	return once(r.waitOf, pool, func() *Histogram { return &Histogram{r.queueWait.WithLabelValues(pool)} })
}

// StateChanges returns the counters of a backend's changes of state,
// lb_backend_state_changes_total{pool,backend,state}, in the order of states.
func (r *Registry) StateChanges(pool, backend string, states []string) []*Counter {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.states = states
	return each(r.changes, states, valid(pool), valid(backend))
}

// Probes returns the counters of a backend's active checks,
// lb_probes_total{pool,backend,result}, in the order of results.
func (r *Registry) Probes(pool, backend string, results []string) []*Counter {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.results = results
	return each(r.probes, results, valid(pool), valid(backend))
}

// Delivery counts what came of a fan-out's deliveries to one backend.
type Delivery struct {
	attempts                  []*Counter
	success, failed           *Counter
	totalSuccess, totalFailed *Counter
}

type deliveryKey struct{ pool, backend, domain string }

// Delivery returns the instrument of the deliveries to a backend:
// lb_fanout_attempts_total{pool,backend,outcome}, one series for each of
// outcomes, and target_domain_success_counter_total{domain} and
// target_domain_failed_counter_total{domain} with their totals. Domain is the
// backend's host:port; backends that share one share its counters. Outcomes
// must be the same at each call.
func (r *Registry) Delivery(pool, backend, domain string, outcomes []string) *Delivery {
	pool, backend, domain = valid(pool), valid(backend), valid(domain)
	r.mu.Lock()
	defer r.mu.Unlock()
	return once(r.deliveries, deliveryKey{pool, backend, domain}, func() *Delivery {
		return &Delivery{
			attempts:     each(r.attempts, outcomes, pool, backend),
			success:      &Counter{r.domainSuccess.WithLabelValues(domain)},
			failed:       &Counter{r.domainFailed.WithLabelValues(domain)},
			totalSuccess: r.totalSuccess,
			totalFailed:  r.totalFailed,
		}
	})
}

// Attempt counts one attempt; outcome is an index into the outcomes that the
// instrument was made with. It does not allocate.
func (m *Delivery) Attempt(outcome int) { m.attempts[outcome].Inc() }

// Succeeded counts one delivery that succeeded, for the domain and in total.
func (m *Delivery) Succeeded() {
	m.success.Inc()
	m.totalSuccess.Inc()
}

// Failed counts one attempt that failed, for the domain and in total.
func (m *Delivery) Failed() {
	m.failed.Inc()
	m.totalFailed.Inc()
}

// FanoutDuration returns the histogram lb_fanout_duration_seconds{route}.
func (r *Registry) FanoutDuration(route string) *Histogram {
	route = valid(route)
	r.mu.Lock()
	defer r.mu.Unlock()
	return once(r.fanouts, route, func() *Histogram {
		return &Histogram{r.fanoutDuration.WithLabelValues(route)}
	})
}

// Settled counts the deliveries of a pool that need no more attempts.
type Settled struct{ done, cancelled, skipped *Counter }

// FanoutSettled returns the instrument lb_fanout_settled_total{pool,state}.
func (r *Registry) FanoutSettled(pool string) *Settled {
	pool = valid(pool)
	r.mu.Lock()
	defer r.mu.Unlock()
	return once(r.settledOf, pool, func() *Settled {
		cs := each(r.settled, []string{"done", "cancelled", "skipped"}, pool)
		return &Settled{cs[0], cs[1], cs[2]}
	})
}

// Done counts one delivery that succeeded.
func (s *Settled) Done() { s.done.Inc() }

// Cancelled counts one delivery whose backend was taken away, or that an
// operator cancelled.
func (s *Settled) Cancelled() { s.cancelled.Inc() }

// Skipped counts one delivery that an operator skipped.
func (s *Settled) Skipped() { s.skipped.Inc() }

// FanoutDisagreements returns the counter lb_fanout_disagreements_total{pool}:
// one for each write whose backends ended with different final statuses.
func (r *Registry) FanoutDisagreements(pool string) *Counter {
	pool = valid(pool)
	r.mu.Lock()
	defer r.mu.Unlock()
	return once(r.disagreeOf, pool, func() *Counter { return &Counter{r.disagreements.WithLabelValues(pool)} })
}
