package e2e

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

const rounds = 30

// loginConfig reads as the demo does: /login is tried once more on a 500.
func loginConfig(addresses []string) string {
	return proxyAll(`, retry: { on: [reset, "500", "502", "503", "504"] }`, addresses...)
}

// Promise: reads go to the backends in strict rotation.
func TestRotationIsExact(t *testing.T) {
	t.Parallel()
	_, addresses := demoBackends(t, false)
	d := start(t, loginConfig(addresses))
	for i := range rounds {
		a := d.get("/login")
		require.Equal(t, http.StatusOK, a.Status)
		require.Equal(t, fmt.Sprintf("logged in on server%d\n", i%3+1), a.Body, "request %d", i)
	}
	requireEven(t, d, rounds/3)
}

// Promise: the rotation is one for all clients, however they connect.
func TestRotationIsSharedByAllConnections(t *testing.T) {
	t.Parallel()
	_, addresses := demoBackends(t, false)
	d := start(t, loginConfig(addresses))
	for i := range rounds { // each on a connection of its own
		c := d.raw(t, "GET /login HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		res := c.head(http.MethodGet)
		body := new(strings.Builder)
		require.NoError(t, res.Write(body))
		require.Contains(t, body.String(), fmt.Sprintf("logged in on server%d\n", i%3+1), "request %d", i)
	}
	requireEven(t, d, rounds/3)
}

// Promise: concurrent clients are spread evenly to the last request.
func TestRotationIsExactUnderConcurrency(t *testing.T) {
	t.Parallel()
	_, addresses := demoBackends(t, false)
	d := start(t, loginConfig(addresses))
	const clients, each = 8, 75
	var mu sync.Mutex
	seen := make(map[string]int)
	var running sync.WaitGroup
	for range clients {
		running.Go(func() {
			for range each {
				a := d.get("/login")
				mu.Lock()
				seen[a.Body]++
				mu.Unlock()
			}
		})
	}
	running.Wait()
	const share = clients * each / 3
	require.Equal(t, map[string]int{
		"logged in on server1\n": share, "logged in on server2\n": share, "logged in on server3\n": share,
	}, seen)
	requireEven(t, d, share)
}

func requireEven(t *testing.T, d *daemon, share float64) {
	t.Helper()
	for _, id := range []string{"b1", "b2", "b3"} {
		require.Equal(t, share, d.metric("lb_backend_requests_total", "backend", id, "outcome", "success"), id)
	}
}

// Promise: who reads never sees the flaky backend, and a retry takes nobody's
// turn: what follows it goes where it would have gone without it.
func TestRetryHidesTheFlakyBackend(t *testing.T) {
	t.Parallel()
	_, addresses := demoBackends(t, true)
	d := start(t, loginConfig(addresses))
	for i := range rounds {
		a := d.get("/login")
		require.Equal(t, http.StatusOK, a.Status, "request %d", i)
		turn := i%3 + 1
		if flakyTurns := i/3 + 1; turn == 3 && flakyTurns%5 == 0 {
			require.NotEqual(t, "logged in on server3\n", a.Body, "request %d", i)
			continue
		}
		require.Equal(t, fmt.Sprintf("logged in on server%d\n", turn), a.Body, "request %d", i)
	}
	require.Equal(t, 2.0, d.metric("lb_backend_requests_total", "backend", "b3", "outcome", "failure"))
	require.Equal(t, 2.0, d.metric("lb_retries_total", "outcome", "retried"))
	require.Equal(t, float64(rounds), d.metric("lb_requests_total", "code", "200"))
}

// Promise: HEAD is served where GET is, and takes its turn like one.
func TestHeadTakesATurn(t *testing.T) {
	t.Parallel()
	_, addresses := demoBackends(t, false)
	d := start(t, loginConfig(addresses))
	require.Equal(t, "logged in on server1\n", d.get("/login").Body)
	head := d.do(http.MethodHead, "/login", nil)
	require.Equal(t, http.StatusOK, head.Status)
	require.Equal(t, strconv.Itoa(len("logged in on server2\n")), head.Header.Get("Content-Length"))
	require.Empty(t, head.Body)
	require.Equal(t, "logged in on server3\n", d.get("/login").Body)
}

// Promise: every request leaves one access line, which names what served it.
func TestAccessLogTellsOfEachRequest(t *testing.T) {
	t.Parallel()
	_, addresses := demoBackends(t, false)
	d := start(t, loginConfig(addresses))
	a := d.get("/login?secret=1")
	require.Equal(t, http.StatusNotFound, d.get("/nothing").Status)
	d.stop()
	lines := d.accessLog()
	require.Len(t, lines, 2)
	first := lines[0]
	require.Equal(t, a.Header.Get("X-Request-Id"), first["request_id"])
	for name, want := range map[string]any{
		"method": "GET", "path": "/login", "status": 200.0, "route": "all", "pool": "main", "backend": "b1",
		"attempts": 1.0, "client": "127.0.0.1", "host": "127.0.0.1", "bytes_out": float64(len(a.Body)),
		"bytes_in": 0.0, "code": "", "queue_ms": 0.0, "generation": 1.0,
	} {
		require.Equal(t, want, first[name], name)
	}
	require.Contains(t, first, "time")
	require.Greater(t, first["duration_ms"], 0.0)
	require.Equal(t, "b2", lines[1]["backend"])
}
