// Package transport holds the connections to the backends: one tuned
// net/http.Transport each, so that a backend's idle connections can be closed
// alone and its dials be told from everybody else's.
package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"lb/internal/backend"
	"lb/internal/outcome"
)

// Settings are a pool's transport settings.
type Settings struct {
	// Connect bounds name resolution and dialling.
	Connect time.Duration
	// ResponseHeader bounds the wait for a head once the request is written; 0
	// leaves that to the request's context.
	ResponseHeader time.Duration
	// Idle is how long an unused connection is kept.
	Idle time.Duration
	// MaxIdle is how many unused connections are kept.
	MaxIdle int
	// Allow judges each address that is about to be connected to, also each of
	// those that a name stands for at that moment: a refused one makes a failed
	// dial, with Allow's error as its cause. Nil allows everything.
	Allow func(netip.AddrPort) error
}

const (
	// A backend's head may be larger than a client's (cookies, CSP), but a
	// backend gone wrong must not fill the memory; net/http's own default is
	// 10 MiB.
	maxResponseHead = 256 << 10
	// Uploads are written in pieces of the write buffer: net/http's 4 KiB
	// would cost a system call for each.
	writeBuffer = 32 << 10
	readBuffer  = 16 << 10
	// How long a request with Expect: 100-continue waits for the backend's
	// word before its body is sent all the same (RFC 9110 §10.1.1).
	expectContinue = time.Second
)

// Transport carries requests to one backend. Safe for concurrent use.
type Transport struct {
	backend *backend.Backend
	rt      atomic.Pointer[http.Transport]
	conns   connections     // of every rt that there was
	life    context.Context // ends with Cut
	end     context.CancelFunc
}

// New returns a transport to b. It dials nothing yet.
func New(b *backend.Backend, s Settings) *Transport {
	t := &Transport{backend: b}
	t.life, t.end = context.WithCancel(context.Background())
	t.rt.Store(t.roundTripper(s))
	return t
}

// Configure has s hold for requests from now on. Those in flight end as they
// began, on connections that are not used again; the idle ones are closed.
func (t *Transport) Configure(s Settings) { t.rt.Swap(t.roundTripper(s)).CloseIdleConnections() }

// roundTripper returns what sends requests over connections of its own.
func (t *Transport) roundTripper(s Settings) *http.Transport {
	dialer := &net.Dialer{Timeout: s.Connect}
	if s.Allow != nil {
		dialer.ControlContext = judged(s.Allow)
	}
	return &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return t.dial(ctx, dialer, network)
		},
		DisableCompression:     true, // no Accept-Encoding is invented, no body is decoded
		MaxIdleConnsPerHost:    s.MaxIdle,
		IdleConnTimeout:        s.Idle,
		ResponseHeaderTimeout:  s.ResponseHeader,
		ExpectContinueTimeout:  expectContinue,
		MaxResponseHeaderBytes: maxResponseHead,
		WriteBufferSize:        writeBuffer,
		ReadBufferSize:         readBuffer,
	}
}

// judged returns a hook for dials that has allow judge the address which a
// socket is about to be connected to: no name is resolved once more after that.
func judged(allow func(netip.AddrPort) error) func(context.Context, string, string, syscall.RawConn) error {
	return func(_ context.Context, _, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		return allow(at)
	}
}

// dial connects to the backend's own address, whatever the request's URL says,
// and notes how that went where every carrier can see it.
func (t *Transport) dial(ctx context.Context, d *net.Dialer, network string) (net.Conn, error) {
	dialling, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(t.life, cancel)()
	conn, err := d.DialContext(dialling, network, t.backend.Address)
	switch {
	case err == nil:
		c := &backendConn{Conn: conn, owner: t}
		if !t.conns.add(c) {
			_ = conn.Close()
			return nil, outcome.ErrWithdrawn
		}
		t.backend.DialSucceeded()
		return c, nil
	case t.IsCut():
		return nil, outcome.ErrWithdrawn
	case ctx.Err() != nil:
		return nil, err // the request was given up: this says nothing about the backend
	}
	failed := &outcome.DialError{Address: t.backend.Address, Err: err}
	if outcome.FromError(failed).Class == outcome.Unsent {
		t.backend.DialFailed()
	}
	return nil, failed
}

// RoundTrip sends req to the backend and returns its response head. The URL's
// host is ignored: the connection goes to the backend's address, and the Host
// field stays what req.Host says. A failed dial comes back as an
// *outcome.DialError; outcome.FromError classifies every error.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if mustNotRepeat(req) {
		res, _, err := t.RoundTripOnce(req)
		return res, err
	}
	return t.roundTrip(req, waitUntilQuiet)
}

// RoundTripOnce does what RoundTrip does, and makes sure that net/http does not
// send the request a second time when a kept connection turns out to be dead:
// that would be an attempt which nobody counts. connected reports whether there
// was a connection at all; if not, nothing was sent.
func (t *Transport) RoundTripOnce(req *http.Request) (res *http.Response, connected bool, err error) {
	var conns atomic.Int32
	res, err = t.roundTrip(req, func(info httptrace.GotConnInfo) {
		waitUntilQuiet(info)
		if conns.Add(1) > 1 {
			// It was idle or new, so nobody else loses it; the write that
			// follows fails, as it must.
			_ = info.Conn.Close()
		}
	})
	return res, conns.Load() > 0, err
}

func (t *Transport) roundTrip(req *http.Request, gotConn func(httptrace.GotConnInfo)) (*http.Response, error) {
	// httputil makes a trace of its own for every request. Setting the hook in
	// it costs nothing, where a second trace would be merged by reflection.
	trace := httptrace.ContextClientTrace(req.Context())
	if trace == nil {
		trace = new(httptrace.ClientTrace)
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), trace))
	}
	trace.GotConn = gotConn
	rt := t.rt.Load()
	res, err := rt.RoundTrip(req)
	if t.rt.Load() != rt {
		// Configured anew since: net/http takes a request for a sign that
		// connections are to be kept again.
		rt.CloseIdleConnections()
	}
	return res, err
}

// Close closes the idle connections. Those in use end with their requests.
func (t *Transport) Close() { t.rt.Load().CloseIdleConnections() }

// Cut closes every connection, in use or idle, for good. What is in flight, up
// to bodies and tunnels under way, fails with outcome.ErrWithdrawn in its chain,
// and so does every later request.
func (t *Transport) Cut() {
	conns := t.conns.end()
	t.end()
	for _, c := range conns {
		_ = c.Close()
	}
	t.rt.Load().CloseIdleConnections() // also those that are about to become idle
}

// IsCut reports whether Cut was called.
func (t *Transport) IsCut() bool { return t.life.Err() != nil }

// explain says of a connection's error that Cut was the cause, if it was. What
// ended well is not made an error.
func (t *Transport) explain(err error) error {
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, outcome.ErrWithdrawn) || !t.IsCut() {
		return err
	}
	return fmt.Errorf("%w: %w", outcome.ErrWithdrawn, err)
}

// mustNotRepeat reports whether net/http's Transport would silently send req a
// second time when a kept connection turns out to be dead, although only the
// client may decide that: it takes an Idempotency-Key on a request without a
// body for leave to do so. Requests with a body are safe as long as GetBody is
// nil.
func mustNotRepeat(req *http.Request) bool {
	switch req.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPut, http.MethodDelete:
		return false
	}
	if req.Body != nil && req.Body != http.NoBody {
		return false
	}
	return req.Header["Idempotency-Key"] != nil || req.Header["X-Idempotency-Key"] != nil
}

// Set finds the transport of a backend. Safe for concurrent use.
type Set struct{ m sync.Map }

// Add registers b's transport.
func (s *Set) Add(b *backend.Backend, t *Transport) { s.m.Store(b, t) }

// For returns b's transport. For a backend that was not added, or removed again,
// it is one that is cut: what is sent there fails as withdrawn.
func (s *Set) For(b *backend.Backend) *Transport {
	if t, ok := s.m.Load(b); ok {
		return t.(*Transport)
	}
	t := New(b, Settings{})
	t.Cut()
	return t
}

// Remove forgets b's transport. Its connections are the caller's to close.
func (s *Set) Remove(b *backend.Backend) { s.m.Delete(b) }

// Close closes the idle connections of all transports.
func (s *Set) Close() {
	s.m.Range(func(_, t any) bool {
		t.(*Transport).Close()
		return true
	})
}
