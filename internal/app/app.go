// Package app turns a configuration into a running daemon: it compiles it,
// binds the sockets, accepts, and stops in order. It alone reads config
// structs; what it wires together does not know them.
package app

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"lb/internal/admin"
	"lb/internal/backend"
	"lb/internal/config"
	"lb/internal/exchange"
	"lb/internal/fanout"
	"lb/internal/front"
	"lb/internal/metrics"
	"lb/internal/pool"
	"lb/internal/proxy"
	"lb/internal/store"
)

// Options are what the daemon needs beside its configuration.
type Options struct {
	// Config is valid and complete.
	Config *config.Config
	// Effective is Config as /config shows it.
	Effective []byte
	// AdminToken is the bearer token; empty only where config allows it.
	AdminToken string
	// RegistrationToken is good for registering and unregistering alone; empty:
	// there is none.
	RegistrationToken string
	Logs              *Logs
	// Hurry, when it is closed, ends the waits of a stop: nil never does.
	Hurry <-chan struct{}
	// Version and Commit say which lb this is.
	Version, Commit string
}

// App is one daemon.
type App struct {
	config  *config.Config
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

	servers []*server // in the order they were bound
	ready   atomic.Bool
}

// server is one bound socket and what serves it.
type server struct {
	name string
	data *listener // nil for admin and metrics
	net.Listener
	http *http.Server
}

// ErrStorage marks a store that could not be opened or read.
var ErrStorage = errors.New("cannot open the storage")

// New opens the storage and compiles the configuration. It binds and starts
// nothing. Whoever has no use for the App then calls Close.
func New(ctx context.Context, o Options) (_ *App, err error) {
	a := &App{
		config: o.Config, options: o, log: o.Logs.Main, metrics: metrics.New(o.Version, o.Commit),
		operating: make(chan struct{}, 1), words: make(map[identity]store.OperatorState),
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
	if a.registry, err = newRegistry(o.Config, a.metrics, a.stateChanged); err != nil {
		return nil, err
	}
	if a.blueprint, err = compile(o.Config, a.registry, a.metrics); err != nil {
		return nil, err
	}
	const generation = 1
	if err := a.openRegistrations(ctx); err != nil {
		return nil, err
	}
	if err := a.publish(generation); err != nil {
		return nil, err
	}
	deliveries.Plans, deliveries.Events = a.keptPlan, newFanoutEvents(a)
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

// ErrBind marks a socket that could not be bound.
var ErrBind = errors.New("cannot bind")

// Bind binds every socket of the configuration, or none.
func (a *App) Bind(ctx context.Context) (err error) {
	logger := netLog(a.log)
	defer func() {
		if err != nil {
			for _, s := range a.servers {
				_ = s.Close()
			}
			a.servers = nil
		}
	}()
	bind := func(name, address string) (net.Listener, error) {
		l, err := listen(ctx, address)
		if err != nil {
			return nil, fmt.Errorf("%w %s (%s): %w", ErrBind, name, address, err)
		}
		return l, nil
	}
	for _, c := range a.config.Listeners {
		compiled, err := listenerOf(c)
		if err != nil {
			return err
		}
		l, err := bind("listener "+c.Name, c.Address)
		if err != nil {
			return err
		}
		data := newListener(l, c.Timeouts.WriteIdle.D(), c.Limits.Connections)
		a.servers = append(a.servers, &server{
			name: c.Name, data: data, Listener: data,
			http: dataServer(c, a.front.Handler(compiled, c.Timeouts.BodyIdle.D()), logger),
		})
	}
	if address := a.config.Metrics.Address; address != "" {
		l, err := bind("metrics", address)
		if err != nil {
			return err
		}
		a.servers = append(a.servers, &server{name: "metrics", Listener: l, http: smallServer(a.metricsOnly(), logger)})
	}
	if address := a.config.Admin.Address; address != "" {
		l, err := bind("admin", address)
		if err != nil {
			return err
		}
		o := admin.Options{
			Token: a.options.AdminToken, Hosts: a.config.Admin.Hosts, Logger: a.log.Sugar().Infow,
		}
		if a.registered != nil {
			o.Registrar, o.RegistrationToken = a, a.options.RegistrationToken
		}
		h := admin.New(o, a, a, a.metrics.Handler())
		a.servers = append(a.servers, &server{name: "admin", Listener: l, http: smallServer(h, logger)})
	}
	a.guardOwnSockets()
	return nil
}

// headSlack is what net/http adds to MaxHeaderBytes before it refuses a head.
const headSlack = 4 << 10

func dataServer(c config.Listener, h http.Handler, l *log.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: c.Timeouts.Header.D(),
		IdleTimeout:       c.Timeouts.Idle.D(),
		MaxHeaderBytes:    max(1, int(c.Limits.HeaderBytes)-headSlack),
		ErrorLog:          l,
		// OPTIONS * too is answered, counted and logged like any other.
		DisableGeneralOptionsHandler: true,
	}
}

// smallServer serves operators: short requests, short answers.
func smallServer(h http.Handler, l *log.Logger) *http.Server {
	return &http.Server{
		Handler:     h,
		ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 75 * time.Second,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       l,
		// OPTIONS * too is for the handler to refuse: net/http would answer 200.
		DisableGeneralOptionsHandler: true,
	}
}

// metricsOnly serves /metrics and nothing else.
func (a *App) metricsOnly() http.Handler {
	all := a.metrics.Handler()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != "/metrics":
			http.NotFound(w, r)
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "this path takes GET, HEAD", http.StatusMethodNotAllowed)
		default:
			all.ServeHTTP(w, r)
		}
	})
}

// Addr returns the bound address of the listener with that name ("admin" and
// "metrics" for those two), "" if there is none.
func (a *App) Addr(name string) string {
	for _, s := range a.servers {
		if s.name == name {
			return s.Addr().String()
		}
	}
	return ""
}

// Run serves until ctx ends, then stops in order. Bind comes first. Operators
// are served at once, clients as soon as the backends have been probed. It
// returns an error if serving failed before it was asked to stop.
func (a *App) Run(ctx context.Context) error {
	defer a.Close()
	failed := make(chan error, len(a.servers))
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	var background sync.WaitGroup
	var fanoutErr error
	background.Go(func() { fanoutErr = a.fanout.Run(work) })
	a.startProbes(work, &background)
	background.Go(func() { a.runRegistrations(work) })
	background.Go(func() { a.tick(work) })
	a.serve(failed, func(s *server) bool { return s.data == nil })
	a.firstRound(ctx)
	a.serve(failed, func(s *server) bool { return s.data != nil })
	a.ready.Store(true)
	for _, s := range a.servers {
		a.log.Info("listening", zap.String("listener", s.name), zap.Stringer("address", s.Addr()))
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	a.stop(stopWork)
	// From here on nobody changes anything: what a change would start, nobody would end.
	if err := a.takeTurn(context.WithoutCancel(ctx)); err != nil {
		a.log.Warn("stopping in the middle of a change", zap.Error(err))
	}
	background.Wait()
	return errors.Join(err, fanoutErr)
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

// serve begins to accept on the sockets that are chosen.
func (a *App) serve(failed chan<- error, chosen func(*server) bool) {
	for _, s := range a.servers {
		if !chosen(s) {
			continue
		}
		go func() {
			if err := s.http.Serve(s.Listener); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("listener %s: %w", s.name, err)
			}
		}()
	}
}

const (
	// How long fan-out attempts under way may take at a stop. What has no
	// outcome by then is cut.
	attemptsAtStop = 3 * time.Second
	// How long requests may take to end once their connections are cut: they
	// still have their lines to write.
	cutAtStop = time.Second
)

// stop ends the daemon: no longer ready, then draining, then closed, then what
// is still pending is told.
func (a *App) stop(stopWork context.CancelFunc) {
	c := a.config.Shutdown
	a.ready.Store(false)
	a.log.Info("stopping", zap.Duration("readiness", c.Readiness.D()), zap.Duration("drain", c.Drain.D()))
	a.waitFor(c.Readiness.D(), func() bool { return false })

	a.front.Drain()
	if open := a.drain(c.Drain.D()); open > 0 {
		a.log.Warn("drain time is over, cutting what is left", zap.Int64("connections", open))
	}
	for _, s := range a.servers {
		if s.data != nil {
			_ = s.http.Close()
			s.data.closeConns() // hijacked ones, which net/http does not know any more
		}
	}
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
	stopWork()
	if a.journal == nil {
		for _, p := range left {
			a.log.Warn("delivery still pending, lost with this process", pendingFields(p)...)
		}
	}
	for _, s := range a.servers {
		_ = s.http.Close()
	}
	pending := 0
	for _, c := range a.fanout.Counts() {
		pending += c.Pending
	}
	a.log.Info("stopped", zap.Int("pending_deliveries", pending), zap.Bool("kept", a.journal != nil))
}

// drain waits until no connection is open or limit has passed, and returns how
// many are left. New ones are still served: whoever connects now has not heard
// yet, and its answer says Connection: close.
func (a *App) drain(limit time.Duration) (open int64) {
	a.waitFor(limit, func() bool {
		open = 0
		for _, s := range a.servers {
			if s.data != nil {
				open += s.data.open.Load()
			}
		}
		return open == 0
	})
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
