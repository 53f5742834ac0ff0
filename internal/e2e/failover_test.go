package e2e

import (
	"bytes"
	"crypto/rand"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/admin"
)

// instance returns what /instances says of one backend.
func (d *daemon) instance(id string) admin.Instance {
	d.t.Helper()
	var all []admin.Instance
	d.get(d.Admin+"/instances").json(d.t, &all)
	for _, i := range all {
		if i.ID == id {
			return i
		}
	}
	require.FailNow(d.t, "no instance "+id)
	return admin.Instance{}
}

// requireProblem checks an error of lb's own making.
func requireProblem(t testing.TB, a answer, status int, code string) {
	t.Helper()
	require.Equal(t, status, a.Status, a.Body)
	require.Equal(t, code, a.Header.Get("X-LB-Error"))
	require.Equal(t, "application/problem+json", a.Header.Get("Content-Type"))
	var doc struct {
		Type, Title, Detail, Code string
		Status                    int
		RequestID                 string `json:"request_id"`
	}
	a.json(t, &doc)
	require.Equal(t, status, doc.Status)
	require.Equal(t, code, doc.Code)
	require.NotEmpty(t, doc.Type)
	require.NotEmpty(t, doc.Title)
	require.NotEmpty(t, doc.Detail)
	require.Equal(t, a.Header.Get("X-Request-Id"), doc.RequestID)
	retryAfter := a.Header.Get("Retry-After")
	if status == http.StatusServiceUnavailable {
		require.Regexp(t, `^[1-9][0-9]*$`, retryAfter)
	} else {
		require.Empty(t, retryAfter)
	}
}

// Promise: with one backend stopped no read fails, and the backend is seen to
// be out, everywhere, at once; when it is back, so is its share.
func TestOneBackendStopped(t *testing.T) {
	t.Parallel()
	servers, addresses := demoBackends(t, false)
	d := start(t, proxyAll("", addresses...))
	for range 6 { // connections to all of them are kept
		require.Equal(t, http.StatusOK, d.get("/login").Status)
	}
	servers[1].stop()
	var failed atomic.Int32
	var running sync.WaitGroup
	for range 8 {
		running.Go(func() {
			for range 25 {
				if d.get("/login").Status != http.StatusOK {
					failed.Add(1)
				}
			}
		})
	}
	running.Wait()
	require.Zero(t, failed.Load(), "of 200 requests")

	out := d.instance("b2")
	require.Equal(t, "ejected", out.State)
	require.False(t, out.Eligible)
	require.NotEmpty(t, out.Reasons)
	var health admin.Health
	h := d.get(d.Admin + "/health")
	require.Equal(t, http.StatusOK, h.Status, "two others are eligible")
	h.json(t, &health)
	require.Equal(t, 2, health.Pools[0].Eligible)
	require.Equal(t, "ejected", health.Pools[0].Backends[1].State)
	require.Equal(t, 1.0, d.metric("lb_backend_state", "backend", "b2", "state", "ejected"))
	require.Equal(t, 0.0, d.metric("lb_backend_state", "backend", "b2", "state", "up"))
	require.Positive(t, d.metric("lb_retries_total", "outcome", "redispatched"))
	requireTold(t, d, "b2", "up", "ejected", 1)

	servers[1].restart()
	poll(t, patience, "the backend to serve again", func() bool {
		return strings.Contains(d.get("/login").Body, "server2")
	})
	require.Equal(t, "up", d.instance("b2").State)
	requireTold(t, d, "b2", "trial", "up", 1)
	before := d.metric("lb_backend_requests_total", "backend", "b2", "outcome", "success")
	for range rounds {
		d.get("/login")
	}
	require.Equal(t, before+rounds/3, d.metric("lb_backend_requests_total", "backend", "b2", "outcome", "success"))
}

// requireTold checks how often the log told of a change of state. The line may
// come a moment after the change can be seen.
func requireTold(t *testing.T, d *daemon, id, from, to string, times int) {
	t.Helper()
	n := 0
	poll(t, patience, id+" from "+from+" to "+to+" in the log", func() bool {
		n = 0
		for _, e := range d.events("backend changed state") {
			if e["backend"] == id && e["from"] == from && e["to"] == to {
				n++
			}
		}
		return n >= times
	})
	require.Equal(t, times, n, "%s from %s to %s", id, from, to)
}

// Promise: a dial that failed sent nothing, so a plain POST goes on to the
// next backend, whole, and outside of attempts and budget.
func TestRedispatchCarriesTheWholeBody(t *testing.T) {
	t.Parallel()
	content := make([]byte, 1<<20)
	_, _ = rand.Read(content)
	for name, length := range map[string]int64{"of known length": 1 << 20, "chunked": -1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := always(http.StatusCreated)
			d := start(t, listeners+pools(", retry_budget: { ratio: 0, per_second: 0 }", deadAddress(t), deadAddress(t), backend(t, up))+
				"routes: [{ name: all, match: {}, proxy: { pool: main, retry: { attempts: 0 } } }]")
			req, err := http.NewRequest(http.MethodPost, d.URL+"/upload", bytes.NewReader(content))
			require.NoError(t, err)
			req.ContentLength, req.GetBody = length, nil
			res, err := d.client.Do(req)
			require.NoError(t, err)
			require.NoError(t, res.Body.Close())
			require.Equal(t, http.StatusCreated, res.StatusCode)
			require.Len(t, up.all(), 1)
			require.True(t, up.all()[0].Body == string(content), "the body is the client's")
			require.Positive(t, d.metric("lb_retries_total", "outcome", "redispatched"))
			require.Zero(t, d.metric("lb_retries_total", "outcome", "retried"))
		})
	}
}

// Promise: with every backend down the answer is 503 no_backend, says when to
// come back, and hurts nobody who comes later.
func TestEveryBackendDown(t *testing.T) {
	t.Parallel()
	servers, addresses := demoBackends(t, false)
	d := start(t, proxyAll("", addresses...))
	for _, s := range servers {
		s.stop()
	}
	for range 5 {
		requireProblem(t, d.get("/login"), http.StatusServiceUnavailable, "no_backend")
	}
	health := d.get(d.Admin + "/health")
	require.Equal(t, http.StatusServiceUnavailable, health.Status, "the route is required")
	require.NotEmpty(t, health.Header.Get("Retry-After"))
	for _, s := range servers {
		s.restart()
	}
	// Those that are merely ejected serve when there is nobody else.
	require.Equal(t, http.StatusOK, d.get("/login").Status)
}

// Promise: a client that leaves takes no backend out.
func TestClientThatLeavesEjectsNobody(t *testing.T) {
	t.Parallel()
	asked, release := make(chan struct{}, 1), make(chan struct{})
	d := start(t, proxyAll("", backend(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		select {
		case <-r.Context().Done(): // lb passed the departure on
		case <-release:
		}
	}))))
	defer close(release)
	c := d.raw(t, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
	<-asked
	require.NoError(t, c.Close())
	poll(t, patience, "the request to end", func() bool { return d.metric("lb_requests_total", "code", "499") == 1 })
	require.Equal(t, "up", d.instance("b1").State)
	require.Equal(t, 0.0, d.metric("lb_backend_in_flight"))
	poll(t, patience, "the access line", func() bool { return len(d.accessLog()) == 1 })
	require.Equal(t, "client_closed", d.accessLog()[0]["code"])
}

// Promise: a route's timeout that ran out takes no backend out, be it while
// the backend thinks or while it cannot be reached in time.
func TestRouteTimeoutEjectsNobody(t *testing.T) {
	t.Parallel()
	for name, address := range map[string]string{
		"no head":       rawBackend(t, waitForClose).Addr,
		"no connection": fullBacklog(t),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := start(t, proxyAll(", timeout: 150ms", address))
			requireProblem(t, d.get("/"), http.StatusGatewayTimeout, "backend_timeout")
			require.Equal(t, "up", d.instance("b1").State)
			require.Empty(t, d.events("backend changed state"))
		})
	}
}

// Promise: each answer of lb's own while a backend misbehaves is for that one
// request: the rotation goes on.
func TestRequestsAfterATimeoutAreServed(t *testing.T) {
	t.Parallel()
	d := start(t, proxyAll(", timeout: 150ms, retry: { attempts: 0 }", rawBackend(t, waitForClose).Addr, backend(t, always(http.StatusOK))))
	for range 3 {
		require.Equal(t, http.StatusGatewayTimeout, d.get("/").Status)
		require.Equal(t, http.StatusOK, d.get("/").Status)
	}
	poll(t, patience, "the leases to end", func() bool { return d.metric("lb_backend_in_flight") == 0 })
}

// Promise: a dial that takes longer than `connect` is the backend's fault.
func TestConnectTimeoutEjects(t *testing.T) {
	t.Parallel()
	d := start(t, listeners+pools(", transport: { connect: 100ms }", fullBacklog(t), backend(t, always(http.StatusOK)))+
		"routes: [{ name: all, match: {}, proxy: { pool: main } }]")
	began := time.Now()
	require.Equal(t, http.StatusOK, d.get("/").Status)
	require.Less(t, time.Since(began), patience/2)
	require.Equal(t, "ejected", d.instance("b1").State)
}
