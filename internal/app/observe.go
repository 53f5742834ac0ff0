package app

import (
	"errors"
	"time"

	"go.uber.org/zap"

	"lb/internal/admin"
	"lb/internal/backend"
	"lb/internal/fanout"
	"lb/internal/metrics"
	"lb/internal/outcome"
	"lb/internal/pool"
)

// Ready tells the admin listener whether requests are served.
func (a *App) Ready() error {
	if !a.ready.Load() {
		return errors.New("not serving: starting or stopping")
	}
	return nil
}

// Config returns the effective configuration as YAML.
func (a *App) Config() ([]byte, error) { return a.applied.Load().Effective() }

// Health reports every pool, and unavailable if a route marked required has no
// eligible backend.
func (a *App) Health() admin.Health {
	now := a.applied.Load()
	h := admin.Health{
		Status: admin.StatusOK,
		Config: admin.ConfigHealth{Generation: a.decider.Snapshot().Generation, LoadedAt: shown(now.at)},
	}
	if r := a.refused.Load(); r != nil {
		h.Config.Error = &admin.ConfigError{At: shown(r.at), Detail: r.err.Detail, Errors: r.err.Fields}
	}
	for _, p := range a.registry.all() {
		m := p.Members()
		ph := admin.PoolHealth{Name: p.Name, Eligible: len(m.Eligible)}
		for _, b := range m.All {
			ph.Backends = append(ph.Backends, a.backendHealth(p.Pool, b))
		}
		h.Pools = append(h.Pools, ph)
	}
	for _, r := range a.decider.Snapshot().Routes {
		if r.Required && r.Pool != nil && len(r.Pool.Members().Eligible) == 0 {
			h.Status = admin.StatusUnavailable
		}
	}
	return h
}

func (a *App) backendHealth(p *pool.Pool, b *backend.Backend) admin.BackendHealth {
	now, status := time.Now(), p.Status(b)
	h := admin.BackendHealth{
		ID: b.ID, State: status.State.Word(), Reasons: status.Reasons, Breaker: status.Breaker,
		ErrorRate: b.Recent.Figures(now).ErrorRate(),
	}
	if quantiles, n := b.Heads.Quantiles(now, .5, .99); n > 0 {
		h.P50, h.P99 = milliseconds(quantiles[0]), milliseconds(quantiles[1])
	}
	if f := a.registry.fixture(b); f != nil && f.loop != nil {
		probes := f.loop.State()
		h.ConsecutiveOK, h.ConsecutiveFail = probes.ConsecutiveOK, probes.ConsecutiveFail
		h.LastError = probes.LastError
		if !probes.LastProbe.IsZero() {
			h.LastProbe = new(probes.LastProbe.UTC())
		}
	}
	return h
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Instances reports every backend of every pool.
func (a *App) Instances() []admin.Instance {
	var all []admin.Instance
	for _, p := range a.registry.all() {
		for _, b := range p.Members().All {
			all = append(all, a.instance(p.Pool, b))
		}
	}
	return all
}

func (a *App) instance(p *pool.Pool, b *backend.Backend) admin.Instance {
	status := p.Status(b)
	return admin.Instance{
		ID: b.ID, Pool: p.Name, Address: b.Address, Source: b.Source, Weight: b.Weight(), InFlight: b.InFlight(),
		Limit: b.Limit(), Queued: status.Queued, EWMA: milliseconds(time.Duration(b.Speed.Average())),
		State: status.State.Word(), Eligible: status.State.Eligible(), Reasons: status.Reasons, Labels: b.Labels(),
		ExpiresAt: a.registry.fixture(b).expires.Load(),
	}
}

func (a *App) poolSamples() []metrics.PoolSample {
	var all []metrics.PoolSample
	for _, s := range a.registry.all() {
		sample := metrics.PoolSample{Pool: s.Name, Queued: s.Depth(), Registered: -1}
		if s.made || s.config.Registration {
			sample.Registered = 0
			for _, b := range s.Members().Present() {
				if b.Source == sourceRegistration {
					sample.Registered++
				}
			}
		}
		all = append(all, sample)
	}
	return all
}

func (a *App) backendSamples() []metrics.BackendSample {
	var all []metrics.BackendSample
	for _, p := range a.registry.all() {
		for _, b := range p.Members().All {
			status := p.Status(b)
			sample := metrics.BackendSample{
				Pool: p.Name, Backend: b.ID, State: status.State.Word(), InFlight: b.InFlight(), Limit: b.Limit(), Breaker: -1,
			}
			if status.Breaker != "" {
				sample.Breaker = status.BreakerNumber
			}
			all = append(all, sample)
		}
	}
	return all
}

func (a *App) fanoutSamples() []metrics.FanoutSample {
	var all []metrics.FanoutSample
	for _, c := range a.fanout.Counts() {
		all = append(all, metrics.FanoutSample{Pool: c.Pool, Pending: int64(c.Pending), Parked: int64(c.Parked)})
	}
	return withAges(all, a.fanout.Ages())
}

// fanoutEvents counts and logs what the deliveries do, and tells the pools
// what their dials found out.
type fanoutEvents struct{ app *App }

// showFanouts shows what the routes will count before they do.
func (a *App) showFanouts() {
	for _, r := range a.blueprint.routes {
		if r.Plan != nil {
			a.metrics.FanoutSettled(r.Pool.Name)
			a.metrics.FanoutDisagreements(r.Pool.Name)
			a.metrics.FanoutDuration(r.Name)
		}
	}
}

// Attempt notes how one attempt of a delivery ended.
func (e *fanoutEvents) Attempt(_ *fanout.Plan, b *backend.Backend, o outcome.Outcome, succeeded bool) {
	f := e.app.registry.fixture(b)
	if f == nil || f.delivery.Load() == nil {
		return // it is forgotten, and this attempt was under way all the while
	}
	m := f.delivery.Load()
	m.Attempt(int(o.Class))
	switch {
	case succeeded:
		m.Succeeded()
	case o.Class != outcome.Starved: // lb's own want is nobody's failure
		m.Failed()
	}
}

// Settled notes the end of one delivery.
func (e *fanoutEvents) Settled(s fanout.Settlement) {
	settled := e.app.metrics.FanoutSettled(s.Plan.Pool.Name())
	switch s.State {
	case fanout.DeliveryDone:
		settled.Done()
		if s.Attempts > 1 {
			e.app.log.Info("delivery done after retries", settlementFields(s)...)
		}
	case fanout.DeliveryCancelled:
		settled.Cancelled()
		if s.Reason == fanout.ReasonRemoved {
			e.app.log.Warn("delivery cancelled: its backend is gone for good", settlementFields(s)...)
		}
	case fanout.DeliverySkipped:
		settled.Skipped()
	case fanout.DeliveryParked:
		e.app.log.Error("delivery parked: it will not be tried again",
			append(settlementFields(s), zap.String("reason", string(s.Reason)))...)
	}
}

func settlementFields(s fanout.Settlement) []zap.Field {
	return []zap.Field{
		zap.String("fanout", s.ID), zap.String("request_id", s.RequestID),
		zap.String("route", s.Plan.Route), zap.String("pool", s.Plan.Pool.Name()),
		zap.String("backend", s.Backend.ID), zap.Int("attempts", s.Attempts),
		zap.Int("last_status", s.LastStatus), zap.Duration("age", s.Age),
	}
}

// Lagging notes that a backend has fallen behind on its deliveries, or caught up.
func (e *fanoutEvents) Lagging(poolName string, b *backend.Backend, lagging bool, reason string) {
	s, word := e.app.registry.pool(poolName), backend.InSync
	switch {
	case s == nil:
		return // it is forgotten, though something was pending for it
	case lagging && s.config.Lagging.Exclude:
		word = backend.LaggingExcluded
	case lagging:
		word = backend.Lagging
	}
	s.SetSync(b, word, reason)
}

// Decided notes how long a write took from admission to its end.
func (e *fanoutEvents) Decided(p *fanout.Plan, _ string, _ fanout.State, took time.Duration) {
	e.app.metrics.FanoutDuration(p.Route).Observe(took.Seconds())
}

// Disagreed notes that the backends of a write gave it different ends.
func (e *fanoutEvents) Disagreed(p *fanout.Plan, id string, statuses []int) {
	e.app.metrics.FanoutDisagreements(p.Pool.Name()).Inc()
	e.app.log.Warn("backends disagree about a write",
		zap.String("fanout", id), zap.String("route", p.Route), zap.String("pool", p.Pool.Name()), zap.Ints("statuses", statuses))
}

func pendingFields(p fanout.Pending) []zap.Field {
	return []zap.Field{
		zap.String("fanout", p.ID), zap.String("route", p.Route), zap.String("method", p.Method),
		zap.String("path", p.Path), zap.String("backend", p.Backend), zap.Int("attempts", p.Attempts),
		zap.Int("last_status", p.LastStatus), zap.Duration("age", p.Age),
	}
}
