// Package front is the data plane's http.Handler: it shows a request to
// exchange, hands it to the carrier that exchange names, and writes what lb
// answers itself.
package front

import (
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"lb/internal/exchange"
	"lb/internal/fanout"
	"lb/internal/outcome"
	"lb/internal/proxy"
)

// Front serves the listeners of the data plane.
type Front struct {
	Decider *exchange.Decider
	Proxy   *proxy.Proxy
	Fanout  *fanout.Engine
	// Metrics serves the routes that say `metrics: true`.
	Metrics http.Handler

	draining atomic.Bool
	busy     atomic.Int64
}

// Drain makes every answer from now on ask for its connection to be closed.
func (f *Front) Drain() { f.draining.Store(true) }

// Busy returns how many requests are being served. Cutting a connection does
// not end its request at once: that takes its handler.
func (f *Front) Busy() int64 { return f.busy.Load() }

// Handler returns the handler for one listener. bodyIdle is the longest pause
// that a client may make while it sends a body.
func (f *Front) Handler(l *exchange.Listener, bodyIdle time.Duration) *Handler {
	h := &Handler{front: f, bodyIdle: bodyIdle}
	h.turns.New = func() any {
		t := new(turn)
		t.x.Listener = l
		return t
	}
	return h
}

// Handler serves one listener. Safe for concurrent use.
type Handler struct {
	front    *Front
	bodyIdle time.Duration
	turns    sync.Pool
	draining atomic.Bool
	tunnels  tunnels
}

// Drain makes every answer to a client of this listener ask from now on for its
// connection to be closed.
func (h *Handler) Drain() { h.draining.Store(true) }

// drains reports whether the listener, or all of them, drain.
func (h *Handler) drains() bool { return h.draining.Load() || h.front.draining.Load() }

// EndTunnels asks both ends of every tunnel of this listener to end, and closes
// those that have not within that time; a second is plenty. It does not wait.
// What becomes a tunnel later ends the same way. A WebSocket client is told that
// the server goes away (1001).
func (h *Handler) EndTunnels(within time.Duration) { h.tunnels.end(within) }

// Tunnels returns how many there are.
func (h *Handler) Tunnels() int { return h.tunnels.count() }

// turn is what one request needs while it is served; it is used again.
type turn struct {
	x    exchange.Exchange
	view view
	w    writer
	body *body // nil for a request without one
	done bool  // served to the end: no carrier panicked to break the connection off
}

// ServeHTTP serves one request from its head to its last byte.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	t := h.turns.Get().(*turn)
	x := &t.x
	t.view.reset(r)
	t.w = writer{ResponseWriter: w, x: x, http10: !r.ProtoAtLeast(1, 1), handler: h}
	if r.ContentLength != 0 {
		t.body = &body{ReadCloser: r.Body, control: http.NewResponseController(w), idle: h.bodyIdle, awaited: r.Header["Expect"] != nil}
		t.w.body = t.body
		r = r.WithContext(r.Context()) // net/http judges the connection by the body in its own copy
		r.Body = t.body
	}
	h.front.busy.Add(1)
	defer h.finish(t, r)

	switch h.front.Decider.Begin(x, &t.view) {
	case exchange.Proxy:
		h.front.Proxy.Serve(&t.w, r, x)
	case exchange.Fanout:
		h.front.serveFanout(&t.w, r, x)
	case exchange.Respond:
		t.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		t.w.answer(x.Route.Status, []byte(x.Route.Body))
	case exchange.Metrics:
		h.front.Metrics.ServeHTTP(&t.w, r)
	case exchange.Status:
		h.front.serveStatus(&t.w, r, x)
	case exchange.Refuse:
		t.w.refuse(x.Failure)
	}
	t.done = true
}

// finish closes the request's record. It runs also when a carrier panics to
// break the connection off, and lets that panic go on.
func (h *Handler) finish(t *turn, r *http.Request) {
	x := &t.x
	if t.body != nil {
		x.BytesIn = t.body.read.Load()
		t.body.abandon(true)
	}
	if t.w.tunnel != nil { // its other direction may still be ending
		h.tunnels.remove(t.w.tunnel)
		x.BytesIn, x.BytesOut = t.w.tunnel.in.Load(), t.w.tunnel.out.Load()
	}
	switch {
	case t.w.broken != nil, (x.Status == 0 || !t.done) && r.Context().Err() != nil:
		x.Outcome.Class = outcome.ClientGone
		if x.Status == 0 {
			x.Status = outcome.StatusClientClosed
		}
	case !t.done && x.Outcome.Class != outcome.Withdrawn:
		x.Outcome.Class = outcome.Cut
	}
	h.front.Decider.Finish(x)
	t.w, t.body, t.done = writer{}, nil, false
	t.view.reset(nil)
	x.Reset()
	h.turns.Put(t)
	h.front.busy.Add(-1)
}

// serveStatus answers under the reserved prefix.
func (f *Front) serveStatus(w *writer, r *http.Request, x *exchange.Exchange) {
	id, ok := strings.CutPrefix(x.Target.Path, exchange.Reserved+"fanout/")
	if x.Method != http.MethodGet && x.Method != http.MethodHead {
		x.Allow = []string{http.MethodGet, http.MethodHead}
		w.refuse(&outcome.Error{Code: outcome.MethodNotAllowed, Detail: "this path takes GET, HEAD"})
		return
	}
	if ok {
		s, known, err := f.Fanout.Status(r.Context(), id)
		switch {
		case err != nil:
			w.refuse(&outcome.Error{Code: outcome.StorageUnavailable, Detail: "the status cannot be read for now", Err: err})
			return
		case known:
			w.Header().Set("Cache-Control", "no-store")
			w.json(http.StatusOK, s)
			return
		}
	}
	w.refuse(&outcome.Error{Code: outcome.NoRoute, Detail: "no fan-out has this id, or it was settled too long ago"})
}
