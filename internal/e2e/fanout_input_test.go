package e2e

import (
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/fanout"
)

// Promise: every attempt at every backend is the same request, byte for byte,
// under the same key, and comes after the wait of the formula.
func TestAttemptsAreIdentical(t *testing.T) {
	t.Parallel()
	content := make([]byte, 100<<10)
	_, _ = rand.Read(content)
	for name, key := range map[string]string{"with the client's key": "order-17", "without a key": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const failures = 3
			flaky := &ledger{answer: func(n int, w http.ResponseWriter) {
				if n < failures {
					w.WriteHeader(http.StatusInternalServerError)
					return
				}
				w.WriteHeader(http.StatusCreated)
			}}
			steady := always(http.StatusCreated)
			d := start(t, fanoutAll("", backend(t, flaky), backend(t, steady)))
			fields := []string{
				"Content-Type", "application/octet-stream", "X-Two", "a", "X-Two", "b", "Cookie", "c=1",
				"Connection", "X-Gone", "X-Gone", "1", "Keep-Alive", "1", "X-Forwarded-For", "6.6.6.6",
			}
			if key != "" {
				fields = append(fields, "Idempotency-Key", key)
			}
			a := d.do(http.MethodPost, `/x"y?q=1;%zz`, strings.NewReader(string(content)), fields...)
			require.Equal(t, http.StatusCreated, a.Status)
			id := a.Header.Get("X-LB-Fanout-Id")
			if key == "" {
				key = id
			}
			got := append(flaky.all(), steady.all()...)
			require.Len(t, got, failures+2)
			for _, r := range got {
				require.Equal(t, http.MethodPost, r.Method)
				require.Equal(t, got[0].Target, r.Target)
				require.Equal(t, got[0].Header, r.Header)
				require.True(t, string(content) == r.Body)
			}
			h := got[0].Header
			require.Equal(t, []string{key}, h.Values("Idempotency-Key"))
			require.Equal(t, []string{id}, h.Values("X-LB-Fanout-Id"))
			require.Equal(t, []string{"a", "b"}, h.Values("X-Two"))
			require.Equal(t, []string{"127.0.0.1"}, h.Values("X-Forwarded-For"))
			require.Equal(t, []string{a.Header.Get("X-Request-Id")}, h.Values("X-Request-Id"))
			require.Equal(t, "c=1", h.Get("Cookie"))
			for _, gone := range []string{"X-Gone", "Keep-Alive", "Connection"} {
				require.NotContains(t, h, gone)
			}
			for k, floor := range []time.Duration{50, 100, 200} { // base 50 ms, doubled, cap 200 ms
				require.GreaterOrEqual(t, got[k+1].At.Sub(got[k].At), floor*time.Millisecond, "wait before retry %d", k)
			}
		})
	}
}

// Promise: what a fan-out cannot take is refused before anything is sent, and
// hurts nobody.
func TestFanoutRefusesBadInput(t *testing.T) {
	t.Parallel()
	l := always(http.StatusCreated)
	d := start(t, fanoutAll(", max_body: 1KiB", backend(t, l)))
	big := strings.Repeat("x", 1025)
	for name, c := range map[string]struct {
		target string
		body   io.Reader
		status int
		code   string
	}{
		"too large":           {"/x", strings.NewReader(big), 413, "body_too_large"},
		"too large, chunked":  {"/x", io.MultiReader(strings.NewReader(big)), 413, "body_too_large"},
		"an encoded slash":    {"/a%2Fb", strings.NewReader("x"), 400, "bad_request"},
		"the same, lower":     {"/a%2fb", strings.NewReader("x"), 400, "bad_request"},
		"an encoded dot-dot":  {"/a/%2e%2e/b", strings.NewReader("x"), 400, "bad_request"},
		"a backslash":         {"/a%5Cb", strings.NewReader("x"), 400, "bad_request"},
		"the reserved prefix": {"/.lb/fanout/x", strings.NewReader("x"), 405, "method_not_allowed"},
	} {
		requireProblem(t, d.do(http.MethodPost, c.target, c.body), c.status, c.code)
		require.Empty(t, l.all(), name)
	}
	exact := strings.Repeat("x", 1024)
	require.Equal(t, http.StatusCreated, d.do(http.MethodPost, "/x", io.MultiReader(strings.NewReader(exact))).Status)
	require.Equal(t, exact, l.all()[0].Body)
	requireProblem(t, d.get("/.lb/fanout/unknown"), http.StatusNotFound, "no_route")
}

// Promise: two keys are none.
func TestFanoutRefusesTwoKeys(t *testing.T) {
	t.Parallel()
	l := always(http.StatusCreated)
	d := start(t, fanoutAll("", backend(t, l)))
	a := d.do(http.MethodPost, "/x", strings.NewReader("x"), "Idempotency-Key", "a", "Idempotency-Key", "b")
	requireProblem(t, a, http.StatusBadRequest, "bad_request")
	require.Empty(t, l.all())
}

// Promise: a fan-out over a pool without members is 503, not a success.
func TestFanoutToNobody(t *testing.T) {
	t.Parallel()
	d := start(t, fanoutAll(""))
	requireProblem(t, d.do(http.MethodPost, "/x", strings.NewReader("x")), http.StatusServiceUnavailable, "no_backend")
}

// Promise: a client that leaves changes nothing of a write that was admitted.
func TestClientThatLeavesChangesNothing(t *testing.T) {
	t.Parallel()
	asked, release := make(chan struct{}, 8), make(chan struct{})
	slow := &ledger{answer: func(_ int, w http.ResponseWriter) {
		asked <- struct{}{}
		<-release
		w.WriteHeader(http.StatusCreated)
	}}
	down := deadAddress(t)
	d := start(t, fanoutAll("", backend(t, slow), down))
	c := d.raw(t, "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
	<-asked
	require.NoError(t, c.Close())
	poll(t, patience, "lb to notice", func() bool { return d.metric("lb_requests_total", "code", "499") == 1 })
	close(release)
	back := always(http.StatusCreated)
	restarted := &server{Addr: down, t: t, handler: back}
	restarted.restart()
	t.Cleanup(restarted.stop)
	poll(t, patience, "both deliveries", func() bool { return d.metric("lb_fanout_settled_total", "state", "done") == 2 })
	require.Len(t, slow.all(), 1)
	require.Equal(t, "hello", back.all()[0].Body)
}

// Promise: what was not sent in whole by its client reaches nobody.
func TestHalfAWriteIsNone(t *testing.T) {
	t.Parallel()
	l := always(http.StatusCreated)
	d := start(t, fanoutAll("", backend(t, l)))
	c := d.raw(t, "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
	require.NoError(t, c.Close())
	poll(t, patience, "lb to notice", func() bool { return d.metric("lb_requests_total", "route", "write") == 1 })
	require.Equal(t, http.StatusCreated, d.do(http.MethodPost, "/x", strings.NewReader("whole")).Status)
	require.Len(t, l.all(), 1)
}

// Promise: what is pending is bounded: above the limits a write is refused,
// with nothing of it sent, and reads go on.
func TestPendingIsBounded(t *testing.T) {
	t.Parallel()
	for name, limit := range map[string]string{
		"writes": ", max_pending: 2", "bytes": ", max_body: 1KiB, max_pending_bytes: 2KiB",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := always(http.StatusCreated)
			s := startServer(t, always(http.StatusCreated))
			s.stop()
			d := start(t, fanoutAll(", wait: 0s"+limit, backend(t, up), s.Addr))
			body := strings.Repeat("x", 700) // with its fields less than half of the bytes, and more than a third
			var admitted []answer
			for range 2 {
				admitted = append(admitted, d.do(http.MethodPost, "/x", strings.NewReader(body)))
				require.Equal(t, http.StatusAccepted, admitted[len(admitted)-1].Status)
			}
			poll(t, patience, "what is up to have both", func() bool { return len(up.all()) == 2 })
			requireProblem(t, d.do(http.MethodPost, "/x", strings.NewReader(body)), http.StatusServiceUnavailable, "overloaded")
			require.Equal(t, http.StatusCreated, d.get("/").Status, "a read goes to who is up")
			require.Len(t, up.all(), 3)

			s.restart()
			for _, a := range admitted {
				poll(t, patience, "room again", func() bool { return d.status(a.Header.Get("Location")).State == fanout.WriteDone })
			}
			require.NotEqual(t, http.StatusServiceUnavailable, d.do(http.MethodPost, "/x", strings.NewReader(body)).Status)
		})
	}
}

// Promise: Retry-After is honoured, up to the cap.
func TestRetryAfterIsHonouredUpToTheCap(t *testing.T) {
	t.Parallel()
	l := &ledger{answer: func(n int, w http.ResponseWriter) {
		if n == 0 {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusCreated)
	}}
	d := start(t, fanoutAll("", backend(t, l)))
	require.Equal(t, http.StatusCreated, d.do(http.MethodPost, "/x", nil).Status)
	wait := l.all()[1].At.Sub(l.all()[0].At)
	require.GreaterOrEqual(t, wait, 200*time.Millisecond, "base is 50 ms, cap 200 ms")
}

// Promise: with `reject: []` everything but a success is retried.
func TestNothingIsRejectedWithAnEmptyList(t *testing.T) {
	t.Parallel()
	for _, status := range []int{400, 409, 200, 204, 302, 500} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			l := &ledger{answer: func(n int, w http.ResponseWriter) {
				if n == 0 {
					w.WriteHeader(status)
					return
				}
				w.WriteHeader(http.StatusCreated)
			}}
			d := start(t, fanoutAll(", reject: []", backend(t, l)))
			require.Equal(t, http.StatusCreated, d.do(http.MethodPost, "/x", strings.NewReader("x")).Status)
			require.Len(t, l.all(), 2)
		})
	}
}

// Promise: an answer in `already` counts as success after an attempt whose
// outcome is unknown, and only then.
func TestAlreadyAfterAnUnknownOutcome(t *testing.T) {
	t.Parallel()
	l := &ledger{answer: func(n int, w http.ResponseWriter) {
		if n == 0 {
			panic(http.ErrAbortHandler) // the write is there, the answer is lost
		}
		w.WriteHeader(http.StatusConflict)
	}}
	d := start(t, fanoutAll("", backend(t, l), backend(t, always(http.StatusCreated))))
	a := d.do(http.MethodPost, "/x", strings.NewReader("x"))
	require.Equal(t, http.StatusCreated, a.Status, "not the 409 of the first in config order")
	require.Equal(t, "2/2", a.Header.Get("X-LB-Acked"))
	require.Len(t, l.all(), 2)
}
