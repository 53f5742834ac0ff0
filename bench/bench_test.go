package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"lb/bench/internal/bare"
	"lb/internal/app"
	"lb/internal/backend"
	"lb/internal/balance"
	"lb/internal/config/load"
	"lb/internal/exchange"
	"lb/internal/metrics"
	"lb/internal/outcome"
	"lb/internal/pool"
	"lb/internal/route"
)

// What the client sends. A browser's head shows what each field costs.
var heads = []struct{ name, text string }{
	{"plain", "GET /hello HTTP/1.1\r\nHost: bench.test\r\n\r\n"},
	{"browser", "GET /hello?page=2&sort=name HTTP/1.1\r\nHost: bench.test\r\n" +
		"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n" +
		"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n" +
		"Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br\r\n" +
		"Cookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\n" +
		"Cache-Control: no-cache\r\nX-Client-Version: 1.2.3\r\nConnection: keep-alive\r\n\r\n"},
}

// BenchmarkGet sends one GET after the other over one connection. Client and
// backend do not allocate, so allocs/op and B/op are the proxy's own, network,
// parsing and all. ns/op is a latency over four hops of goroutines: for costs
// in time use the command.
func BenchmarkGet(b *testing.B) {
	for _, head := range heads {
		for _, p := range proxies {
			b.Run(head.name+"/"+p.name, func(b *testing.B) {
				c := dial(b, p.start(b, startBackend(b)))
				for range 100 {
					c.get(b, head.text)
				}
				b.ReportAllocs()
				for b.Loop() {
					c.get(b, head.text)
				}
			})
		}
	}
}

// measureAllocs returns the allocations of one request through a proxy.
func measureAllocs(t *testing.T, p proxyKind, head string) float64 {
	c := dial(t, p.start(t, startBackend(t)))
	const warm, rounds = 500, 5000
	for range warm {
		c.get(t, head)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range rounds {
		c.get(t, head)
	}
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs-before.Mallocs) / rounds
}

type proxyKind struct {
	name string
	// start serves until the test ends and returns the address.
	start func(tb testing.TB, backend string) string
}

var proxies = []proxyKind{{"bare", startBare}, {"lb", startLB}}

func startBare(tb testing.TB, backend string) string {
	tb.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	s := bare.NewServer(backend)
	go func() { _ = s.Serve(l) }() // ends with Close
	tb.Cleanup(func() { _ = s.Close() })
	return l.Addr().String()
}

// startLB runs the whole daemon as it is configured for the comparison.
func startLB(tb testing.TB, backend string) string {
	tb.Helper()
	file := filepath.Join(tb.TempDir(), "lb.yaml")
	if err := os.WriteFile(file, []byte(lbConfig("127.0.0.1:0", "127.0.0.1:0", backend)), 0o600); err != nil {
		tb.Fatal(err)
	}
	c, _, err := load.File(file, load.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	logs, err := app.NewLogs(c.Log, io.Discard, io.Discard)
	if err != nil {
		tb.Fatal(err)
	}
	a, err := app.New(tb.Context(), app.Options{Loaded: app.Loaded{Config: c}, Logs: logs, Version: "bench", Commit: "bench"})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	if err := a.Bind(ctx); err != nil {
		stop()
		tb.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	tb.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			tb.Error(err)
		}
		logs.Close()
	})
	return a.Addr("public")
}

var answer = fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nServer: bench\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\n"+
	"Content-Type: text/plain\r\nContent-Length: %d\r\nConnection: keep-alive\r\n\r\n%s", len(backendBody), backendBody)

// startBackend serves the same answer to every request without a body. It
// allocates for each connection, and nothing for a request.
func startBackend(tb testing.TB) string {
	tb.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go answerAll(c)
		}
	}()
	return l.Addr().String()
}

var endOfHead = []byte("\r\n\r\n")

func answerAll(c net.Conn) {
	defer func() { _ = c.Close() }()
	buf, n := make([]byte, 8<<10), 0
	for {
		got, err := c.Read(buf[n:])
		if err != nil {
			return
		}
		if n += got; !bytes.HasSuffix(buf[:n], endOfHead) {
			continue
		}
		n = 0
		if _, err := c.Write(answer); err != nil {
			return
		}
	}
}

// client is one connection to a proxy.
type client struct {
	net.Conn
	buf []byte
}

func dial(tb testing.TB, address string) *client {
	tb.Helper()
	d := net.Dialer{Timeout: 5 * time.Second}
	c, err := d.DialContext(tb.Context(), "tcp", address)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	return &client{Conn: c, buf: make([]byte, 8<<10)}
}

var (
	wantStatus = []byte("HTTP/1.1 200 OK\r\n")
	wantBody   = []byte("\r\n\r\n" + backendBody)
)

// get sends head and reads the answer. It does not allocate.
func (c *client) get(tb testing.TB, head string) {
	if _, err := io.WriteString(c.Conn, head); err != nil {
		tb.Fatal(err)
	}
	n := 0
	for !bytes.HasSuffix(c.buf[:n], wantBody) {
		got, err := c.Read(c.buf[n:])
		if n += got; err != nil {
			tb.Fatalf("after %q: %v", c.buf[:n], err)
		}
	}
	if !bytes.HasPrefix(c.buf[:n], wantStatus) {
		tb.Fatalf("unexpected answer %q", c.buf[:n])
	}
}

// BenchmarkDecide takes the decisions about a GET, without net/http: what is
// left when bytes are carried by something leaner. Its allocations are strings
// for the backend: the request id and the client's address.
func BenchmarkDecide(b *testing.B) {
	factory, err := balance.New(balance.Spec{Name: "roundrobin"})
	if err != nil {
		b.Fatal(err)
	}
	m := metrics.New("bench", "bench")
	var backends []*backend.Backend
	for _, id := range []string{"a", "b", "c"} {
		backends = append(backends, &backend.Backend{ID: id, Outcomes: m.Backend("bench", id, outcome.Names[:])})
	}
	d := exchange.NewDecider(&exchange.Snapshot{
		Table: route.Compile([]route.Rule{
			{Hosts: []string{"other.test"}},
			{Methods: []string{"GET"}, Path: "/hello"},
			{PathPrefix: "/api"},
			{},
		}),
		Routes: slices.Repeat([]exchange.Route{{
			Pool:        pool.New(pool.Options{Name: "bench", Policy: factory, Budget: pool.NewBudget(.2, 3), Backends: backends}),
			Retries:     m.Retries("bench", exchange.RetryOutcomes),
			Instruments: m.Route("bench", "bench"),
		}}, 4),
	}, func(*exchange.Exchange) {})
	x := &exchange.Exchange{Listener: &exchange.Listener{MaxFields: 100, Scheme: "http"}}
	b.ReportAllocs()
	for b.Loop() {
		if d.Begin(x, request{}) != exchange.Proxy || d.Next(x, outcome.Outcome{}) != exchange.Try ||
			d.Next(x, outcome.FromStatus(200)) != exchange.Pass {
			b.Fatal("not the way of a request that goes well")
		}
		x.Status = 200
		d.Finish(x)
		x.Reset()
	}
}

// request is a request without net/http.
type request struct{}

func (request) Method() string       { return "GET" }
func (request) Target() string       { return "/hello?page=2" }
func (request) Host() string         { return "bench.test:8080" }
func (request) Lookup(string) string { return "" }
func (request) Fields() int          { return 8 }
func (request) Peer() netip.Addr     { return netip.AddrFrom4([4]byte{192, 0, 2, 1}) }
