package app

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"sync"
	"time"

	"go.uber.org/zap"

	"lb/internal/backend"
	"lb/internal/config"
	"lb/internal/health"
	"lb/internal/metrics"
	"lb/internal/probe"
)

// probeResults are the values of lb_probes_total's result, by the numbers below.
var probeResults = []string{"ok", "failed", "starved"}

const (
	probeOK = iota
	probeFailed
	probeStarved // lb itself lacked something: says nothing about the backend
)

// newLoop returns what probes b, whose fixture is f, as c says.
// allow, unless it is nil, judges every address that they dial.
func newLoop(f *fixture, b *backend.Backend, c *config.Health, m *metrics.Registry, allow func(netip.AddrPort) error) (*probe.Loop, error) {
	check, err := newCheck(c, allow)
	if err != nil {
		return nil, err
	}
	counters := m.Probes(b.Pool, b.ID, probeResults)
	// Only a probe of the very port that traffic uses says something about
	// connections.
	dials := c.Type != config.CheckExec && c.Port == 0
	return probe.New(probe.Options{
		Address: b.Address, Check: check,
		Schedule: probe.Schedule{
			Interval: c.Interval.D(), Timeout: c.Timeout.D(),
			Rise: c.Rise, Fall: c.Fall, Initial: initialOf(c.Initial),
		},
		Paused: func() bool {
			s := b.State()
			return s.Admin == backend.Maintenance || s.Presence != backend.Present
		},
		Report: func(r probe.Result) {
			switch {
			case r.OK:
				counters[probeOK].Inc()
				if dials {
					b.DialSucceeded()
					f.pool.Accepts(b)
				}
			case errors.Is(r.Err, probe.ErrStarved):
				counters[probeStarved].Inc()
			default:
				counters[probeFailed].Inc()
			}
			// Always, not only when the verdict changes: an operator may have
			// sent the backend back to the start meanwhile.
			switch r.Verdict {
			case health.Up:
				f.pool.SetHealth(b, backend.HealthUp, "its checks pass")
			case health.Down:
				f.pool.SetHealth(b, backend.HealthDown, fmt.Sprintf("its checks fail: %v", f.loop.State().LastError))
			}
		},
	}), nil
}

func newCheck(c *config.Health, allow func(netip.AddrPort) error) (probe.Check, error) {
	switch c.Type {
	case config.CheckTCP:
		return probe.TCP{Port: c.Port, Allow: allow}, nil
	case config.CheckGRPC:
		return probe.GRPC{Service: c.Service, Port: c.Port, Allow: allow}, nil
	case config.CheckExec:
		return probe.Exec{Command: c.Command}, nil
	}
	o := probe.HTTPOptions{Method: c.Method, Path: c.Path, Port: c.Port, Allow: allow}
	for _, h := range c.Headers {
		o.Fields = append(o.Fields, probe.Field{Name: h.Name, Value: h.Value})
	}
	ranges, err := config.ParseStatuses(c.Statuses)
	if err != nil {
		return nil, fmt.Errorf("statuses: %w", err)
	}
	for _, r := range ranges {
		o.Statuses.Add(r.From, r.To)
	}
	if c.Body != "" {
		if o.Body, err = regexp.Compile(c.Body); err != nil {
			return nil, fmt.Errorf("body: %w", err)
		}
	}
	return probe.NewHTTP(o)
}

func initialOf(word string) health.Initial {
	switch word {
	case config.InitialUp:
		return health.InitialUp
	case config.InitialDown:
		return health.InitialDown
	}
	return health.InitialProbe
}

// initialWord is what a backend is before its first probe.
func initialWord(word string) backend.Health {
	switch word {
	case config.InitialUp:
		return backend.HealthUp
	case config.InitialDown:
		return backend.HealthDown
	}
	return backend.HealthUnknown
}

// startProbes starts probing; running is done when ctx has ended it.
func (a *App) startProbes(ctx context.Context, running *sync.WaitGroup) {
	r := a.registry
	r.mu.Lock()
	r.probing = &probing{ctx, running}
	r.mu.Unlock()
	for _, s := range r.all() {
		for _, b := range s.Members().All {
			r.probe(r.fixture(b))
		}
	}
}

// registeredAtStart is how long clients wait for the first probes of backends
// that registered themselves: they say themselves how long a probe may take.
const registeredAtStart = 3 * time.Second

// firstRound waits until every backend that counts on it has been probed once,
// or ctx ends. No probe takes longer than its timeout.
func (a *App) firstRound(ctx context.Context) {
	registered, cancel := context.WithTimeout(ctx, registeredAtStart)
	defer cancel()
	waited := 0
	for _, s := range a.registry.all() {
		for _, b := range s.Members().All {
			f := a.registry.fixture(b)
			if f.loop == nil || f.initial != backend.HealthUnknown || b.State().Presence != backend.Present {
				continue
			}
			until := ctx
			if b.Source == sourceRegistration {
				until = registered
			}
			select {
			case <-f.loop.First():
				waited++
			case <-until.Done():
			}
			if ctx.Err() != nil {
				return
			}
		}
	}
	if waited > 0 {
		a.log.Info("backends have been probed once", zap.Int("backends", waited))
	}
}
