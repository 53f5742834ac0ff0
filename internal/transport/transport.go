// Package transport holds the connections to the backends: one tuned
// net/http.Transport each, so that a backend's idle connections can be closed
// alone and its dials be told from everybody else's.
package transport

import (
	"context"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
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

// Transport carries requests to one backend.
type Transport struct {
	backend *backend.Backend
	rt      *http.Transport
}

// New returns a transport to b. It dials nothing yet.
func New(b *backend.Backend, s Settings) *Transport {
	t := &Transport{backend: b}
	dialer := &net.Dialer{Timeout: s.Connect}
	t.rt = &http.Transport{
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
	return t
}

// dial connects to the backend's own address, whatever the request's URL says,
// and notes how that went where every carrier can see it.
func (t *Transport) dial(ctx context.Context, d *net.Dialer, network string) (net.Conn, error) {
	conn, err := d.DialContext(ctx, network, t.backend.Address)
	if err == nil {
		t.backend.DialSucceeded()
		return &backendConn{Conn: conn}, nil
	}
	if ctx.Err() != nil {
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
	return t.rt.RoundTrip(req)
}

// Close closes the idle connections. Those in use end with their requests.
func (t *Transport) Close() { t.rt.CloseIdleConnections() }

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

// For returns b's transport; b must have been added.
func (s *Set) For(b *backend.Backend) *Transport {
	t, _ := s.m.Load(b)
	return t.(*Transport)
}

// Close closes the idle connections of all transports.
func (s *Set) Close() {
	s.m.Range(func(_, t any) bool {
		t.(*Transport).Close()
		return true
	})
}
