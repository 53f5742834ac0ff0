package e2e

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Promise: a backend that hangs up in the middle of an upload is to blame for
// it, not the client that sends what it has; and the client need not go on to
// the end before it hears.
func TestBackendThatHangsUpDuringAnUpload(t *testing.T) {
	t.Parallel()
	gone := make(chan struct{})
	d := start(t, proxyAll("", rawBackend(t, func(conn net.Conn) {
		if readHead(conn) {
			_ = conn.Close()
			gone <- struct{}{}
		}
	}).Addr))
	for _, upload := range []struct{ framing, rest string }{
		{"Content-Length: 100\r\n\r\nabc", strings.Repeat("x", 97)},
		{te + "\r\n\r\n3\r\nabc\r\n", "1\r\nx\r\n0\r\n\r\n"},
		{"Content-Length: 100\r\n\r\nabc", "x"},
		{te + "\r\n\r\n3\r\nabc\r\n", "1\r\nx\r\n"},
	} {
		c := d.raw(t, "POST / HTTP/1.1\r\nHost: x\r\n"+upload.framing)
		<-gone
		c.send(upload.rest)
		a, err := c.final(http.MethodPost)
		require.NoError(t, err)
		requireProblem(t, a, http.StatusBadGateway, "backend_reset")
		_ = c.Close()
	}
	requireIdle(t, d)
	require.Equal(t, 4.0, d.metric("lb_backend_requests_total", "outcome", "reset"))
	require.Equal(t, "up", d.instance("b1").State, "it was reached")
	d.stop()
	for _, line := range d.accessLog() {
		require.Equal(t, "backend_reset", line["code"])
	}
}

// once serves one request of each connection, and hangs up upon the second:
// what a kept connection is like whose backend has restarted.
func once(t testing.TB, status int) *rawServer {
	return rawBackend(t, func(conn net.Conn) {
		if readHead(conn) {
			_, _ = io.WriteString(conn, head(status, "Content-Length: 0"))
			readHead(conn)
		}
	})
}

// Promise: a request that may be repeated does not notice that its kept
// connection was dead; a POST is not sent a second time.
func TestDeadKeptConnections(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		request      string
		status, sent int
	}{
		"GET":                     {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200, 2},
		"POST":                    {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 502, 1},
		"POST in chunks":          {"POST / HTTP/1.1\r\nHost: x\r\n" + te + "\r\n\r\n" + chunked("hello"), 502, 1},
		"POST with a key":         {"POST / HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k\r\nContent-Length: 5\r\n\r\nhello", 502, 1},
		"POST with a key, empty":  {"POST / HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k\r\nContent-Length: 0\r\n\r\n", 502, 1},
		"PATCH with another key":  {"PATCH / HTTP/1.1\r\nHost: x\r\nX-Idempotency-Key: k\r\n\r\n", 502, 1},
		"POST of an empty upload": {"POST / HTTP/1.1\r\nHost: x\r\n" + te + "\r\n\r\n0\r\n\r\n", 502, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := once(t, http.StatusOK)
			d := start(t, proxyAll(", retry: { attempts: 0 }", b.Addr))
			require.Equal(t, http.StatusOK, d.get("/").Status)
			require.Equal(t, c.status, d.raw(t, "").ask(c.request).Status)
			require.Equal(t, 1+c.sent, arrivals(b))
			require.Equal(t, 2, strings.Count(b.received()[0], " HTTP/1.1\r\n"), "the kept connection was used")
		})
	}
}

// Promise: a delivery is sent as often as its attempts are counted, also when
// its kept connection is dead and net/http would repeat it.
func TestDeliveriesOnDeadKeptConnections(t *testing.T) {
	t.Parallel()
	b := once(t, http.StatusCreated)
	d := start(t, listeners+pools("", b.Addr)+
		"routes: [{ name: write, match: { methods: [DELETE] }, fanout: { pool: main, wait: 200ms, backoff: { base: 1m, cap: 1m } } }]\n")
	require.Equal(t, http.StatusCreated, d.do(http.MethodDelete, "/warm", nil).Status)
	a := d.do(http.MethodDelete, "/x", nil)
	require.Equal(t, http.StatusAccepted, a.Status)
	require.Contains(t, a.Body, `"attempts":1`)
	require.Equal(t, 2, arrivals(b))
	require.Equal(t, 2, strings.Count(b.received()[0], " HTTP/1.1\r\n"), "the kept connection was used")
	require.Equal(t, 1.0, d.fanoutAttempts("reset"))
	require.Equal(t, 1.0, d.fanoutAttempts("success"))
}

// Promise: where lb says how a write went, no backend speaks in its place.
func TestBackendsDoNotSpeakForLB(t *testing.T) {
	t.Parallel()
	d := start(t, fanoutAll("", backendThatSays(t, func(*http.Request) string {
		return head(201, "X-LB-Acked: 99/99", "x-lb-acked: 98/98", "X-Lb-Fanout-Id: spoof", "X-Kept: 1", "Content-Length: 0")
	})))
	a := d.do(http.MethodPost, "/x", strings.NewReader("x"))
	require.Equal(t, http.StatusCreated, a.Status)
	require.Equal(t, []string{"1/1"}, a.Header.Values("X-LB-Acked"))
	require.Len(t, a.Header.Values("X-LB-Fanout-Id"), 1)
	require.Equal(t, http.StatusOK, d.get("/.lb/fanout/"+a.Header.Get("X-LB-Fanout-Id")).Status)
	require.Equal(t, "1", a.Header.Get("X-Kept"))
}

// Promise: the access log tells also of a refused request where it went, but
// not its query.
func TestRefusedRequestsKeepTheirPlaceInTheLog(t *testing.T) {
	t.Parallel()
	d := start(t, proxyAll("", backend(t, always(http.StatusOK))))
	rows := []struct{ line, more, host, path, code string }{
		{"TRACE /abc?secret=1", "", "h.example", "/abc", "method_not_allowed"},
		{"GET /a#b", "", "h.example", "/a#b", "bad_request"},
		{"GET /a/../b?secret=1", "", "h.example", "/a/../b", "bad_request"},
		{"GET /many?secret=1", strings.Repeat("X-A: a\r\n", 101), "h.example", "/many", "header_too_large"},
		{"GET /odd?secret=1", "", "h..example:x", "/odd", "bad_request"},
	}
	for _, row := range rows {
		a := d.raw(t, "").ask(row.line + " HTTP/1.1\r\nHost: " + row.host + "\r\nConnection: close\r\n" + row.more + "\r\n")
		require.Equal(t, row.code, a.Header.Get("X-LB-Error"), row.line)
	}
	d.stop()
	require.NotContains(t, d.stdout.String(), "secret")
	lines := d.accessLog()
	require.Len(t, lines, len(rows))
	for i, row := range rows {
		require.Equal(t, []any{row.host, row.path, row.code}, []any{lines[i]["host"], lines[i]["path"], lines[i]["code"]})
	}
}

// Promise: a key that the client named in Connection was meant for lb's
// connection alone, and makes no request repeatable.
func TestKeyOfTheConnectionIsNone(t *testing.T) {
	t.Parallel()
	b := always(http.StatusCreated)
	d := start(t, fanoutAll("", backend(t, b)))
	require.Equal(t, http.StatusCreated, d.raw(t, "").ask(
		"POST /x HTTP/1.1\r\nHost: x\r\nConnection: Idempotency-Key\r\nIdempotency-Key: a\r\nIdempotency-Key: b\r\nContent-Length: 0\r\n\r\n").Status)
	got := b.all()[0].Header
	require.Equal(t, got["X-Lb-Fanout-Id"], got["Idempotency-Key"])

	one, two := saying(t, len("hello"), ""), saying(t, len("hello"), "")
	d = start(t, proxyAll(", retry: { keyed: true }", one.Addr, two.Addr))
	requireProblem(t, d.raw(t, "").ask(
		"POST /x HTTP/1.1\r\nHost: x\r\nConnection: idempotency-key\r\nIdempotency-Key: a\r\nContent-Length: 5\r\n\r\nhello"), http.StatusBadGateway, "backend_reset")
	require.Equal(t, 1, arrivals(one, two))
}
