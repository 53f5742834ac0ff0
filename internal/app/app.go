// Package app turns a configuration into a running daemon: it compiles it,
// binds the sockets, accepts, and stops in order. It alone reads config
// structs; what it wires together does not know them.
package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"lb/internal/backend"
	"lb/internal/exchange"
	"lb/internal/fanout"
	"lb/internal/front"
	"lb/internal/metrics"
	"lb/internal/pool"
	"lb/internal/proxy"
	"lb/internal/socket"
	"lb/internal/store"
)

// Options are what the daemon needs beside its configuration.
type Options struct {
	// Loaded is what the daemon begins with, and Load reads it again; the error
	// may be config.Problems.
	Loaded
	Load func() (Loaded, error)
	// Parse reads a text as Load would if it stood in the file; name is what
	// problems call it.
	Parse func(name string, document []byte) (Loaded, error)
	// AdminToken is the bearer token; empty only where config allows it.
	AdminToken string
	// RegistrationToken is good for registering and unregistering alone; empty:
	// there is none.
	RegistrationToken string
	Logs              *Logs
	// Sockets are those that the process has inherited; nil: none.
	Sockets *socket.Set
	// Hurry, when it is closed, ends the waits of a stop: nil never does.
	Hurry <-chan struct{}
	// Version and Commit say which lb this is.
	Version, Commit string
}

// App is one daemon.
type App struct {
	applied atomic.Pointer[applied] // what the daemon goes by now
	options Options
	log     *zap.Logger
	metrics *metrics.Registry

	registry  *registry
	blueprint *blueprint
	decider   *exchange.Decider
	fanout    *fanout.Engine
	front     *front.Front
	store     *store.Store
	journal   *store.Journal // nil when nothing is kept
	damaged   error          // why the storage cannot be used, if it was there

	operating  chan struct{}                    // one change at a time: full during one
	words      map[identity]store.OperatorState // of operators, for backends that are there or not
	registered *registrations                   // nil where registration is not enabled

	departures departures
	refused    atomic.Pointer[refusal] // nil since a reload that was not
	serving    atomic.Int64            // the version that serves, as the store numbers them; 0: it is not there

	sockets   *socket.Set
	serversMu sync.Mutex
	servers   []*server      // in the order of the configuration; see allServers
	retiring  sync.WaitGroup // servers that are no more among them
	failed    chan error     // why serving has ended that was not to end
	ready     atomic.Bool
	started   chan struct{} // closed as soon as it was ready for the first time
	ending    chan struct{} // closed when connections are to end
}

// ErrStorage marks a store that could not be opened or read.
var ErrStorage = errors.New("cannot open the storage")

// New opens the storage and compiles the configuration. It binds and starts
// nothing. Whoever has no use for the App then calls Close.
func New(ctx context.Context, o Options) (_ *App, err error) {
	a := &App{
		options: o, log: o.Logs.Main, metrics: metrics.New(o.Version, o.Commit), failed: make(chan error, 1), started: make(chan struct{}), ending: make(chan struct{}),
		operating: make(chan struct{}, 1), words: make(map[identity]store.OperatorState),
		departures: departures{nudged: make(chan struct{}, 1)},
	}
	if a.sockets = o.Sockets; a.sockets == nil {
		a.sockets = new(socket.Set)
	}
	defer func() {
		if err != nil {
			a.Close()
		}
	}()
	deliveries, err := a.openStorage(ctx, o.Config.Storage)
	if err != nil {
		return nil, err
	}
	const generation = 1
	a.applied.Store(&applied{Loaded: o.Loaded, generation: generation, at: time.Now()})
	if a.registry, err = newRegistry(o.Config, a.metrics, a.stateChanged); err != nil {
		return nil, err
	}
	if a.blueprint, err = compile(o.Config, a.registry.pool, a.registry, a.metrics); err != nil {
		return nil, err
	}
	if err := a.openRegistrations(ctx); err != nil {
		return nil, err
	}
	if err := a.publish(generation); err != nil {
		return nil, err
	}
	a.showFanouts()
	deliveries.Plans, deliveries.Events = a.keptPlan, &fanoutEvents{a}
	deliveries.Sender = fanout.NewHTTPSender(&a.registry.transports)
	a.fanout = fanout.New(deliveries)
	a.front = &front.Front{
		Decider: a.decider, Fanout: a.fanout, Metrics: a.metrics.Handler(),
		Proxy: proxy.New(a.decider, &a.registry.transports, netLog(a.log)),
	}
	a.metrics.SetBackends(backend.States, a.backendSamples)
	a.metrics.SetPools(a.poolSamples)
	a.metrics.SetFanout(a.fanoutSamples)
	a.metrics.SetStorage(a.storageUp)
	if err = a.restore(ctx); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStorage, err)
	}
	a.keepVersion(ctx, o.Loaded, generation, "lb, at its start")
	return a, nil
}

// Close gives up what New took, if Run does not: Run does it by itself.
func (a *App) Close() {
	if a.registry != nil {
		a.registry.close()
	}
	if a.store == nil {
		return
	}
	if err := a.store.Close(); err != nil {
		a.log.Error("the storage did not close well", zap.Error(err))
	}
}

// Run serves until ctx ends, then stops in order. Bind comes first. Operators
// are served at once, clients as soon as the backends have been probed. It
// returns an error if serving failed before it was asked to stop.
func (a *App) Run(ctx context.Context) error {
	defer a.Close()
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	var background sync.WaitGroup
	var fanoutErr error
	background.Go(func() { fanoutErr = a.fanout.Run(work) })
	a.startProbes(work, &background)
	background.Go(func() { a.seeAfterDepartures(work) })
	background.Go(func() { a.tick(work) })
	for _, s := range a.allServers() {
		if s.data == nil {
			a.accept(s)
		}
	}
	a.firstRound(ctx)
	for _, s := range a.allServers() {
		if s.data != nil {
			a.accept(s)
		}
	}
	a.ready.Store(true)
	close(a.started)
	a.notify(socket.Ready)
	var err error
	select {
	case <-ctx.Done():
	case err = <-a.failed:
	}
	a.stop(stopWork)
	// From here on nobody changes anything: what a change would start, nobody would end.
	if err := a.takeTurn(context.WithoutCancel(ctx)); err != nil {
		a.log.Warn("stopping in the middle of a change", zap.Error(err))
	}
	background.Wait()
	return errors.Join(err, fanoutErr)
}

// notify tells the service manager how the daemon is doing, if there is one.
func (a *App) notify(states ...string) {
	if err := socket.Notify(states...); err != nil {
		a.log.Warn("the service manager could not be told", zap.Error(err))
	}
}

// tick has the pools keep what their pickers read up to date, each second,
// until ctx ends.
func (a *App) tick(ctx context.Context) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			for _, s := range a.registry.all() {
				s.Tick(now)
			}
		}
	}
}

const (
	// How long fan-out attempts under way may take at a stop. What has no
	// outcome by then is cut.
	attemptsAtStop = 3 * time.Second
	// How long they may take whose connection was accepted at the very end.
	lastAccepted = time.Second
	// How long requests may take to end once their connections are cut: they
	// still have their lines to write.
	cutAtStop = time.Second
)

// stop ends the daemon: no longer ready, then draining, then closed, then what
// is still pending is told.
func (a *App) stop(stopWork context.CancelFunc) {
	c := a.conf().Shutdown
	a.ready.Store(false)
	a.notify(socket.Stopping)
	a.log.Info("stopping", zap.Duration("readiness", c.Readiness.D()), zap.Duration("drain", c.Drain.D()))
	a.waitFor(c.Readiness.D(), func() bool { return false })

	a.front.Drain()
	close(a.ending)
	began := time.Now()
	open := a.drain(c.Drain.D())
	a.stopAccepting()
	a.log.Info("connections have had their time", zap.Int64("left", open), zap.Duration("took", time.Since(began)))
	a.endTunnels(a.allServers()...)
	if open := a.open(); open > 0 {
		a.log.Warn("drain time is over, cutting what is left", zap.Int64("connections", open))
	}
	for _, s := range a.allServers() {
		if s.data != nil {
			_ = s.http.Close()
			s.data.closeConns() // hijacked ones, which net/http does not know any more
		}
	}
	a.retiring.Wait() // listeners that a reload took away, which drain no longer than this
	a.waitFor(cutAtStop, func() bool { return a.front.Busy() == 0 })
	attempts, cancel := context.WithTimeout(context.Background(), attemptsAtStop)
	defer cancel()
	go func() {
		select {
		case <-a.options.Hurry:
			cancel()
		case <-attempts.Done():
		}
	}()
	left := a.fanout.Stop(attempts)
	a.log.Info("delivery attempts have ended", zap.Int64("requests_left", a.front.Busy()))
	stopWork()
	if a.journal == nil {
		for _, p := range left {
			a.log.Warn("delivery still pending, lost with this process", pendingFields(p)...)
		}
	}
	for _, s := range a.allServers() {
		_ = s.http.Close()
	}
	pending := 0
	for _, c := range a.fanout.Counts() {
		pending += c.Pending
	}
	a.log.Info("stopped", zap.Int("pending_deliveries", pending), zap.Bool("kept", a.journal != nil))
}

// stopAccepting ends accepting, and gives who was just being accepted the time
// for an answer.
func (a *App) stopAccepting() {
	had := a.open()
	for _, s := range a.allServers() {
		if s.data == nil {
			continue
		}
		s.retired.Store(true)
		_ = s.Close()
		<-s.ended // what it was just accepting is counted from here on
	}
	if a.open() > had {
		a.waitFor(lastAccepted, func() bool { return a.open() <= had })
	}
}

// drain waits until no connection is open or limit has passed, and returns how
// many are left. New ones are still served: whoever connects now has not heard
// yet, and its answer says Connection: close.
func (a *App) drain(limit time.Duration) (open int64) {
	a.waitFor(limit, func() bool { return a.open() == 0 })
	return a.open()
}

// open returns how many connections of clients are open.
func (a *App) open() (open int64) {
	for _, s := range a.allServers() {
		if s.data != nil {
			open += s.data.open.Load()
		}
	}
	return open
}

// waitFor waits until done, until limit has passed, or until it has to hurry.
func (a *App) waitFor(limit time.Duration, done func() bool) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	over := time.After(limit)
	for !done() {
		select {
		case <-tick.C:
		case <-over:
			return
		case <-a.options.Hurry:
			return
		}
	}
}

// stateChanged logs and counts a backend's change of state, once. What is found
// out about a backend in maintenance shows when that ends.
func (a *App) stateChanged(c pool.Change) {
	if c.From.Admin == backend.Maintenance && c.To.Admin == backend.Maintenance && c.From.Sync == c.To.Sync {
		return
	}
	word := c.To.Word()
	if f := a.registry.fixture(c.Backend); f != nil && word != c.From.Word() {
		f.changes[slices.Index(backend.States, word)].Inc()
	}
	fields := []zap.Field{
		zap.String("pool", c.Backend.Pool), zap.String("backend", c.Backend.ID),
		zap.String("from", c.From.Label()), zap.String("to", c.To.Label()),
		zap.Bool("eligible", c.To.Eligible()), zap.String("reason", c.Reason),
	}
	if c.For > 0 {
		fields = append(fields, zap.Duration("for", c.For))
	}
	message := "backend changed state"
	switch {
	case c.From.Sync == c.To.Sync:
	case c.To.Sync == backend.InSync:
		message = "backend has caught up with its deliveries"
	default:
		message = "backend is behind on its deliveries"
	}
	a.log.Info(message, fields...)
}
