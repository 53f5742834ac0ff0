package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// limited is a configuration with one pool that has limits.
func limited(limits string, addresses ...string) string {
	var backends []string
	for i, address := range addresses {
		backends = append(backends, fmt.Sprintf("{ address: %q, id: b%d }", address, i+1))
	}
	return fmt.Sprintf(`
listeners: [ { name: public, address: "127.0.0.1:0" } ]
admin: { address: "127.0.0.1:0" }
storage: { path: "" }
pools:
  - { name: main, limits: { %s }, backends: [ %s ] }
routes:
  - { name: short, match: { path_prefix: /short }, proxy: { pool: main, timeout: 300ms } }
  - { name: write, match: { methods: [POST], path: /write }, fanout: { pool: main } }
  - { name: all, match: { path_prefix: / }, proxy: { pool: main } }
`, limits, strings.Join(backends, ", "))
}

// desk works on calls until it is told to let one go, and knows how many it had
// at once.
type desk struct {
	Addr    string
	arrived chan string // the call's path
	release chan struct{}
	crash   chan struct{} // breaks a call's connection off

	mu            sync.Mutex
	working, most int
}

func newDesk(t testing.TB) *desk {
	t.Helper()
	d := &desk{arrived: make(chan string, 1000), release: make(chan struct{}, 1000), crash: make(chan struct{}, 1)}
	d.Addr = backend(t, d)
	return d
}

func (d *desk) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	d.mu.Lock()
	d.working++
	d.most = max(d.most, d.working)
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		d.working--
		d.mu.Unlock()
	}()
	d.arrived <- r.URL.Path
	select {
	case <-d.release:
	case <-d.crash:
		panic(http.ErrAbortHandler)
	case <-r.Context().Done():
		return
	}
	if r.Method == http.MethodPost && r.URL.Path == "/write" {
		w.WriteHeader(http.StatusCreated)
	}
}

// now returns how many calls are being worked on.
func (d *desk) now() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.working
}

// calls begins calls in their order, each when the one before is where it
// belongs, and returns their answers.
type calls struct {
	d       *daemon
	answers sync.WaitGroup
	mu      sync.Mutex
	status  map[string]int
}

func (c *calls) begin(path string, body io.Reader) {
	method := http.MethodGet
	if body != nil {
		method = http.MethodPost
	}
	c.answers.Go(func() {
		a := c.d.do(method, path, body)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.status == nil {
			c.status = map[string]int{}
		}
		c.status[path] = a.Status
	})
}

func (d *daemon) queued(pool string) float64 { return d.metric("lb_queue_depth", "pool", pool) }

// Promise: concurrency 4, queue 0: the fifth call is refused at once.
func TestTheFifthCallIsRefused(t *testing.T) {
	t.Parallel()
	desk := newDesk(t)
	d := start(t, limited("per_backend: 4", desk.Addr))
	c := &calls{d: d}
	for i := range 4 {
		c.begin(fmt.Sprintf("/%d", i), nil)
		<-desk.arrived
	}
	a := d.get("/fifth")
	requireDetail(t, a, 503, "max_concurrency_reached", "per_backend")
	retry, err := strconv.Atoi(a.Header.Get("Retry-After"))
	require.NoError(t, err)
	require.Positive(t, retry)
	requireDetail(t, d.do("POST", "/fifth", strings.NewReader("x")), 503, "max_concurrency_reached", "per_backend")
	i := d.listed("b1")
	require.Equal(t, 4, i.Limit)
	require.EqualValues(t, 4, i.InFlight)
	require.True(t, i.Eligible, "it is well, and full")
	for range 4 {
		desk.release <- struct{}{}
	}
	c.answers.Wait()
	c.begin("/sixth", nil)
	<-desk.arrived
	desk.release <- struct{}{}
	c.answers.Wait()
	require.Equal(t, 200, c.status["/sixth"], "there are slots again")
	require.Equal(t, 4, desk.most)
	require.Equal(t, 2.0, d.metric("lb_refused_total", "pool", "main", "code", "max_concurrency_reached"))
	require.Equal(t, 0, d.stop())
	refused := 0
	for _, line := range d.accessLog() {
		if line["code"] == "max_concurrency_reached" {
			refused++
			require.Equal(t, "main", line["pool"])
			require.Equal(t, "127.0.0.1", line["client"])
			require.Empty(t, line["backend"])
		}
	}
	require.Equal(t, 2, refused)
}

// Promise: with a queue, calls beyond the slots wait and get them in the order
// in which they came; never more than the limit are at work.
func TestCallsWaitInOrder(t *testing.T) {
	t.Parallel()
	one, two := newDesk(t), newDesk(t)
	d := start(t, limited("per_backend: 4, queue: { limit: 1000, timeout: 30s }", one.Addr, two.Addr))
	c := &calls{d: d}
	for i := range 20 {
		var body io.Reader
		if i%2 == 1 {
			body = strings.NewReader("a body")
		}
		c.begin(fmt.Sprintf("/%d", i), body)
		poll(t, patience, "the call to be where it belongs", func() bool {
			return len(one.arrived)+len(two.arrived)+int(d.queued("main")) == i+1
		})
	}
	require.Equal(t, 8, len(one.arrived)+len(two.arrived))
	require.Equal(t, 12, d.listed("b1").Queued)
	for range 4 {
		<-one.arrived
		<-two.arrived
	}
	for i := range 20 { // a slot that comes free is for whoever came first
		if i%2 == 0 {
			one.release <- struct{}{}
		} else {
			two.release <- struct{}{}
		}
		if i >= 12 {
			continue
		}
		select {
		case path := <-one.arrived:
			require.Equal(t, fmt.Sprintf("/%d", i+8), path)
		case path := <-two.arrived:
			require.Equal(t, fmt.Sprintf("/%d", i+8), path)
		}
	}
	c.answers.Wait()
	for i := range 20 {
		require.Equal(t, 200, c.status[fmt.Sprintf("/%d", i)])
	}
	require.Equal(t, 4, one.most)
	require.Equal(t, 4, two.most)
	require.Equal(t, 12.0, d.metric("lb_queue_wait_seconds_count", "pool", "main"))
	require.Equal(t, 0, d.stop())
	waited := 0
	for _, line := range d.accessLog() {
		if line["queue_ms"].(float64) > 0 {
			waited++
		}
	}
	require.Equal(t, 12, waited)
}

// Promise: a killed backend, a caller that leaves and a call whose time is over
// each free their slot, and whoever waits gets it.
func TestWhatFreesASlot(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		path string
		end  func(d *desk, leave context.CancelFunc)
	}{
		"the backend is killed":   {"/killed", func(d *desk, _ context.CancelFunc) { d.crash <- struct{}{} }},
		"the caller leaves":       {"/left", func(_ *desk, leave context.CancelFunc) { leave() }},
		"the call's time is over": {"/short/x", func(*desk, context.CancelFunc) {}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			desk := newDesk(t)
			d := start(t, limited("per_backend: 1, queue: { limit: 10, timeout: 30s }", desk.Addr))
			ctx, leave := context.WithCancel(context.Background())
			defer leave()
			left := make(chan struct{})
			go func() {
				defer close(left)
				req, _ := http.NewRequestWithContext(ctx, http.MethodPost, d.URL+test.path, bytes.NewReader([]byte("x")))
				if res, err := d.client.Do(req); err == nil {
					_ = res.Body.Close()
				}
			}()
			require.Equal(t, test.path, <-desk.arrived)
			c := &calls{d: d}
			c.begin("/next", nil)
			poll(t, patience, "the next call to wait", func() bool { return d.queued("main") == 1 || len(desk.arrived) == 1 })
			test.end(desk, leave)
			require.Equal(t, "/next", <-desk.arrived)
			poll(t, patience, "the backend to hear of it, too", func() bool { return desk.now() == 1 })
			desk.release <- struct{}{}
			c.answers.Wait()
			require.Equal(t, 200, c.status["/next"])
			<-left
			poll(t, patience, "nothing to be in flight", func() bool { return d.listed("b1").InFlight == 0 })
		})
	}
}

// Promise: whoever waits and leaves is taken out of the queue, with a small body
// or without one; a full queue and a wait that is too long are refused.
func TestTheQueueItself(t *testing.T) {
	t.Parallel()
	desk := newDesk(t)
	d := start(t, limited("per_backend: 1, queue: { limit: 2, timeout: 1s }", desk.Addr))
	c := &calls{d: d}
	c.begin("/first", nil)
	<-desk.arrived
	ctx, leave := context.WithCancel(context.Background())
	var gone sync.WaitGroup
	for _, body := range []io.Reader{http.NoBody, strings.NewReader("a body")} {
		gone.Go(func() {
			req, _ := http.NewRequestWithContext(ctx, http.MethodPost, d.URL+"/left", body)
			_, err := d.client.Do(req)
			require.ErrorIs(t, err, context.Canceled)
		})
	}
	poll(t, patience, "both to wait", func() bool { return d.queued("main") == 2 })
	requireDetail(t, d.get("/third"), 503, "queue_full", "queue.limit")
	leave()
	gone.Wait()
	poll(t, patience, "nobody to wait", func() bool { return d.queued("main") == 0 })
	requireDetail(t, d.get("/patient"), 503, "queue_timeout", "queue.timeout")
	desk.release <- struct{}{}
	c.answers.Wait()
	require.Empty(t, desk.arrived, "who left or was refused did not come")
	require.Equal(t, 1.0, d.metric("lb_refused_total", "pool", "main", "code", "queue_full"))
	require.Equal(t, 1.0, d.metric("lb_refused_total", "pool", "main", "code", "queue_timeout"))
	require.Equal(t, 0, d.stop())
	left := 0
	for _, line := range d.accessLog() {
		if line["path"] == "/left" {
			left++
			require.Equal(t, "client_closed", line["code"])
			require.Equal(t, 499.0, line["status"])
		}
	}
	require.Equal(t, 2, left)
}

// Promise: delivery attempts take slots as requests do, and wait for them.
func TestDeliveriesTakeSlots(t *testing.T) {
	t.Parallel()
	desk := newDesk(t)
	d := start(t, limited("per_backend: 1, queue: { limit: 10, timeout: 30s }", desk.Addr))
	c := &calls{d: d}
	c.begin("/read", nil)
	require.Equal(t, "/read", <-desk.arrived)
	c.begin("/write", strings.NewReader("x"))
	poll(t, patience, "the write to be admitted", func() bool {
		return d.metric("lb_fanout_deliveries", "pool", "main", "state", "pending") == 1
	})
	poll(t, patience, "the delivery to wait", func() bool { return d.listed("b1").Queued == 1 })
	c.begin("/later", nil)
	poll(t, patience, "a read to wait behind it", func() bool { return d.queued("main") == 1 })
	for _, path := range []string{"/write", "/later"} {
		desk.release <- struct{}{}
		require.Equal(t, path, <-desk.arrived)
	}
	desk.release <- struct{}{}
	c.answers.Wait()
	require.Equal(t, map[string]int{"/read": 200, "/write": 201, "/later": 200}, c.status)
	require.Equal(t, 1, desk.most)
	require.Equal(t, 1.0, d.metric("lb_fanout_attempts_total", "pool", "main", "backend", "b1"), "waiting is no attempt")
}
