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
)

// Ready tells the admin listener whether requests are served.
func (a *App) Ready() error {
	if !a.ready.Load() {
		return errors.New("not serving: starting or stopping")
	}
	return nil
}

// Config returns the effective configuration as YAML.
func (a *App) Config() ([]byte, error) { return a.options.Effective, nil }

// Health reports every pool, and unavailable if a route marked required has no
// eligible backend.
func (a *App) Health() admin.Health {
	h := admin.Health{Status: admin.StatusOK}
	for _, p := range a.registry.pools {
		m := p.Members()
		ph := admin.PoolHealth{Name: p.Name, Eligible: len(m.Eligible)}
		for _, b := range m.All {
			state := b.State()
			ph.Backends = append(ph.Backends, admin.BackendHealth{ID: b.ID, State: state.Word(), Reasons: state.Reasons()})
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

// Instances reports every backend of every pool.
func (a *App) Instances() []admin.Instance {
	var all []admin.Instance
	for _, p := range a.registry.pools {
		for _, b := range p.Members().All {
			state := b.State()
			all = append(all, admin.Instance{
				ID: b.ID, Pool: p.Name, Address: b.Address, Source: b.Source, Weight: b.Weight,
				InFlight: b.InFlight(), State: state.Word(), Eligible: state.Eligible(), Reasons: state.Reasons(),
			})
		}
	}
	return all
}

func (a *App) backendSamples() []metrics.BackendSample {
	var all []metrics.BackendSample
	for _, p := range a.registry.pools {
		for _, b := range p.Members().All {
			all = append(all, metrics.BackendSample{
				Pool: p.Name, Backend: b.ID, State: b.State().Word(), InFlight: b.InFlight(),
			})
		}
	}
	return all
}

func (a *App) fanoutSamples() []metrics.FanoutSample {
	var all []metrics.FanoutSample
	for _, c := range a.fanout.Counts() {
		all = append(all, metrics.FanoutSample{Pool: c.Pool, Pending: int64(c.Pending), Parked: int64(c.Parked)})
	}
	return all
}

// fanoutEvents counts and logs what the deliveries do, and tells the pools
// what their dials found out.
type fanoutEvents struct {
	app       *App
	settled   map[string]*metrics.Settled   // by pool
	durations map[string]*metrics.Histogram // by route
}

func newFanoutEvents(a *App) *fanoutEvents {
	e := &fanoutEvents{
		app: a, settled: make(map[string]*metrics.Settled), durations: make(map[string]*metrics.Histogram),
	}
	for _, r := range a.decider.Snapshot().Routes {
		if r.Plan != nil {
			e.settled[r.Pool.Name] = a.metrics.FanoutSettled(r.Pool.Name)
			e.durations[r.Name] = a.metrics.FanoutDuration(r.Name)
		}
	}
	return e
}

// Attempt notes how one attempt of a delivery ended.
func (e *fanoutEvents) Attempt(p *fanout.Plan, b *backend.Backend, o outcome.Outcome, succeeded bool) {
	m, members := e.app.registry.deliveries[b], e.app.registry.pool(p.Pool.Name())
	m.Attempt(int(o.Class))
	switch {
	case succeeded:
		m.Succeeded()
		members.Reached(b)
	case o.Class == outcome.Starved: // lb's own want is nobody's failure
	case o.Class == outcome.Unsent:
		m.Failed()
		if b.Unreachable() { // else the attempt's own time ran out first, which says less
			members.DialFailed(b)
		}
	default:
		m.Failed()
		if o.Status != 0 {
			members.Reached(b)
		}
	}
}

// Settled notes the end of one delivery.
func (e *fanoutEvents) Settled(s fanout.Settlement) {
	settled := e.settled[s.Plan.Pool.Name()]
	switch s.State {
	case fanout.DeliveryDone:
		settled.Done()
		if s.Attempts > 1 {
			e.app.log.Info("delivery done after retries", settlementFields(s)...)
		}
	case fanout.DeliveryCancelled:
		settled.Cancelled()
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

// Decided notes how long a write took from admission to its end.
func (e *fanoutEvents) Decided(p *fanout.Plan, _ string, _ fanout.State, took time.Duration) {
	e.durations[p.Route].Observe(took.Seconds())
}

func pendingFields(p fanout.Pending) []zap.Field {
	return []zap.Field{
		zap.String("fanout", p.ID), zap.String("route", p.Route), zap.String("method", p.Method),
		zap.String("path", p.Path), zap.String("backend", p.Backend), zap.Int("attempts", p.Attempts),
		zap.Int("last_status", p.LastStatus), zap.Duration("age", p.Age),
	}
}
