package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// soon is how long a test lets pass for what must not wait for a longer
// setting, which is minutes away or never comes.
const soon = 5 * time.Second

// stalling answers with these bytes, if any, and then neither says more nor
// hangs up.
func stalling(t testing.TB, said string) *rawServer {
	return rawBackend(t, func(conn net.Conn) {
		if readHead(conn) {
			_, _ = io.WriteString(conn, said)
			waitForClose(conn)
		}
	})
}

// Promise: an answer of lb's own waits no longer than body_idle for a body that
// nobody reads, and then the connection ends.
func TestOwnAnswersDoNotWaitForBodies(t *testing.T) {
	t.Parallel()
	big := strings.Repeat("x", 100_000)
	d := start(t, withListener(listeners, "timeouts: { body_idle: 300ms }")+`routes:
  - { name: metrics, match: { path: /metrics }, metrics: true }
  - { name: big, match: { path: /big }, respond: { status: 200, body: `+big+` } }
`)
	began := time.Now()
	paused := make(map[string][]*rawConn)
	for _, path := range []string{"/metrics", "/big", "/nowhere"} {
		for _, framing := range []string{"Content-Length: 10\r\n\r\n", "Content-Length: 10\r\n\r\nbegin", te + "\r\n\r\n5\r\nbe"} {
			paused[path] = append(paused[path], d.raw(t, "GET "+path+" HTTP/1.1\r\nHost: x\r\n"+framing))
		}
	}
	for path, conns := range paused {
		for _, c := range conns {
			a, err := c.final(http.MethodGet)
			require.NoError(t, err, path)
			require.True(t, path != "/big" || a.Body == big)
			require.True(t, a.Close)
			c.closed()
		}
	}
	require.Less(t, time.Since(began), soon)
	c := d.raw(t, "GET /big HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nwhole")
	a, err := c.final(http.MethodGet)
	require.NoError(t, err)
	require.False(t, a.Close, "whoever sends its body keeps its connection")
	require.Equal(t, http.StatusOK, c.ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").Status)
}

// Promise: nor does it wait at all for a body that is too long to be worth it.
func TestOwnAnswersDoNotWaitForHugeBodies(t *testing.T) {
	t.Parallel()
	d := start(t, listeners+"routes: [{ name: own, match: { path: /own }, respond: { status: 200, body: mine } }]\n")
	for _, path := range []string{"/own", "/nowhere"} {
		began := time.Now()
		a, err := d.raw(t, "POST "+path+" HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000000\r\n\r\nbegin").final(http.MethodPost)
		require.NoError(t, err, path)
		require.True(t, a.Close)
		require.Less(t, time.Since(began), soon)
	}
}

// Promise: a response that is given up for a retry takes nothing of its time,
// however slow its body is; and the route's timeout goes on.
func TestStalledAnswersDoNotHoldUpTheRetry(t *testing.T) {
	t.Parallel()
	stalled := head(503, "Content-Length: 10") + "abc"
	t.Run("the other answers", func(t *testing.T) {
		t.Parallel()
		one := stalling(t, stalled)
		d := start(t, proxyAll(", timeout: 1s", one.Addr, saying(t, 0, head(200, "Content-Length: 2")+"ok").Addr))
		began := time.Now()
		require.Equal(t, "ok", d.get("/").Body)
		require.Less(t, time.Since(began), time.Second)
		require.Equal(t, 1, arrivals(one))
		require.Equal(t, 1.0, d.metric("lb_retries_total", "outcome", "retried"))
		require.Equal(t, 1.0, d.metric("lb_backend_requests_total", "backend", "b1", "outcome", "failure"))
	})
	t.Run("the other is silent", func(t *testing.T) {
		t.Parallel()
		one, two := stalling(t, stalled), stalling(t, "")
		d := start(t, proxyAll(", timeout: 500ms", one.Addr, two.Addr))
		began := time.Now()
		requireProblem(t, d.get("/"), http.StatusGatewayTimeout, "backend_timeout")
		require.Less(t, time.Since(began), soon)
		require.Equal(t, []int{1, 1}, []int{arrivals(one), arrivals(two)})
		requireIdle(t, d)
	})
}

// Promise: the route's timeout holds also while the client pauses in its body,
// which is not what the client is told to have done wrong.
func TestTimeoutWhileTheClientPauses(t *testing.T) {
	t.Parallel()
	d := start(t, proxyAll(", timeout: 300ms", stalling(t, "").Addr))
	for i, request := range []string{
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc", "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc",
		"POST / HTTP/1.1\r\nHost: x\r\n" + te + "\r\n\r\n3\r\nabc\r\n",
	} {
		began := time.Now()
		a, err := d.raw(t, request).final(http.MethodPost)
		require.NoError(t, err)
		requireProblem(t, a, http.StatusGatewayTimeout, "backend_timeout")
		require.True(t, a.Close)
		require.Less(t, time.Since(began), soon)
		requireIdle(t, d)
		require.Equal(t, float64(i+1), d.metric("lb_backend_requests_total", "outcome", "timeout"))
	}
	require.Zero(t, d.metric("lb_backend_requests_total", "outcome", "client_fault"))
	require.Equal(t, "up", d.instance("b1").State)
}

// Promise: clients that send slowly open no breaker, though their time runs out;
// a backend that takes no body, or has it and does not answer, does.
func TestSlowUploadsOpenNoBreaker(t *testing.T) {
	t.Parallel()
	const begun = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc"
	silent := func(t testing.TB) string { return stalling(t, "").Addr }
	deaf := func(t testing.TB) string {
		over := make(chan struct{})
		b := rawBackend(t, func(conn net.Conn) {
			readHead(conn)
			<-over
		})
		t.Cleanup(func() { close(over) })
		return b.Addr
	}
	for name, c := range map[string]struct {
		request string
		backend func(testing.TB) string
		opens   bool
	}{
		"paused":            {begun, silent, false},
		"paused in a chunk": {"PUT / HTTP/1.1\r\nHost: x\r\n" + te + "\r\n\r\n9\r\nabc", silent, false},
		"whole":             {begun + strings.Repeat("x", 97), silent, true},
		"not taken": {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n" + strings.Repeat("x", 20_000_000),
			deaf, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := start(t, listeners+pools(", breaker: { consecutive: 2 }", c.backend(t), c.backend(t))+
				"routes: [{ name: all, match: { path_prefix: / }, proxy: { pool: main, timeout: 300ms } }]\n")
			var clients []*rawConn
			for range 6 {
				client := d.raw(t, "")
				go func() { _, _ = io.WriteString(client, c.request) }() // ends with the connection
				clients = append(clients, client)
			}
			for _, client := range clients {
				a, err := client.final(http.MethodPost)
				require.NoError(t, err)
				requireProblem(t, a, http.StatusGatewayTimeout, "backend_timeout")
			}
			requireIdle(t, d)
			require.Equal(t, c.opens, d.metric("lb_breaker_state") > 0)
			require.Equal(t, c.opens, d.backendHealth("b1").ErrorRate+d.backendHealth("b2").ErrorRate > 0)
			require.Equal(t, 6.0, d.metric("lb_backend_requests_total", "outcome", "timeout"))
		})
	}
}

// fanoutAttempts returns how many attempts at b1 ended in that way.
func (d *daemon) fanoutAttempts(outcome string) float64 {
	d.t.Helper()
	return d.metric("lb_fanout_attempts_total", "backend", "b1", "outcome", outcome)
}

// Promise: an attempt whose time ran out after it was sent may have had an
// effect: the write is not rejected, whatever the others say, and the backend
// counts as reachable.
func TestAttemptTimeoutIsNoProofOfAbsence(t *testing.T) {
	t.Parallel()
	hanging := stalling(t, "")
	d := start(t, fanoutAll(", wait: 700ms, attempt_timeout: 100ms", hanging.Addr, backend(t, always(http.StatusUnprocessableEntity))))
	a := d.do(http.MethodPost, "/x", strings.NewReader("x"))
	require.Equal(t, http.StatusAccepted, a.Status, a.Body)
	require.Equal(t, "0/2", a.Header.Get("X-LB-Acked"))
	require.Contains(t, a.Body, `"state":"pending"`)
	require.Contains(t, a.Body, `"last_status":422`)
	poll(t, patience, "an attempt to be counted", func() bool { return d.fanoutAttempts("timeout") > 0 })
	require.Zero(t, d.fanoutAttempts("unsent"))
	require.Positive(t, arrivals(hanging))
	require.Equal(t, "up", d.instance("b1").State)
	require.Empty(t, d.events("backend changed state"))
}

// Promise: connect ejection is for dials that failed or took longer than
// `connect`, not for those that an attempt had no time for.
func TestAttemptTimeoutEjectsNobody(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ attempt, connect, state string }{
		"the attempt's time is over": {"100ms", "1m", "up"},
		"connect is over":            {"1m", "100ms", "ejected"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := start(t, listeners+pools(", transport: { connect: "+c.connect+" }", fullBacklog(t), backend(t, always(http.StatusCreated)))+
				"routes: [{ name: write, match: { methods: [POST] }, fanout: { pool: main, wait: 0s, attempt_timeout: "+c.attempt+" } }]\n")
			require.Equal(t, http.StatusAccepted, d.do(http.MethodPost, "/x", strings.NewReader("x")).Status)
			poll(t, patience, "an attempt to be given up", func() bool { return d.fanoutAttempts("unsent") > 0 })
			poll(t, patience, c.state, func() bool { return d.instance("b1").State == c.state })
			require.Len(t, d.events("backend changed state"), strings.Count(c.state, "ejected"))
		})
	}
}

// Promise: the drain reaches answers whose requests came before it: they end
// their connections, and the daemon does not wait for more.
func TestStopReachesAnswersUnderWay(t *testing.T) {
	t.Parallel()
	came, release := make(chan struct{}), make(chan struct{})
	d := start(t, draining("1m", backend(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/held" {
			close(came)
			<-release
		}
		_, _ = io.WriteString(w, "ok")
	}))))
	c := d.raw(t, "GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
	<-came
	d.terminate()
	poll(t, patience, "the drain to begin", func() bool { return d.get("/").Close })
	d.client.CloseIdleConnections()
	close(release)
	a, err := c.final(http.MethodGet)
	require.NoError(t, err)
	require.Equal(t, "ok", a.Body)
	require.True(t, a.Close)
	began := time.Now()
	require.Zero(t, d.wait())
	require.Less(t, time.Since(began), soon)
}

// Promise: a tunnel ends with its client, also if the backend does not care,
// and leaves nothing behind.
func TestTunnelsEndThoughTheBackendStays(t *testing.T) {
	t.Parallel()
	stay := make(chan struct{})
	b := rawBackend(t, func(conn net.Conn) {
		if readHead(conn) {
			_, _ = io.WriteString(conn, head(101, "Connection: Upgrade", "Upgrade: websocket")+"hello ")
			<-stay
		}
	})
	t.Cleanup(func() { close(stay) }) // before rawBackend waits for its connections
	d := start(t, proxyAll("", b.Addr))
	open := func() *rawConn {
		c := d.raw(t, handshake)
		require.Equal(t, http.StatusSwitchingProtocols, c.head(http.MethodGet).StatusCode)
		requireNext(t, c, "hello ")
		return c
	}
	first := open()
	var more []*rawConn
	for range 5 {
		more = append(more, open())
	}
	with := d.descriptors(t)
	for _, c := range more {
		_ = c.Close()
	}
	poll(t, patience, "their descriptors to be free, two each", func() bool { return d.descriptors(t) <= with-10 })
	poll(t, patience, "their leases to end", func() bool { return d.metric("lb_backend_in_flight") == 1 })
	_ = first.Close()
	requireIdle(t, d)
}

// descriptors counts the sockets that the daemon has open.
func (d *daemon) descriptors(t testing.TB) (n int) {
	dir := fmt.Sprintf("/proc/%d/fd", d.cmd.Process.Pid)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		if link, err := os.Readlink(dir + "/" + e.Name()); err == nil && strings.HasPrefix(link, "socket:") {
			n++
		}
	}
	return n
}

// Promise: a backend that answers before the request's end gets that end all
// the same, byte for byte.
func TestUploadsGoOnBehindTheAnswer(t *testing.T) {
	t.Parallel()
	uploads := make(chan string, 1)
	b := rawBackend(t, func(conn net.Conn) {
		req, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil {
			return
		}
		_, _ = io.WriteString(conn, head(200, te, "Connection: close")+"5\r\nearly\r\n")
		body, err := io.ReadAll(req.Body)
		uploads <- fmt.Sprint(string(body), err)
		_, _ = io.WriteString(conn, "3\r\nend\r\n0\r\n\r\n")
	})
	d := start(t, proxyAll("", b.Addr))
	for range 5 {
		c := d.raw(t, "POST / HTTP/1.1\r\nHost: x\r\n"+te+"\r\n\r\n")
		res := c.head(http.MethodPost)
		requireNext(t, res.Body, "early")
		var sent strings.Builder
		for i := range 300 {
			piece := fmt.Sprintf("<%d %s>", i, strings.Repeat("x", i))
			sent.WriteString(piece)
			c.send(fmt.Sprintf("%x\r\n%s\r\n", len(piece), piece))
		}
		c.send("0\r\n\r\n")
		require.Equal(t, sent.String()+"<nil>", <-uploads)
		rest, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.Equal(t, "end", string(rest))
	}
}
