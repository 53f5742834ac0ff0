package app

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"reflect"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"lb/internal/admin"
	"lb/internal/config"
	"lb/internal/front"
)

// server is one bound socket and what serves it.
type server struct {
	name string
	made any       // what it was made of: equal means that nothing needs to change
	data *listener // nil for admin and metrics
	net.Listener
	http    *http.Server
	front   *front.Handler // nil for admin and metrics
	retired atomic.Bool    // it accepts no more, on purpose
	open    atomic.Int64   // connections, where data does not count them
	ended   chan struct{}  // closed when it accepts no more
}

// ErrBind marks a socket that could not be bound.
var ErrBind = errors.New("cannot bind")

// Bind binds every socket of the configuration, or none.
func (a *App) Bind(ctx context.Context) error {
	all, _, err := a.bind(ctx, a.conf())
	if err != nil {
		return err
	}
	a.setServers(all)
	for _, name := range a.sockets.Unused() {
		a.log.Warn("an inherited socket is closed: no listener of the configuration is on its address", zap.String("socket", name))
	}
	return nil
}

// bind returns the servers of a configuration: those that are there and need no
// change, and fresh ones, which do not accept yet. It binds all sockets or none.
func (a *App) bind(ctx context.Context, c *config.Config) (all, fresh []*server, err error) {
	defer func() {
		if err != nil {
			for _, s := range fresh {
				_ = s.Close()
			}
		}
	}()
	there := a.allServers()
	add := func(name, label, address string, made any, finish func(*server) error) error {
		if address == "" {
			return nil
		}
		at := slices.IndexFunc(there, func(s *server) bool { return s.name == name && reflect.DeepEqual(s.made, made) })
		if at >= 0 {
			all = append(all, there[at])
			return nil
		}
		l, err := a.sockets.Listen(ctx, name, address)
		if err != nil {
			return fmt.Errorf("%w %s (%s): %w", ErrBind, label, address, err)
		}
		s := &server{name: name, made: made, Listener: l, ended: make(chan struct{})}
		fresh = append(fresh, s)
		if err := finish(s); err != nil {
			return err
		}
		all = append(all, s)
		return nil
	}
	logger := netLog(a.log)
	for _, l := range c.Listeners {
		if err := add(l.Name, "listener "+l.Name, l.Address, l, func(s *server) error { return a.serveData(s, l, logger) }); err != nil {
			return nil, fresh, err
		}
	}
	err = add("metrics", "metrics", c.Metrics.Address, c.Metrics, func(s *server) error {
		s.http = smallServer(a.metricsOnly(), logger)
		return nil
	})
	if err != nil {
		return nil, fresh, err
	}
	err = add("admin", "admin", c.Admin.Address, c.Admin, func(s *server) error {
		s.http = smallServer(a.adminHandler(c.Admin), logger)
		return nil
	})
	return all, fresh, err
}

// serveData makes s serve the data plane as c says.
func (a *App) serveData(s *server, c config.Listener, logger *log.Logger) error {
	compiled, err := listenerOf(c)
	if err != nil {
		return err
	}
	s.data = newListener(s.Listener, c.Timeouts.WriteIdle.D(), c.Limits.Connections)
	s.Listener = s.data
	s.front = a.front.Handler(compiled, c.Timeouts.BodyIdle.D())
	s.http = dataServer(c, s.front, logger)
	return nil
}

func (a *App) adminHandler(c config.Admin) http.Handler {
	o := admin.Options{
		Token: a.options.AdminToken, Hosts: c.Hosts, Logger: a.log.Sugar().Infow, Reloader: a,
	}
	if a.registered != nil {
		o.Registrar, o.RegistrationToken = a, a.options.RegistrationToken
	}
	return admin.New(o, a, a, a.metrics.Handler())
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

// allServers returns the servers as they are now, in the order of the
// configuration. The slice is not to be changed.
func (a *App) allServers() []*server {
	a.serversMu.Lock()
	defer a.serversMu.Unlock()
	return a.servers
}

func (a *App) setServers(all []*server) {
	a.serversMu.Lock()
	a.servers = all
	a.serversMu.Unlock()
	a.guardOwnSockets()
}

// Addr returns the bound address of the listener with that name ("admin" and
// "metrics" for those two), "" if there is none.
func (a *App) Addr(name string) string {
	for _, s := range a.allServers() {
		if s.name == name {
			return s.Addr().String()
		}
	}
	return ""
}

// count keeps s.open.
func (s *server) count(_ net.Conn, to http.ConnState) {
	switch to {
	case http.StateNew:
		s.open.Add(1)
	case http.StateClosed:
		s.open.Add(-1)
	}
}

// accept begins to accept on s.
func (a *App) accept(s *server) {
	if s.data == nil {
		s.http.ConnState = s.count
	}
	a.log.Info("listening", zap.String("listener", s.name), zap.Stringer("address", s.Addr()))
	go func() {
		defer close(s.ended)
		err := s.http.Serve(s.Listener)
		if errors.Is(err, http.ErrServerClosed) || s.retired.Load() {
			return
		}
		select {
		case a.failed <- fmt.Errorf("listener %s: %w", s.name, err):
		default: // one is enough to end everything
		}
	}()
}

// replaceServers goes on with those in all, of which some are fresh. Who is not
// among them any more accepts nothing new, and ends what it has.
func (a *App) replaceServers(all, fresh []*server) {
	was := a.allServers()
	for _, s := range fresh {
		a.accept(s)
	}
	a.setServers(all)
	for _, s := range was {
		if !slices.Contains(all, s) {
			replaced := slices.ContainsFunc(all, func(other *server) bool { return other.name == s.name })
			a.retiring.Go(func() { a.retireServer(s, replaced) })
		}
	}
}

// retireServer lets s end: its answers ask for the connection to be closed, and
// what is left when the time to drain is over is cut. Where a listener has merely
// changed, that time begins when lb stops: until then streams and tunnels last
// as long as they like, under the settings that they began with.
func (a *App) retireServer(s *server, replaced bool) {
	s.retired.Store(true)
	_ = s.Close()
	<-s.ended          // what it was just accepting is counted from here on
	if s.data == nil { // who asked for the reload may be waiting here for what came of it
		// Shutdown would cut who has just connected, even with the request read.
		s.http.SetKeepAlivesEnabled(false)
		a.waitFor(max(patience, a.conf().Shutdown.Drain.D()), func() bool { return s.open.Load() == 0 })
		_ = s.http.Close() // what does not end in time is an operator's read
		return
	}
	s.front.Drain() // idle ones stay until then: a client may just be sending on one
	done := func() bool { return s.data.open.Load() == 0 }
	if replaced {
		a.waitUntilEnding(done)
	}
	a.waitFor(a.conf().Shutdown.Drain.D(), done)
	a.endTunnels(s)
	if open := s.data.open.Load(); open > 0 {
		a.log.Warn("drain time is over, cutting what is left",
			zap.String("listener", s.name), zap.Int64("connections", open))
	}
	_ = s.http.Close()
	s.data.closeConns()
}

// waitUntilEnding waits until done, or until lb stops.
func (a *App) waitUntilEnding(done func() bool) {
	for pause := 20 * time.Millisecond; !done(); pause = min(2*pause, time.Second) { // it may take days
		select {
		case <-time.After(pause):
		case <-a.ending:
			return
		}
	}
}

// tunnelsAtStop is how long tunnels may take to end when they are asked to.
const tunnelsAtStop = time.Second

// endTunnels ends the tunnels that the time to drain has not: politely, with a
// close frame where that can be, and within tunnelsAtStop.
func (a *App) endTunnels(servers ...*server) {
	count := func() (n int) {
		for _, s := range servers {
			if s.front != nil {
				n += s.front.Tunnels()
			}
		}
		return n
	}
	n := count()
	if n == 0 {
		return
	}
	for _, s := range servers {
		if s.front != nil {
			s.front.EndTunnels(tunnelsAtStop)
		}
	}
	a.waitFor(tunnelsAtStop, func() bool { return count() == 0 })
	a.log.Info("tunnels were asked to end", zap.Int("tunnels", n), zap.Int("left", count()))
}
