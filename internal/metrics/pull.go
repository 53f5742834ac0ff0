package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	inFlightDesc = prometheus.NewDesc("lb_backend_in_flight",
		"Requests and attempts begun at a backend and not finished.", []string{"pool", "backend"}, nil)
	limitDesc = prometheus.NewDesc("lb_backend_limit",
		"Requests and attempts that may be in flight at a backend; 0: any number.", []string{"pool", "backend"}, nil)
	queueDesc = prometheus.NewDesc("lb_queue_depth",
		"Requests that wait for a slot of a pool.", []string{"pool"}, nil)
	registrationsDesc = prometheus.NewDesc("lb_registrations",
		"Backends of a pool that have registered and are heard of.", []string{"pool"}, nil)
	stateDesc = prometheus.NewDesc("lb_backend_state",
		"1 for the state a backend is in, 0 for the others.", []string{"pool", "backend", "state"}, nil)
	breakerDesc = prometheus.NewDesc("lb_breaker_state",
		"The state of a backend's breaker: 0 closed, 1 half-open, 2 open.", []string{"pool", "backend"}, nil)
	fanoutDesc = prometheus.NewDesc("lb_fanout_deliveries",
		"Deliveries not settled: pending ones will be tried again, parked ones wait for an operator.",
		[]string{"pool", "state"}, nil)
	oldestDesc = prometheus.NewDesc("lb_fanout_oldest_seconds",
		"Age of the oldest write that is pending, and of the oldest that is parked; 0 when there is none.",
		[]string{"pool", "state"}, nil)
	storageDesc = prometheus.NewDesc("lb_storage_up",
		"1 while the storage takes writes, else 0.", nil, nil)
)

// BackendSample is what a scrape shows of one backend.
type BackendSample struct {
	Pool, Backend string
	// State is one of the states given to SetBackends.
	State    string
	InFlight int64
	// Limit is how many may be in flight; 0: any number.
	Limit int
	// Breaker is 0 closed, 1 half-open, 2 open, and -1 without a breaker.
	Breaker int
}

type backendSource struct {
	states []string
	gather func() []BackendSample
}

// SetBackends says where each scrape finds the live backends, for
// lb_backend_in_flight{pool,backend}, lb_backend_limit{pool,backend},
// lb_backend_state{pool,backend,state} and lb_breaker_state{pool,backend}.
// States are all states there are. Gather is called from any goroutine and
// names each backend once; it replaces the one set before.
func (r *Registry) SetBackends(states []string, gather func() []BackendSample) {
	r.backendSource.Store(&backendSource{states: states, gather: gather})
}

// PoolSample is what a scrape shows of one pool.
type PoolSample struct {
	Pool string
	// Queued is how many requests wait for a slot.
	Queued int
	// Registered is how many backends have registered and are heard of; -1 for
	// a pool that none may register into.
	Registered int
}

// SetPools says where each scrape finds the live pools, for
// lb_queue_depth{pool} and lb_registrations{pool}. Gather is called from any
// goroutine and names each pool once; it replaces the one set before.
func (r *Registry) SetPools(gather func() []PoolSample) { r.poolSource.Store(&gather) }

// FanoutSample is what a scrape shows of the deliveries of one pool.
type FanoutSample struct {
	Pool            string
	Pending, Parked int64
	// How old the oldest write in that state is; 0 when there is none.
	OldestPending, OldestParked time.Duration
}

// SetFanout says where each scrape finds the numbers for
// lb_fanout_deliveries{pool,state} and lb_fanout_oldest_seconds{pool,state}.
// Gather is called from any goroutine and
// names each pool once; it replaces the one set before.
func (r *Registry) SetFanout(gather func() []FanoutSample) {
	r.fanoutSource.Store(&gather)
}

// SetStorage says where each scrape finds out, for lb_storage_up, whether the
// storage takes writes. Up is called from any goroutine; it replaces the one
// set before.
func (r *Registry) SetStorage(up func() bool) { r.storageUp.Store(&up) }

type backendCollector struct{ r *Registry }

func (backendCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- inFlightDesc
	ch <- limitDesc
	ch <- stateDesc
	ch <- breakerDesc
}

func (c backendCollector) Collect(ch chan<- prometheus.Metric) {
	src := c.r.backendSource.Load()
	if src == nil {
		return
	}
	for _, b := range src.gather() {
		pool, backend := valid(b.Pool), valid(b.Backend)
		ch <- gaugeOf(inFlightDesc, float64(b.InFlight), pool, backend)
		ch <- gaugeOf(limitDesc, float64(b.Limit), pool, backend)
		if b.Breaker >= 0 {
			ch <- gaugeOf(breakerDesc, float64(b.Breaker), pool, backend)
		}
		for _, s := range src.states {
			v := 0.0
			if s == b.State {
				v = 1
			}
			ch <- gaugeOf(stateDesc, v, pool, backend, s)
		}
	}
}

type poolCollector struct{ r *Registry }

func (poolCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- queueDesc
	ch <- registrationsDesc
}

func (c poolCollector) Collect(ch chan<- prometheus.Metric) {
	gather := c.r.poolSource.Load()
	if gather == nil {
		return
	}
	for _, p := range (*gather)() {
		pool := valid(p.Pool)
		ch <- gaugeOf(queueDesc, float64(p.Queued), pool)
		if p.Registered >= 0 {
			ch <- gaugeOf(registrationsDesc, float64(p.Registered), pool)
		}
	}
}

type fanoutCollector struct{ r *Registry }

func (fanoutCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- fanoutDesc
	ch <- oldestDesc
}

func (c fanoutCollector) Collect(ch chan<- prometheus.Metric) {
	gather := c.r.fanoutSource.Load()
	if gather == nil {
		return
	}
	for _, f := range (*gather)() {
		pool := valid(f.Pool)
		ch <- gaugeOf(fanoutDesc, float64(f.Pending), pool, "pending")
		ch <- gaugeOf(fanoutDesc, float64(f.Parked), pool, "parked")
		ch <- gaugeOf(oldestDesc, f.OldestPending.Seconds(), pool, "pending")
		ch <- gaugeOf(oldestDesc, f.OldestParked.Seconds(), pool, "parked")
	}
}

type storageCollector struct{ r *Registry }

func (storageCollector) Describe(ch chan<- *prometheus.Desc) { ch <- storageDesc }

func (c storageCollector) Collect(ch chan<- prometheus.Metric) {
	up := c.r.storageUp.Load()
	if up == nil {
		return
	}
	v := 0.0
	if (*up)() {
		v = 1
	}
	ch <- gaugeOf(storageDesc, v)
}

func gaugeOf(d *prometheus.Desc, v float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}
