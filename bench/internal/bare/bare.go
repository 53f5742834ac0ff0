// Package bare is what lb is measured against: httputil.ReverseProxy with the
// tuning that anybody would give it, and nothing else. It sets the fields that
// lb sets (X-Forwarded-For, -Host, -Proto, X-Request-Id) and keeps no counters
// and no logs.
//
// The settings are those of lb's defaults and of internal/transport, written
// out again on purpose: a change there must show in the comparison.
package bare

import (
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"time"
)

// NewServer returns a server that proxies every request to backend, a
// host:port.
func NewServer(backend string) *http.Server {
	return &http.Server{
		Handler:           newHandler(backend),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       75 * time.Second,
		MaxHeaderBytes:    60 << 10,
		ErrorLog:          log.New(io.Discard, "", 0),
	}
}

func newHandler(backend string) http.Handler {
	dialer := &net.Dialer{Timeout: 2 * time.Second}
	return &httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL.Scheme, pr.Out.URL.Host = "http", backend // Host stays the client's
			pr.SetXForwarded()
			pr.Out.Header["X-Request-Id"] = []string{newRequestID()}
		},
		Transport: &http.Transport{
			DialContext:            dialer.DialContext,
			DisableCompression:     true,
			MaxIdleConnsPerHost:    256,
			IdleConnTimeout:        55 * time.Second,
			ResponseHeaderTimeout:  60 * time.Second,
			ExpectContinueTimeout:  time.Second,
			MaxResponseHeaderBytes: 256 << 10,
			WriteBufferSize:        32 << 10,
			ReadBufferSize:         16 << 10,
		},
		BufferPool: new(buffers),
		ErrorLog:   log.New(io.Discard, "", 0),
	}
}

// newRequestID returns 128 random bits in hex, made as lb makes them.
func newRequestID() string {
	const digits = "0123456789abcdef"
	var id [32]byte
	for i := 0; i < len(id); i += 16 {
		for j, bits := 0, rand.Uint64(); j < 16; j, bits = j+1, bits>>4 {
			id[i+j] = digits[bits&15]
		}
	}
	return string(id[:])
}

type buffers struct{ pool sync.Pool }

type buffer [32 << 10]byte

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*buffer); ok {
		return p[:]
	}
	return new(buffer)[:]
}

func (b *buffers) Put(p []byte) { b.pool.Put((*buffer)(p)) }
