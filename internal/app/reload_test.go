package app

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/admin"
	"lb/internal/config/load"
)

// live is a daemon that runs, and whose configuration can be written anew.
type live struct {
	*App
	mu   sync.Mutex
	text string
}

func (l *live) load() (Loaded, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return parse("lb.yaml", []byte(l.text))
}

func parse(name string, document []byte) (Loaded, error) {
	c, warnings, err := load.Bytes(name, document, load.Options{})
	return Loaded{Config: c, Document: document, Source: name, Warnings: warnings}, err
}

// run runs a daemon until the test's end, and returns when it is ready.
func run(t testing.TB, text string) *live {
	t.Helper()
	l := &live{text: text}
	first, err := l.load()
	require.NoError(t, err)
	logs, err := NewLogs(first.Config.Log, io.Discard, io.Discard)
	require.NoError(t, err)
	t.Cleanup(logs.Close)
	l.App, err = New(t.Context(), Options{Loaded: first, Load: l.load, Parse: parse, Logs: logs})
	require.NoError(t, err)
	require.NoError(t, l.Bind(t.Context()))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- l.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-ended)
	})
	require.Eventually(t, func() bool { return l.Ready() == nil }, 20*time.Second, time.Millisecond)
	return l
}

// to has another configuration served.
func (l *live) to(t testing.TB, text string) admin.Reloaded {
	t.Helper()
	l.mu.Lock()
	l.text = text
	l.mu.Unlock()
	done, err := l.Reload(t.Context(), "a test")
	require.NoError(t, err)
	require.Equal(t, admin.Applied, done.Result)
	return done
}

// passTime lets go what is kept for a while after it is out of use.
func (l *live) passTime(t testing.TB) {
	t.Helper()
	l.retiring.Wait()
	require.NoError(t, l.takeTurn(t.Context()))
	defer func() { <-l.operating }()
	l.retireFully(time.Now().Add(time.Hour))
	l.forgetOutdated(time.Now().Add(time.Hour))
}

// everywhere serves at one port of all addresses of this machine.
func everywhere(t testing.TB) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "0.0.0.0:0")
	require.NoError(t, err)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	_ = s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return l.Addr().(*net.TCPAddr).Port
}

// traces are what a daemon holds.
type traces struct{ goroutines, files, series int }

func (l *live) traces(t testing.TB) traces {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	w := httptest.NewRecorder()
	l.metrics.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	series := 0
	for line := range strings.Lines(w.Body.String()) {
		if strings.HasPrefix(line, "lb_") || strings.HasPrefix(line, "target_") {
			series++
		}
	}
	return traces{runtime.NumGoroutine(), len(files), series}
}

func heap() int64 {
	runtime.GC()
	runtime.GC() // what pools kept over the first
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Whatever reloads bring and take away again, nothing stays of it.
func TestReloadsLeaveNothingBehind(t *testing.T) {
	port := everywhere(t)
	text := func(n int) string {
		policy := []string{"roundrobin", "p2c", "least_conn"}[n%3]
		return fmt.Sprintf(`
admin: { address: "" }
storage: { path: "" }
log: { level: error }
shutdown: { drain: 10s }
listeners: [ { name: always, address: "127.0.0.1:0", limits: { header_fields: %[1]d } }, { name: l%[1]d, address: "127.0.0.1:0" } ]
pools:
  - name: stays
    policy: %[2]s
    limits: { per_backend: %[1]d }
    transport: { connect: %[1]ds }
    breaker: { consecutive: %[1]d }
    health: { type: tcp, interval: 60s, timeout: %[3]ds }
    backends: [ { id: one, address: "127.0.0.1:%[4]d" }, { id: b%[1]d, address: "127.0.0.2:%[4]d" } ]
  - { name: p%[1]d, health: { type: http, interval: 60s, timeout: 5s }, backends: [ { id: one, address: "127.0.0.3:%[4]d" } ] }
routes:
  - { name: r%[1]d, match: { path: /r }, proxy: { pool: p%[1]d } }
  - { name: w%[1]d, match: { path: /w, methods: [POST] }, fanout: { pool: p%[1]d } }
  - { name: all, match: { path_prefix: / }, proxy: { pool: stays } }
`, n, policy, 1+n%50, port)
	}
	l := run(t, text(10))
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	round := func(n int) {
		l.to(t, text(n))
		for _, path := range []string{"/r", "/other"} {
			res, err := client.Get("http://" + l.Addr("always") + path)
			require.NoError(t, err)
			_ = res.Body.Close()
			require.Equal(t, 200, res.StatusCode)
		}
	}
	reloads := 100
	if os.Getenv("LB_CHAOS") == "full" {
		reloads = 1000
	}
	n := 11
	for i := range 60 {
		round(n)
		n++
		if i%10 == 9 {
			l.passTime(t)
		}
	}
	before := l.traces(t)
	heapBefore := heap()
	for i := range reloads {
		round(n)
		n++
		if i%10 == 9 {
			l.passTime(t) // maps do not shrink: else they would be as large as if all that came in ten minutes
		}
	}
	heapAfter := heap()
	after := l.traces(t)
	more := func() bool { return after.goroutines > before.goroutines || after.files > before.files }
	for deadline := time.Now().Add(20 * time.Second); more() && time.Now().Before(deadline); <-time.After(10 * time.Millisecond) {
		after = l.traces(t) // what was told to end ends in its own time
	}
	t.Logf("%d reloads: %+v before, %+v after; heap %d KiB before, %d KiB after", reloads, before, after, heapBefore>>10, heapAfter>>10)
	require.False(t, more(), "%+v before, %+v after", before, after)
	require.Equal(t, before.series, after.series)
	require.Less(t, heapAfter-heapBefore, int64(512<<10))
}

// large is a configuration of so many pools and routes, the n-th of them.
func large(pools, routes, n int) string {
	var b strings.Builder
	b.WriteString("admin: { address: '' }\nstorage: { path: '' }\nlog: { level: error }\n")
	b.WriteString("listeners: [ { name: a, address: '127.0.0.1:0' } ]\npools:\n")
	for i := range pools {
		_, _ = fmt.Fprintf(&b, "  - { name: p%d, limits: { per_backend: %d }, backends: [ { id: a, address: '127.0.0.1:1' }, { id: b, address: '127.0.0.1:2' } ] }\n", i, 10+n%7)
	}
	b.WriteString("routes:\n")
	for i := range routes {
		_, _ = fmt.Fprintf(&b, "  - { name: r%d, match: { path_prefix: /r%d }, proxy: { pool: p%d, timeout: %ds } }\n", i, i, i%pools, 10+n%5)
	}
	return b.String()
}

// The promise is 500 ms for 1,000 pools and 10,000 routes, of which each changes
// here with each reload.
func BenchmarkReload(b *testing.B) {
	const pools, routes = 1000, 10000
	texts := [2]string{large(pools, routes, 0), large(pools, routes, 1)}
	var read [2]Loaded
	for i, text := range texts {
		var err error
		read[i], err = parse("lb.yaml", []byte(text))
		require.NoError(b, err)
	}
	b.Run("read", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, err := parse("lb.yaml", []byte(texts[0]))
			require.NoError(b, err)
		}
	})
	b.Run("apply", func(b *testing.B) {
		l := run(b, texts[0])
		n := 0
		l.options.Load = func() (Loaded, error) { return read[n%2], nil }
		b.ReportAllocs()
		for b.Loop() {
			n++
			_, err := l.Reload(b.Context(), "a benchmark")
			require.NoError(b, err)
		}
	})
}
