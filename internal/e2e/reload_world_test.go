package e2e

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	"lb/internal/admin"
)

// steadyLoad is what clients send all the while that a daemon changes: half of
// it over connections that are kept, half over new ones. Each client sends on
// time, or as soon as its answer before is there.
type steadyLoad struct {
	t       testing.TB
	url     string
	serial  atomic.Int64
	quit    chan struct{}
	running sync.WaitGroup

	mu      sync.Mutex
	shots   []shot
	written []string // the writes that were accepted
}

// What can become of a shot beside what load knows.
const unannounced = "unannounced" // a kept connection ended without Connection: close

// startSteadyLoad begins a load of that many requests a second.
func startSteadyLoad(t testing.TB, url string, rate int) *steadyLoad {
	l := &steadyLoad{t: t, url: url, quit: make(chan struct{})}
	clients := max(2, rate/20)
	for i := range clients {
		l.running.Go(func() { l.client(i%2 == 0, time.Duration(clients)*time.Second/time.Duration(rate)) })
	}
	t.Cleanup(func() { l.end() })
	return l
}

// client sends a request each so often until the end.
func (l *steadyLoad) client(keeps bool, every time.Duration) {
	transport := &http.Transport{MaxConnsPerHost: 1, DisableKeepAlives: !keeps, DisableCompression: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	mayDial := true
	for at := time.Now(); ; at = at.Add(every) {
		select {
		case <-time.After(time.Until(at)):
		case <-l.quit:
			return
		}
		l.shoot(client, at, &mayDial)
		mayDial = mayDial || !keeps
	}
}

// shoot sends one request. mayDial says whether the connection before was to be
// closed, or there was none; the answer says it anew.
func (l *steadyLoad) shoot(client *http.Client, at time.Time, mayDial *bool) {
	id := l.serial.Add(1)
	s := shot{ID: int(id), At: at}
	method, path, body := http.MethodGet, "/read/", ""
	switch id % 10 {
	case 0, 1, 2:
		method, path, body = http.MethodPost, "/post/", strings.Repeat("p", int(id%3000))
	case 3:
		method, path, body = http.MethodPost, "/write/", "w"
	}
	path += strconv.FormatInt(id, 10)
	ctx, cancel := context.WithTimeout(context.Background(), shotPatience)
	defer cancel()
	conns, dialled := 0, false
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) {
		conns++
		dialled = !c.Reused
	}})
	req, err := http.NewRequestWithContext(ctx, method, l.url+path, strings.NewReader(body))
	if err != nil {
		panic(err)
	}
	var answered []byte
	closes := true
	res, err := client.Do(req)
	if err == nil {
		answered, err = io.ReadAll(res.Body)
		_ = res.Body.Close()
		closes = res.Close
	}
	s.Took, s.Err = time.Since(at), err
	switch {
	case conns > 1:
		s.Trouble = resent
	case err != nil && res == nil:
		s.Trouble = lost
	case err != nil:
		s.Trouble = cut
	case body == "w" && (res.StatusCode == http.StatusCreated || res.StatusCode == http.StatusAccepted):
	case res.StatusCode != http.StatusOK:
		s.Trouble = strings.TrimSpace(fmt.Sprintf("%d %s", res.StatusCode, res.Header.Get("X-LB-Error")))
	case string(answered) != method+" "+path+" "+body:
		s.Trouble = wrong
	}
	if dialled && !*mayDial && s.Trouble == "" {
		s.Trouble = unannounced
	}
	*mayDial = closes
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shots = append(l.shots, s)
	if body == "w" && s.Trouble == "" {
		l.written = append(l.written, path)
	}
}

// end stops the load and returns all shots in the order of their numbers.
func (l *steadyLoad) end() []shot {
	select {
	case <-l.quit:
	default:
		close(l.quit)
	}
	l.running.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.SortedFunc(slices.Values(l.shots), func(a, b shot) int { return a.ID - b.ID })
}

// await waits until so many more shots are over.
func (l *steadyLoad) await(more int) {
	l.t.Helper()
	count := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.shots)
	}
	from := count()
	poll(l.t, 2*patience, "more answers", func() bool { return count() >= from+more })
}

// reloadBackend says what it was asked, keeps what is written, and echoes over
// WebSockets.
type reloadBackend struct {
	Addr string

	mu      sync.Mutex
	written map[string]bool
}

func startReloadBackend(t testing.TB) *reloadBackend {
	t.Helper()
	b := &reloadBackend{written: make(map[string]bool)}
	b.Addr = backend(t, b)
	return b
}

func (b *reloadBackend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/healthz":
		return
	case strings.HasPrefix(r.URL.Path, "/socket"):
		echoFrames(w, r)
		return
	case strings.HasPrefix(r.URL.Path, "/write/"):
		b.mu.Lock()
		b.written[r.URL.Path] = true
		b.mu.Unlock()
		w.WriteHeader(http.StatusCreated)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	_, _ = fmt.Fprintf(w, "%s %s %s", r.Method, r.URL.Path, body)
}

// missing returns which of the writes it has not got.
func (b *reloadBackend) missing(writes []string) (missing []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(writes), func(path string) bool { return b.written[path] })
}

// echoFrames serves a WebSocket until its client closes it.
func echoFrames(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	for {
		kind, message, err := c.Read(context.Background())
		if err != nil || c.Write(context.Background(), kind, message) != nil {
			return
		}
	}
}

// socket is a WebSocket that must stay open.
type keptSocket struct {
	*websocket.Conn
	path string
}

func openSocket(t testing.TB, d *daemon, url, path string) keptSocket {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, _, err := websocket.Dial(ctx, url+path, &websocket.DialOptions{HTTPClient: d.client})
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.CloseNow() })
	return keptSocket{c, path}
}

// requireEcho says something over the socket and hears it again.
func (s keptSocket) requireEcho(t testing.TB, word string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.NoError(t, s.Write(ctx, websocket.MessageText, []byte(word)), s.path)
	_, heard, err := s.Read(ctx)
	require.NoError(t, err, s.path)
	require.Equal(t, word, string(heard))
}

// counters remembers the highest value of every counter that it has seen.
type counters map[string]float64

// observe takes in an exposition, and returns what has gone back or away.
func (seen counters) observe(exposition string) (bad []string) {
	now := map[string]float64{}
	counting := false
	for line := range strings.Lines(exposition) {
		line = strings.TrimSpace(line)
		if kind, found := strings.CutPrefix(line, "# TYPE "); found {
			counting = strings.HasSuffix(kind, " counter") || strings.HasSuffix(kind, " histogram")
			continue
		}
		at := strings.LastIndexByte(line, ' ')
		if !counting || at < 0 || line[0] == '#' || strings.HasPrefix(line, "go_") || strings.HasPrefix(line, "process_") {
			continue
		}
		if v, err := strconv.ParseFloat(line[at+1:], 64); err == nil {
			now[line[:at]] = v
		}
	}
	for series, was := range seen {
		if is, there := now[series]; !there {
			bad = append(bad, series+" is gone")
		} else if is < was {
			bad = append(bad, fmt.Sprintf("%s went from %v to %v", series, was, is))
		}
	}
	maps.Copy(seen, now)
	return bad
}

// reloadWorld is a configuration that changes step by step. What the load needs
// stays: the routes /read, /post, /write and /socket, and members that serve.
type reloadWorld struct {
	addresses  []string // of backends that are well
	storage    string
	extra      string // a further listener, if not ""
	fields     int    // header_fields of public
	idle       int    // seconds, of public
	connLimit  int
	weight     int
	limit      int
	queue      int
	policy     int
	interval   int // ms
	breaker    int
	slow       int // seconds
	budget     int
	connect    int
	kept       int // seconds that an idle connection to a backend is
	timeout    int
	attempts   int
	wait       int
	third      bool // a third backend in main
	thirdSync  bool // a third backend in the pool of the fan-out
	swapped    bool // the id two has another address
	pool       bool // a further pool, with a route
	route      bool
	respond    int
	lagging    int
	level      bool
	drain      int
	respondTop bool
}

// reloadSteps each change something, and something else when they come again.
var reloadSteps = []struct {
	name string
	do   func(w *reloadWorld)
}{
	{"a backend", func(w *reloadWorld) { w.third = !w.third }},
	{"a pool", func(w *reloadWorld) { w.pool = !w.pool }},
	{"a route", func(w *reloadWorld) { w.route = !w.route }},
	{"a weight", func(w *reloadWorld) { w.weight = 1 + w.weight%7 }},
	{"a limit", func(w *reloadWorld) { w.limit = 500 + (w.limit+1)%100 }},
	{"a queue", func(w *reloadWorld) { w.queue = 100 + (w.queue+1)%100 }},
	{"a policy", func(w *reloadWorld) { w.policy++ }},
	{"the interval of a check", func(w *reloadWorld) { w.interval = 200 + (w.interval+100)%700 }},
	{"a listener", func(w *reloadWorld) { w.extra = map[string]string{"": "extra", "extra": ""}[w.extra] }},
	{"what a listener allows", func(w *reloadWorld) { w.fields = 100 + (w.fields+1)%100 }},
	{"a breaker", func(w *reloadWorld) { w.breaker++ }},
	{"a slow start", func(w *reloadWorld) { w.slow = (w.slow + 1) % 3 }},
	{"a retry budget", func(w *reloadWorld) { w.budget = 1 + (w.budget+1)%9 }},
	{"a transport", func(w *reloadWorld) { w.connect = 2 + (w.connect+1)%5 }},
	{"the timeout of a route", func(w *reloadWorld) { w.timeout = 20 + (w.timeout+1)%30 }},
	{"the retries of a route", func(w *reloadWorld) { w.attempts = 1 + w.attempts%3 }},
	{"the wait of a fan-out", func(w *reloadWorld) { w.wait = 5 + (w.wait+1)%5 }},
	{"a member that gets writes", func(w *reloadWorld) { w.thirdSync = !w.thirdSync }},
	{"the address of a backend", func(w *reloadWorld) { w.swapped = !w.swapped }},
	{"how long a listener waits", func(w *reloadWorld) { w.idle = 30 + (w.idle+1)%30 }},
	{"when a backend lags", func(w *reloadWorld) { w.lagging = 20 + (w.lagging+1)%20 }},
	{"the answer of a route", func(w *reloadWorld) { w.respond++ }},
	{"how many may connect", func(w *reloadWorld) { w.connLimit = 5000 + (w.connLimit+1)%100 }},
	{"the order of routes", func(w *reloadWorld) { w.respondTop = !w.respondTop }},
	{"the level of the log", func(w *reloadWorld) { w.level = !w.level }},
	{"how long a drain takes", func(w *reloadWorld) { w.drain = 3 + (w.drain+1)%3 }},
}

func (w *reloadWorld) String() string {
	var b strings.Builder
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(&b, format+"\n", args...) }
	say("admin: { address: '127.0.0.1:0' }")
	say("storage: { path: %q }", w.storage)
	say("shutdown: { drain: %ds, readiness: 0s }", w.drain)
	say("log: { level: %s, access: { enabled: false } }", map[bool]string{true: "info", false: "warn"}[w.level])
	say("listeners:")
	say("  - { name: public, address: '127.0.0.1:0', timeouts: { idle: %ds }, limits: { header_fields: %d, connections: %d } }", w.idle, w.fields, w.connLimit)
	say("  - { name: steady, address: '127.0.0.1:0' }")
	if w.extra != "" {
		say("  - { name: %s, address: '127.0.0.1:0' }", w.extra)
	}
	policies := []string{"roundrobin", "leastconn", "p2c", "random", "weighted_roundrobin"}
	two := w.addresses[1]
	if w.swapped {
		two = w.addresses[2]
	}
	say("pools:")
	say("  - name: main")
	say("    policy: %s", policies[w.policy%len(policies)])
	say("    limits: { per_backend: %d, queue: { limit: %d, timeout: 5s } }", w.limit, w.queue)
	say("    health: { type: http, path: /healthz, interval: %dms, timeout: 200ms }", w.interval)
	if w.breaker%3 > 0 {
		say("    breaker: { consecutive: %d }", 5+w.breaker%3)
	}
	say("    slow_start: %ds", w.slow)
	say("    retry_budget: { ratio: 0.%d }", w.budget)
	say("    transport: { connect: %ds, idle: %ds }", w.connect, w.kept)
	say("    backends:")
	say("      - { id: one, address: %q, weight: %d }", w.addresses[0], w.weight)
	say("      - { id: two, address: %q }", two)
	if w.third {
		say("      - { id: three, address: %q }", w.addresses[2])
	}
	say("  - { name: still, backends: [ { id: one, address: %q } ] }", w.addresses[0])
	say("  - name: all")
	say("    transport: { idle: %ds }", w.kept)
	say("    lagging: { after: %ds }", w.lagging)
	say("    backends: [ { id: one, address: %q }, { id: two, address: %q }%s ]", w.addresses[0], w.addresses[1],
		map[bool]string{true: fmt.Sprintf(", { id: three, address: %q }", w.addresses[2])}[w.thirdSync])
	if w.pool {
		say("  - { name: further, backends: [ { id: one, address: %q } ] }", w.addresses[0])
	}
	say("routes:")
	own := func() {
		say("  - { name: own, match: { path: /own }, respond: { status: 200, body: '%d' } }", w.respond)
	}
	if w.respondTop {
		own()
	}
	say("  - { name: read, match: { path_prefix: /read }, required: true, proxy: { pool: main, timeout: %ds, retry: { attempts: %d } } }", w.timeout, w.attempts)
	say("  - { name: post, match: { path_prefix: /post }, proxy: { pool: main } }")
	say("  - { name: write, match: { path_prefix: /write, methods: [POST] }, fanout: { pool: all, wait: %ds } }", w.wait)
	say("  - { name: moved, match: { path: /socket/moved }, proxy: { pool: main } }")
	say("  - { name: still, match: { path: /socket/still }, proxy: { pool: still } }")
	if w.route {
		say("  - { name: another, match: { path: /another }, proxy: { pool: still } }")
	}
	if w.pool {
		say("  - { name: further, match: { path: /further }, proxy: { pool: further } }")
	}
	if !w.respondTop {
		own()
	}
	return b.String()
}

// newReloadWorld returns the configuration that all begins with.
func newReloadWorld(t testing.TB, addresses []string) *reloadWorld {
	return &reloadWorld{
		addresses: addresses, storage: filepath.Join(t.TempDir(), "lb.db"),
		fields: 100, idle: 60, connLimit: 5000, weight: 1, limit: 500, queue: 100, interval: 300,
		budget: 2, connect: 5, kept: 30, timeout: 30, attempts: 1, wait: 10, lagging: 30, level: true, drain: 3,
	}
}

// generation returns which configuration serves.
func (d *daemon) generation() uint64 {
	d.t.Helper()
	var h admin.Health
	d.get(d.Admin+"/health").json(d.t, &h)
	return h.Config.Generation
}

// replace gives the file another content by a rename.
func (r *reloadable) replace(t testing.TB, config string) {
	t.Helper()
	next := r.file + ".next"
	require.NoError(t, os.WriteFile(next, []byte(config), 0o600))
	require.NoError(t, os.Rename(next, r.file))
}
