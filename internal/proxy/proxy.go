// Package proxy carries a request to one backend: the one
// httputil.ReverseProxy, with exchange deciding in its RoundTrip, so that a
// retry happens before a byte of a response has gone to the client.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"lb/internal/exchange"
	"lb/internal/field"
	"lb/internal/outcome"
	"lb/internal/problem"
	"lb/internal/transport"
)

// Proxy is the carrier for one backend. Safe for concurrent use.
type Proxy struct {
	decider    *exchange.Decider
	transports *transport.Set
	reverse    *httputil.ReverseProxy
}

// New returns a carrier that asks d and sends over transports. What httputil
// has to say goes to logger; it is about single connections, and debug at most.
func New(d *exchange.Decider, transports *transport.Set, logger *log.Logger) *Proxy {
	p := &Proxy{decider: d, transports: transports}
	p.reverse = &httputil.ReverseProxy{
		Rewrite:      rewrite,
		Transport:    p,
		BufferPool:   new(buffers),
		ErrorHandler: answerError,
		ErrorLog:     logger,
	}
	return p
}

// flight is one request on its way through httputil: the context that its
// attempts run under, and what belongs to it. It is not pooled, because the
// transport's goroutines may hold the context for longer than the request.
type flight struct {
	context.Context
	cancel  context.CancelFunc
	x       *exchange.Exchange
	client  context.Context // ends when the client leaves
	upload  io.Reader       // the request's body as the client sends it
	body    *body           // nil for a request without one
	alarm   *alarm
	expired atomic.Bool
	to      *transport.Transport // of the current or last attempt, nil before

	interims atomic.Int32 // 1xx responses so far
}

type flightKey struct{}

// Value makes the flight findable from the contexts derived from it.
func (f *flight) Value(key any) any {
	if key == (flightKey{}) {
		return f
	}
	return f.Context.Value(key)
}

// expire ends the flight when the route's timeout is over. net/http lets no
// request go before it has done with its body: if the client has paused, the
// wait for it ends too.
func (f *flight) expire() {
	f.expired.Store(true)
	if upload, ok := f.upload.(interface{ Interrupt() }); ok {
		upload.Interrupt()
	}
	f.cancel()
}

// Serve carries r, for which Begin said Proxy, and answers on w. It returns
// when the last byte has been sent or the tunnel has closed; like httputil it
// panics with http.ErrAbortHandler when a response breaks off after its head.
func (p *Proxy) Serve(w http.ResponseWriter, r *http.Request, x *exchange.Exchange) {
	f := &flight{x: x, client: r.Context(), upload: r.Body}
	f.Context, f.cancel = context.WithCancel(r.Context())
	defer f.cancel()
	f.alarm = newAlarm(f, x.Route.Timeout)
	defer f.alarm.giveBack()
	if !websocketHandshake(r) {
		r.Header.Del("Upgrade") // httputil would tunnel any token that a backend mirrors
	}
	whole := false
	defer func() {
		if f.to != nil && f.to.IsCut() && (!whole || x.Status == http.StatusSwitchingProtocols) {
			x.Outcome.Class = outcome.Withdrawn // it was lb that broke the response off
		}
	}()
	p.reverse.ServeHTTP(w, r.WithContext(f))
	whole = true
}

// websocketHandshake reports whether r may become a tunnel: RFC 6455 §4.1. With
// a body it may not: bytes of a body must not be taken for frames.
func websocketHandshake(r *http.Request) bool {
	return strings.EqualFold(r.Header.Get("Upgrade"), "websocket") &&
		r.Method == http.MethodGet && r.ProtoAtLeast(1, 1) && r.ContentLength == 0
}

// rewrite turns httputil's copy of the request into what the backend gets. By
// now hop-by-hop fields and those named in Connection are gone.
func rewrite(pr *httputil.ProxyRequest) {
	f := pr.In.Context().Value(flightKey{}).(*flight)
	target, out := &f.x.Target, pr.Out

	u := out.URL
	u.Scheme, u.Host = "http", "backend" // the transport knows the address; Host is the client's
	u.RawQuery, u.ForceQuery = target.RawQuery, target.HasQuery
	if out.Host == "" {
		out.Host = "/" // net/http would name u.Host; for what is no host it sends an empty one
	}
	// Verbatim. (Two slashes would be read as an authority; such a path holds
	// nothing that net/url would change.)
	if path := f.x.Upstream; !strings.HasPrefix(path, "//") {
		u.Opaque = path
	} else if plain, err := url.PathUnescape(path); err == nil { // always: it was parsed before
		u.Path, u.RawPath = plain, path
	}

	forward := &f.x.Forward
	for name := range out.Header {
		if exchange.Withheld(name, forward.Trusted) {
			delete(out.Header, name)
		}
	}
	values := make([]string, 0, 4) // one allocation for all
	set := func(name, value string) {
		if value == "" {
			delete(out.Header, name)
			return
		}
		values = append(values, value)
		out.Header[name] = values[len(values)-1 : len(values) : len(values)]
	}
	set("X-Forwarded-For", forward.For)
	set("X-Forwarded-Host", forward.Host)
	set("X-Forwarded-Proto", forward.Proto)
	set("X-Request-Id", forward.RequestID)
	if prefix := f.x.Prefix; prefix != "" {
		out.Header["X-Forwarded-Prefix"] = []string{prefix}
	}
	said, ok := pr.In.Header["Forwarded"]
	if ok && forward.Trusted && !field.Named(pr.In.Header["Connection"], "Forwarded") {
		out.Header["Forwarded"] = said // httputil takes it away, whoever says it
	}
	delete(out.Header, "Te") // hop-by-hop, though httputil puts it back
	out.Trailer = nil        // trailers could pose as fields that were checked before
}

// RoundTrip tries backends, as exchange says, until there is a response to pass
// on or nothing is left to try.
func (p *Proxy) RoundTrip(req *http.Request) (*http.Response, error) {
	f := req.Context().Value(flightKey{}).(*flight)
	x := f.x
	f.boundInterims(httptrace.ContextClientTrace(req.Context()))
	if req.Body != nil {
		f.body = newBody(req.Body, req.ContentLength, x.MayRetry())
	}
	attempt := req
	var res *http.Response
	var o outcome.Outcome
	for {
		x.Replayable = f.body.replayable()
		step := p.decider.Next(x, o)
		if step == exchange.Wait {
			if err := f.body.gather(); err != nil {
				o = f.unread(err)
				continue
			}
			step = p.decider.Wait(x, f.client.Done())
		}
		switch step {
		case exchange.Pass:
			return res, nil
		case exchange.Fail:
			return nil, x.Failure
		}
		if res != nil {
			// Not read to its end: the body may be slow, and the time is the
			// next attempt's. The connection is the price.
			_ = res.Body.Close()
			f.alarm.set(time.Until(x.Start.Add(x.Route.Timeout)))
		}
		if x.Attempts > 1 {
			attempt = req.Clone(req.Context()) // goroutines of the last attempt may still read its fields
		}
		if f.body != nil {
			attempt.Body = f.body.attempt()
		}
		var err error
		f.to = p.transports.For(x.Backend)
		if res, err = f.to.RoundTrip(attempt); err == nil {
			err = checkAnswer(attempt, res)
		}
		o = f.judge(res, err)
		if err != nil {
			res = nil
		}
	}
}

// maxInterims is how many 1xx responses a request may bring: enough for hints,
// and for a sign of life every second.
const maxInterims = 100

// boundInterims counts the 1xx responses that httputil passes on, through the
// trace that it made for this request: because of its hook net/http leaves
// their number to whoever looks at them. Fields of the backend's connection go.
func (f *flight) boundInterims(trace *httptrace.ClientTrace) {
	pass := trace.Got1xxResponse
	trace.Got1xxResponse = func(status int, h textproto.MIMEHeader) error {
		if f.interims.Add(1) > maxInterims {
			return fmt.Errorf("%w: more than %d interim responses", outcome.ErrInvalidAnswer, maxInterims)
		}
		dropHopByHop(http.Header(h))
		return pass(status, h)
	}
}

// judge says how an attempt ended. What the client did comes before the error:
// when it leaves or its body breaks off, that may look like the backend's. What
// lb itself did comes first: expire makes it look as if the client had gone.
func (f *flight) judge(res *http.Response, err error) outcome.Outcome {
	switch {
	case err == nil && f.alarm.stop(): // from the head on, only idle timeouts count
		return outcome.FromStatus(res.StatusCode)
	case err == nil:
		_ = res.Body.Close()
		return outcome.Outcome{Class: outcome.Timeout, Err: outcome.ErrTimeout}
	case f.expired.Load():
		// expire ends a read from the client. That none was under way means that
		// the backend had the whole body, or did not take more of it.
		return outcome.Outcome{Class: outcome.Timeout, Err: err, Uploading: f.body.settled() != nil}
	case f.client.Err() != nil:
		// net/http calls a request off whenever it fails to read its body, also
		// when the client has merely paused for too long.
		if cause := f.body.settled(); cause != nil {
			return outcome.Outcome{Class: bodyClass(cause), Err: cause}
		}
		return outcome.Outcome{Class: outcome.ClientGone, Err: err}
	case f.body.broken() != nil && errors.Is(err, f.body.broken()):
		return outcome.Outcome{Class: bodyClass(err), Err: err}
	}
	return outcome.FromError(err)
}

// unread says how a request ended whose body could not be read before it was to
// wait for a slot.
func (f *flight) unread(err error) outcome.Outcome {
	if f.expired.Load() {
		return outcome.Outcome{Class: outcome.Timeout, Err: outcome.ErrTimeout}
	}
	return outcome.Outcome{Class: bodyClass(err), Err: err}
}

// bodyClass tells a client that went away from one that sent nonsense or
// nothing for too long.
func bodyClass(err error) outcome.Class {
	var netErr net.Error
	if errors.As(err, &netErr) && !netErr.Timeout() || errors.Is(err, io.ErrUnexpectedEOF) {
		return outcome.ClientGone
	}
	return outcome.ClientFault
}

// checkAnswer refuses, and closes, what net/http lets through but a client must
// not see: a status that is none, a field name with a blank, which the next
// reader may take for the field without it, and a switch of protocols nobody
// asked for. Of a true switch it does what httputil forgets.
func checkAnswer(req *http.Request, res *http.Response) error {
	wrong := ""
	switch {
	case res.StatusCode < 100:
		wrong = fmt.Sprintf("status %03d", res.StatusCode)
	case res.StatusCode == http.StatusSwitchingProtocols &&
		(req.Header.Get("Upgrade") == "" || !strings.EqualFold(res.Header.Get("Upgrade"), "websocket")):
		wrong = "switched protocols unasked"
	default:
		for name := range res.Header {
			if strings.IndexByte(name, ' ') >= 0 {
				wrong = fmt.Sprintf("field name %q", name)
			}
		}
	}
	if wrong != "" {
		_ = res.Body.Close()
		return fmt.Errorf("%w: %s", outcome.ErrInvalidAnswer, wrong)
	}
	if res.StatusCode == http.StatusSwitchingProtocols {
		dropHopByHop(res.Header)
		res.Header.Set("Connection", "Upgrade")
		res.Header.Set("Upgrade", "websocket")
		delete(res.Header, "X-Request-Id") // lb's own is the one that counts
	}
	return nil
}

// dropHopByHop takes the fields of one connection away.
func dropHopByHop(h http.Header) {
	connection := h["Connection"]
	for name := range h {
		if field.HopByHop(name, connection) {
			delete(h, name)
		}
	}
}

// answerError answers a request that got no response to pass on.
func answerError(w http.ResponseWriter, r *http.Request, err error) {
	f := r.Context().Value(flightKey{}).(*flight)
	var failure *outcome.Error
	if !errors.As(err, &failure) { // httputil's own, before or after RoundTrip
		failure = &outcome.Error{Code: outcome.BackendInvalid, Detail: "the switch of protocols failed", Err: err}
	}
	f.x.Failure = failure
	if failure.Code == outcome.ClientClosed {
		panic(http.ErrAbortHandler) // there is nobody to answer
	}
	if failure.Code == outcome.BadRequest {
		w.Header().Set("Connection", "close") // the rest of the body is of no use
	}
	problem.Write(w, failure, f.x.Forward.RequestID)
}

// buffers lends httputil the buffers that bodies are copied through.
type buffers struct{ pool sync.Pool }

// 32 KiB is what io.Copy and httputil use; a fixed array behind a pointer keeps
// the pool from allocating.
type buffer [32 << 10]byte

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*buffer); ok {
		return p[:]
	}
	return new(buffer)[:]
}

func (b *buffers) Put(p []byte) { b.pool.Put((*buffer)(p)) }
