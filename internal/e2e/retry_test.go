package e2e

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// saying is a raw backend that reads a request's head and so many bytes of
// body, writes what it has to say, and hangs up.
func saying(t testing.TB, body int, said string) *rawServer {
	return rawBackend(t, func(conn net.Conn) {
		if readHead(conn) && readBytes(conn, body) {
			_, _ = io.WriteString(conn, said)
		}
	})
}

// readHead reads a request's head, byte by byte so that nothing is lost.
func readHead(conn net.Conn) bool {
	var head []byte
	for b := make([]byte, 1); !strings.HasSuffix(string(head), "\r\n\r\n"); head = append(head, b[0]) {
		if _, err := conn.Read(b); err != nil {
			return false
		}
	}
	return true
}

func readBytes(conn net.Conn, n int) bool {
	_, err := io.CopyN(io.Discard, conn, int64(n))
	return err == nil
}

// arrivals counts the requests that came to any of the raw backends.
func arrivals(servers ...*rawServer) int {
	n := 0
	for _, s := range servers {
		for _, bytes := range s.received() {
			n += strings.Count(bytes, " HTTP/1.1\r\n")
		}
	}
	return n
}

// Promise: a request that may have had an effect is not sent twice: a plain
// POST never, one with a key only where the route says `keyed`.
func TestPostIsNeverSentTwice(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		method, retry string
		fields        []string
		sent          int
	}{
		"POST":                              {"POST", "keyed: false", nil, 1},
		"POST on a keyed route":             {"POST", "keyed: true", nil, 1},
		"PATCH":                             {"PATCH", "keyed: false", nil, 1},
		"POST with a key":                   {"POST", "keyed: false", []string{"Idempotency-Key", "k1"}, 1},
		"POST with a key on a keyed route":  {"POST", "keyed: true", []string{"Idempotency-Key", "k1"}, 2},
		"PATCH with a key on a keyed route": {"PATCH", "keyed: true", []string{"Idempotency-Key", "k1"}, 2},
		"PUT":                               {"PUT", "keyed: false", nil, 2},
		"PUT without attempts":              {"PUT", "attempts: 0", nil, 1},
		"PUT where reset is not retried":    {"PUT", `on: ["503"]`, nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			one, two := saying(t, len("hello"), ""), saying(t, len("hello"), "")
			d := start(t, proxyAll(", retry: { "+c.retry+" }", one.Addr, two.Addr))
			a := d.do(c.method, "/x", strings.NewReader("hello"), c.fields...)
			requireProblem(t, a, http.StatusBadGateway, "backend_reset")
			require.Equal(t, c.sent, arrivals(one, two))
			for _, bytes := range append(one.received(), two.received()...) {
				require.True(t, strings.HasSuffix(bytes, "\r\n\r\nhello"), "each attempt is whole: %q", bytes)
			}
			require.Equal(t, "up", d.instance("b1").State, "a reset is no failed dial")
		})
	}
}

// Promise: a kept connection that the backend has closed is no licence to
// send a POST again behind everybody's back.
func TestPostOnADeadKeptConnection(t *testing.T) {
	t.Parallel()
	// Each connection serves one GET, then takes one more request and dies.
	b := rawBackend(t, func(conn net.Conn) {
		if readHead(conn) {
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			readHead(conn)
		}
	})
	for name, fields := range map[string][]string{"without a body": {"Idempotency-Key", "k"}, "plain": nil} {
		t.Run(name, func(t *testing.T) {
			d := start(t, proxyAll("", b.Addr))
			before := arrivals(b)
			require.Equal(t, http.StatusOK, d.get("/").Status)
			requireProblem(t, d.do(http.MethodPost, "/x", nil, fields...), http.StatusBadGateway, "backend_reset")
			require.Equal(t, before+2, arrivals(b))
		})
	}
}

// Promise: statuses are retried as the route says, on another backend, and
// what the last one says is the answer.
func TestRetriedStatuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		method, retry string
		status        int
		answer        int
	}{
		"GET 503 by default":     {"GET", "", 503, 200},
		"HEAD 502 by default":    {"HEAD", "", 502, 200},
		"DELETE 504 by default":  {"DELETE", "", 504, 200},
		"OPTIONS 503 by default": {"OPTIONS", "", 503, 200},
		"GET 500 by default":     {"GET", "", 500, 500},
		"GET 500 if listed":      {"GET", `on: ["500"]`, 500, 200},
		"GET 503 if not listed":  {"GET", `on: ["500", reset]`, 503, 503},
		"GET 429 if listed":      {"GET", `on: ["429"]`, 429, 200},
		"POST 503":               {"POST", "", 503, 503},
		"GET 503, no attempts":   {"GET", "attempts: 0", 503, 503},
		"GET 503, empty list":    {"GET", "on: []", 503, 503},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad, good := always(c.status), always(http.StatusOK)
			d := start(t, proxyAll(", retry: { "+c.retry+" }", backend(t, bad), backend(t, good)))
			a := d.do(c.method, "/x?y", nil)
			require.Equal(t, c.answer, a.Status)
			require.Empty(t, a.Header.Get("X-LB-Error"), "it is a backend's answer")
			require.Len(t, bad.all(), 1)
			if c.answer != 200 {
				require.Empty(t, good.all())
				return
			}
			require.Len(t, good.all(), 1)
			require.Equal(t, c.method, good.all()[0].Method)
			require.Equal(t, "/x?y", good.all()[0].Target)
		})
	}
}

// Promise: a head that does not come in time is retried like a 504.
func TestHeadTimeoutIsRetried(t *testing.T) {
	t.Parallel()
	d := start(t, listeners+pools(", transport: { response_header: 100ms }", rawBackend(t, waitForClose).Addr, backend(t, always(http.StatusOK)))+
		"routes: [{ name: all, match: {}, proxy: { pool: main } }]")
	require.Equal(t, http.StatusOK, d.get("/").Status)
	require.Equal(t, 1.0, d.metric("lb_backend_requests_total", "backend", "b1", "outcome", "timeout"))
}

// Promise: `attempts` tries after the first, each on a backend of its own;
// redispatches after failed dials come on top.
func TestAttemptsAreTriesAfterTheFirst(t *testing.T) {
	t.Parallel()
	for attempts, want := range []int{1, 2, 3, 3} { // there are three that answer
		l := always(http.StatusServiceUnavailable)
		d := start(t, proxyAll(", retry: { attempts: "+string(rune('0'+attempts))+" }",
			deadAddress(t), backend(t, l), backend(t, l), backend(t, l)))
		a := d.get("/")
		require.Equal(t, http.StatusServiceUnavailable, a.Status)
		require.Empty(t, a.Header.Get("X-LB-Error"), "the last backend's answer is passed on")
		require.Len(t, l.all(), want, "attempts: %d", attempts)
	}
}

// Promise: nothing is retried once anything of a response went to the client.
func TestNoRetryAfterAByteWentDown(t *testing.T) {
	t.Parallel()
	t.Run("1xx", func(t *testing.T) {
		t.Parallel()
		one, two := saying(t, 0, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"), always(http.StatusOK)
		d := start(t, proxyAll("", one.Addr, backend(t, two)))
		c := d.raw(t, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		hint := c.head(http.MethodGet)
		require.Equal(t, http.StatusEarlyHints, hint.StatusCode)
		require.Equal(t, "</a>", hint.Header.Get("Link"))
		require.Equal(t, http.StatusBadGateway, c.head(http.MethodGet).StatusCode)
		require.Empty(t, two.all())
	})
	t.Run("body", func(t *testing.T) {
		t.Parallel()
		one, two := saying(t, 0, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"), always(http.StatusOK)
		d := start(t, proxyAll("", one.Addr, backend(t, two)))
		c := d.raw(t, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		res := c.head(http.MethodGet)
		require.Equal(t, http.StatusOK, res.StatusCode)
		body, err := io.ReadAll(res.Body)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF, "a broken answer must look broken")
		require.Equal(t, "half", string(body))
		require.Empty(t, two.all())
		poll(t, patience, "the access line", func() bool { return len(d.accessLog()) == 1 })
		require.Equal(t, "backend_reset", d.accessLog()[0]["code"])
	})
}

// Promise: a body is sent again as long as it fits the replay buffer of
// 64 KiB, and then whole; a larger one is not, once it was sent.
func TestBodyIsReplayedUpToItsLimit(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		length  int
		chunked bool
		answer  int
	}{
		"64 KiB":                {64 << 10, false, http.StatusOK},
		"64 KiB, chunked":       {64 << 10, true, http.StatusOK},
		"one byte more":         {64<<10 + 1, false, http.StatusServiceUnavailable},
		"one byte more, chunks": {64<<10 + 1, true, http.StatusServiceUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			content := strings.Repeat("0123456789abcde\n", c.length/16+1)[:c.length]
			bad, good := always(http.StatusServiceUnavailable), always(http.StatusOK)
			d := start(t, proxyAll("", backend(t, bad), backend(t, good)))
			body := io.Reader(strings.NewReader(content))
			if c.chunked {
				body = io.MultiReader(body) // its length does not show
			}
			require.Equal(t, c.answer, d.do(http.MethodPut, "/", body).Status)
			require.Len(t, bad.all(), 1)
			require.True(t, content == bad.all()[0].Body)
			if c.answer == http.StatusOK {
				require.Len(t, good.all(), 1)
				require.True(t, content == good.all()[0].Body)
			} else {
				require.Empty(t, good.all())
			}
		})
	}
}

// Promise: retries cannot multiply an outage: with everything failing they
// stay a fifth of the requests, and a few a second.
func TestRetryBudgetBoundsAnOutage(t *testing.T) {
	t.Parallel()
	l := always(http.StatusServiceUnavailable)
	began := time.Now() // before the daemon starts, and its budget with it
	d := start(t, proxyAll(", retry: { attempts: 1 }", backend(t, l), backend(t, l)))
	const requests = 300
	for range requests {
		require.Equal(t, http.StatusServiceUnavailable, d.get("/").Status)
	}
	perSecond := 3 * (1 + time.Since(began).Seconds()) // one second's worth is there at the start
	attempts := len(l.all())
	require.LessOrEqual(t, float64(attempts), 1.2*requests+perSecond)
	require.GreaterOrEqual(t, float64(attempts), 1.15*requests, "as long as there is budget, it is used")
	require.Equal(t, float64(attempts-requests), d.metric("lb_retries_total", "outcome", "retried"))
	require.Equal(t, float64(2*requests-attempts), d.metric("lb_retries_total", "outcome", "no_budget"))
}
