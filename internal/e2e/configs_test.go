package e2e

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"lb/internal/demo"
)

// listeners is the part that every configuration here begins with.
const listeners = `
listeners: [{ name: public, address: "127.0.0.1:0" }]
admin: { address: "127.0.0.1:0" }
`

// pools returns the part with one pool named main, whose backends are b1, b2,
// … at these addresses. more is further keys of the pool, such as ", policy: rr".
func pools(more string, addresses ...string) string {
	entries := make([]string, len(addresses))
	for i, a := range addresses {
		entries[i] = fmt.Sprintf("{ id: b%d, address: %q }", i+1, a)
	}
	return fmt.Sprintf("pools: [{ name: main, backends: [%s]%s }]\n", strings.Join(entries, ", "), more)
}

// proxyAll returns a configuration that sends everything to one of the
// addresses. more is further keys of the proxy.
func proxyAll(more string, addresses ...string) string {
	return listeners + pools("", addresses...) +
		"routes: [{ name: all, match: { path_prefix: / }, required: true, proxy: { pool: main" + more + " } }]\n"
}

// fanoutAll returns a configuration that sends POSTs to all of the addresses
// and the rest to one of them. more is further keys of the fan-out.
func fanoutAll(more string, addresses ...string) string {
	return listeners + pools("", addresses...) + `routes:
  - { name: write, match: { methods: [POST], path_prefix: / }, fanout: { pool: main, backoff: { base: 50ms, cap: 200ms, jitter: 5ms }` + more + ` } }
  - { name: read, match: { path_prefix: / }, proxy: { pool: main } }
shutdown: { drain: 2s }
`
}

// demoBackends starts three demo backends; with flaky, the last drops every
// fifth request.
func demoBackends(t testing.TB, flaky bool) (all []*server, addresses []string) {
	for i := 1; i <= 3; i++ {
		s := startServer(t, demo.NewBackend(demo.Options{Name: fmt.Sprintf("server%d", i), SkipSome: flaky && i == 3}))
		all, addresses = append(all, s), append(addresses, s.Addr)
	}
	return all, addresses
}

// arrival is one request as a backend got it.
type arrival struct {
	Method, Target, Body string
	Header               http.Header
	At                   time.Time
}

// ledger is a backend that keeps what arrives and answers by a script.
type ledger struct {
	// answer says how the n-th request, from 0, is answered.
	answer func(n int, w http.ResponseWriter)

	mu       sync.Mutex
	arrivals []arrival
}

// always answers every request with one status.
func always(status int) *ledger {
	return &ledger{answer: func(_ int, w http.ResponseWriter) { w.WriteHeader(status) }}
}

// ServeHTTP reads a request to its end before it answers.
func (l *ledger) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // not a whole request: it does not count
	}
	l.mu.Lock()
	n := len(l.arrivals)
	l.arrivals = append(l.arrivals, arrival{r.Method, r.RequestURI, string(body), r.Header, time.Now()})
	l.mu.Unlock()
	l.answer(n, w)
}

// all returns the requests so far.
func (l *ledger) all() []arrival {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]arrival(nil), l.arrivals...)
}
