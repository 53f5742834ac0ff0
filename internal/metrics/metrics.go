// Package metrics holds the typed instruments that lb counts with and the
// handler that shows them. Series that mirror live objects are pulled from
// those objects at each scrape, so nothing has to be kept in step. No other
// package needs to name a type of the Prometheus client.
package metrics

import (
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"
)

// durationBuckets are the upper bounds, in seconds, for a request. They start
// where a proxied request over loopback ends, stop at the default timeout of a
// route, and no step is wider than threefold, which bounds the error of a
// quantile read from them.
var durationBuckets = []float64{
	.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60,
}

// fanoutBuckets are the upper bounds, in seconds, for a fan-out: those of a
// request, then coarse ones up to the age at which a delivery is parked by
// default, since one backend that is down stretches a write to hours.
var fanoutBuckets = append(durationBuckets[:len(durationBuckets):len(durationBuckets)],
	300, 1800, 3600, 21600, 86400)

// Registry holds every instrument of one lb. All methods may be called at any
// time from any goroutine. Asking twice for the instrument of the same names
// gives the same one, so a reload loses no count; label values that are not
// valid UTF-8 are made so.
type Registry struct {
	reg *prometheus.Registry

	requests        *prometheus.CounterVec
	duration        *prometheus.HistogramVec
	backendRequests *prometheus.CounterVec
	retries         *prometheus.CounterVec
	refused         *prometheus.CounterVec
	queueWait       *prometheus.HistogramVec
	changes         *prometheus.CounterVec
	probes          *prometheus.CounterVec
	attempts        *prometheus.CounterVec
	fanoutDuration  *prometheus.HistogramVec
	settled         *prometheus.CounterVec
	disagreements   *prometheus.CounterVec
	generation      prometheus.Gauge
	reloads         *prometheus.CounterVec
	domainSuccess   *prometheus.CounterVec
	domainFailed    *prometheus.CounterVec
	totalSuccess    *Counter
	totalFailed     *Counter

	backendSource atomic.Pointer[backendSource]
	fanoutSource  atomic.Pointer[func() []FanoutSample]
	poolSource    atomic.Pointer[func() []PoolSample]
	storageUp     atomic.Pointer[func() bool]

	mu sync.Mutex // guards what follows
	// The values of the last label of a backend's series.
	outcomes, states, results []string

	routes     map[[2]string]*Route
	backends   map[[2]string]*Backend
	retryOf    map[string][]*Counter
	refusedOf  map[string][]*Counter
	waitOf     map[string]*Histogram
	deliveries map[deliveryKey]*Delivery
	fanouts    map[string]*Histogram
	settledOf  map[string]*Settled
	disagreeOf map[string]*Counter
}

// New returns a registry with the Go and process collectors and lb_build_info.
func New(version, commit string) *Registry {
	return newOn(prometheus.NewRegistry(), version, commit)
}

func newOn(reg *prometheus.Registry, version, commit string) *Registry {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		reg.MustRegister(v)
		return v
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
		reg.MustRegister(v)
		return v
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
		reg.MustRegister(v)
		return v
	}

	r := &Registry{
		reg: reg,
		requests: counter("lb_requests_total",
			"Requests answered, by route, pool and status code.", "route", "pool", "code"),
		duration: histogram("lb_request_duration_seconds",
			"Time from a request's head to its answer's last byte.", durationBuckets, "route"),
		backendRequests: counter("lb_backend_requests_total",
			"Requests sent to a backend, by how they ended.", "pool", "backend", "outcome"),
		retries: counter("lb_retries_total",
			"Tries after the first, by what came of them.", "pool", "outcome"),
		refused: counter("lb_refused_total",
			"Requests that got no backend, by the code of their answer.", "pool", "code"),
		queueWait: histogram("lb_queue_wait_seconds",
			"Time that requests waited in a pool's queue, those included that left it without a slot.", durationBuckets, "pool"),
		changes: counter("lb_backend_state_changes_total",
			"Changes of a backend's state, by the state that it came into.", "pool", "backend", "state"),
		probes: counter("lb_probes_total",
			"Active checks of a backend, by what they found.", "pool", "backend", "result"),
		attempts: counter("lb_fanout_attempts_total",
			"Delivery attempts, by how they ended.", "pool", "backend", "outcome"),
		fanoutDuration: histogram("lb_fanout_duration_seconds",
			"Time from the admission of a fan-out to its end.", fanoutBuckets, "route"),
		settled: counter("lb_fanout_settled_total",
			"Deliveries that need no more attempts, by final state.", "pool", "state"),
		disagreements: counter("lb_fanout_disagreements_total",
			"Writes whose backends ended with different final statuses.", "pool"),
		generation: gauge("lb_config_generation",
			"Number of the configuration in use.").WithLabelValues(),
		reloads: counter("lb_reloads_total",
			"Tries to have another configuration served: applied, unchanged, failed.", "result"),
		domainSuccess: counter("target_domain_success_counter_total",
			"Deliveries that succeeded, by the backend's host:port.", "domain"),
		domainFailed: counter("target_domain_failed_counter_total",
			"Delivery attempts that failed, by the backend's host:port.", "domain"),
		totalSuccess: &Counter{counter("Total_domains_success_counter_total",
			"Deliveries that succeeded, over all domains since start.").WithLabelValues()},
		totalFailed: &Counter{counter("Total_domains_failed_counter_total",
			"Delivery attempts that failed, over all domains since start.").WithLabelValues()},

		routes:     map[[2]string]*Route{},
		backends:   map[[2]string]*Backend{},
		retryOf:    map[string][]*Counter{},
		refusedOf:  map[string][]*Counter{},
		waitOf:     map[string]*Histogram{},
		deliveries: map[deliveryKey]*Delivery{},
		fanouts:    map[string]*Histogram{},
		settledOf:  map[string]*Settled{},
		disagreeOf: map[string]*Counter{},
	}
	each(r.reloads, []string{"applied", "unchanged", "failed"}) // shown before the first
	gauge("lb_build_info", "What is running; the value is always 1.", "version", "commit", "go_version").
		WithLabelValues(valid(version), valid(commit), runtime.Version()).Set(1)
	reg.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		backendCollector{r},
		poolCollector{r},
		fanoutCollector{r},
		storageCollector{r},
	)
	return r
}

// SetGeneration shows n as lb_config_generation.
func (r *Registry) SetGeneration(n uint64) { r.generation.Set(float64(n)) }

// Reloads returns the counter lb_reloads_total{result}; result is applied,
// unchanged or failed.
func (r *Registry) Reloads(result string) *Counter {
	return &Counter{r.reloads.WithLabelValues(result)}
}

// Forget drops the series of a backend that is gone for good. A domain's
// series goes with the last backend that delivered to it; the totals over all
// domains keep what it added. An instrument of the backend that is still held
// may be used on, but is no longer shown.
func (r *Registry) Forget(pool, backend string) {
	pool, backend = valid(pool), valid(backend)
	r.mu.Lock()
	defer r.mu.Unlock()

	delete(r.backends, [2]string{pool, backend})
	drop := func(v *prometheus.CounterVec, last []string) { // a partial match would look at the series of all
		for _, l := range last {
			v.DeleteLabelValues(pool, backend, valid(l))
		}
	}
	drop(r.backendRequests, r.outcomes)
	drop(r.changes, r.states)
	drop(r.probes, r.results)
	drop(r.attempts, r.outcomes)

	left := map[string]bool{}
	for k := range r.deliveries {
		if k.pool == pool && k.backend == backend {
			left[k.domain] = true
			delete(r.deliveries, k)
		}
	}
	for k := range r.deliveries {
		delete(left, k.domain)
	}
	for domain := range left {
		r.domainSuccess.DeleteLabelValues(domain)
		r.domainFailed.DeleteLabelValues(domain)
	}
}

// ForgetPool drops the series of a pool that is gone for good, and those of the
// route that served it alone. The series of its backends go by Forget.
func (r *Registry) ForgetPool(pool, route string) {
	pool, route = valid(pool), valid(route)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forgetRoute(route, pool)
	delete(r.retryOf, pool)
	delete(r.refusedOf, pool)
	delete(r.waitOf, pool)
	delete(r.settledOf, pool)
	delete(r.disagreeOf, pool)
	gone := prometheus.Labels{"pool": pool}
	r.requests.DeletePartialMatch(gone)
	r.retries.DeletePartialMatch(gone)
	r.refused.DeletePartialMatch(gone)
	r.queueWait.DeletePartialMatch(gone)
	r.settled.DeletePartialMatch(gone)
	r.disagreements.DeletePartialMatch(gone)
}

// ForgetRoute drops the series of a route that is gone for good, or that leads
// to another pool now. Those that bear its name alone stay as long as there is a
// route of that name.
func (r *Registry) ForgetRoute(route, pool string) {
	route, pool = valid(route), valid(pool)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forgetRoute(route, pool)
}

// forgetRoute is ForgetRoute with mu held.
func (r *Registry) forgetRoute(route, pool string) {
	key := [2]string{route, pool}
	if served := r.routes[key]; served != nil {
		served.gone.Store(true)
		delete(r.routes, key)
		for i := range served.codes {
			if served.codes[i].Load() != nil {
				r.requests.DeleteLabelValues(route, pool, codeAt(i))
			}
		}
	}
	for k := range r.routes {
		if k[0] == route {
			return
		}
	}
	delete(r.fanouts, route)
	r.duration.DeleteLabelValues(route)
	r.fanoutDuration.DeleteLabelValues(route)
}

// Counter is a number that only grows.
type Counter struct{ c prometheus.Counter }

// Inc adds one.
func (c *Counter) Inc() { c.c.Inc() }

// Add adds n, which must not be negative.
func (c *Counter) Add(n float64) { c.c.Add(n) }

// Value returns the sum so far. It allocates: it is for tests and displays.
func (c *Counter) Value() float64 {
	var m dto.Metric
	if err := c.c.Write(&m); err != nil {
		return 0
	}
	return m.GetCounter().GetValue()
}

// Histogram counts observations by size.
type Histogram struct{ h prometheus.Observer }

// Observe counts one duration in seconds.
func (h *Histogram) Observe(seconds float64) { h.h.Observe(seconds) }

// once returns m[key], made by build if it is not there. The caller holds the
// lock of m.
func once[K comparable, V any](m map[K]V, key K, build func() V) V {
	v, ok := m[key]
	if !ok {
		v = build()
		m[key] = v
	}
	return v
}

// each resolves one counter of v for every last label value.
func each(v *prometheus.CounterVec, last []string, first ...string) []*Counter {
	cs := make([]*Counter, len(last))
	for i, l := range last {
		cs[i] = &Counter{v.WithLabelValues(append(first[:len(first):len(first)], valid(l))...)}
	}
	return cs
}

// valid makes s a legal label value.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
