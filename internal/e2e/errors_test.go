package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// failing is a configuration in which everything can go wrong: these paths do.
func failing(t testing.TB, good string) string {
	silent := rawBackend(t, func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }).Addr
	says := func(what string) string { return backendThatSays(t, func(*http.Request) string { return what }) }
	return fmt.Sprintf(listeners+`
pools:
  - { name: good, backends: [{ address: %q }] }
  - { name: dead, backends: [{ address: %q }] }
  - { name: reset, backends: [{ address: %q }] }
  - { name: garbage, backends: [{ address: %q }] }
  - { name: silent, backends: [{ address: %q }] }
routes:
  - { name: innocent, match: { path_prefix: /innocent }, proxy: { pool: good } }
  - { name: good, match: { path: /good, methods: [GET, POST] }, proxy: { pool: good } }
  - { name: dead, match: { path: /dead }, proxy: { pool: dead } }
  - { name: reset, match: { path: /reset }, proxy: { pool: reset } }
  - { name: garbage, match: { path: /garbage }, proxy: { pool: garbage } }
  - { name: silent, match: { path: /silent }, proxy: { pool: silent, timeout: 200ms } }
  - { name: write, match: { path_prefix: /write, methods: [POST] }, fanout: { pool: good, max_body: 10 } }
  - { name: full, match: { path: /full, methods: [POST] }, fanout: { pool: dead, max_pending: 1, wait: 0s } }
`, good, deadAddress(t), says(closing), says("garbage\r\n\r\n"), silent)
}

// Promise: every error that lb makes is a problem document with its code, and
// hurts no other request.
func TestErrors(t *testing.T) {
	t.Parallel()
	b := newTap(t)
	d := start(t, failing(t, b.Addr))
	line := func(method, target, more string) string {
		return method + " " + target + " HTTP/1.1\r\nHost: x\r\n" + more + "\r\n"
	}
	other := d.raw(t, "")
	filling := d.raw(t, "")
	require.Equal(t, http.StatusAccepted, filling.ask(line("POST", "/full", "Content-Length: 0\r\n")).Status)
	for i, row := range []struct {
		request, code string
		status        int
		allow         string
	}{
		{line("GET", "/a/..", ""), "bad_request", 400, ""},
		{line("GET", "/good#x", ""), "bad_request", 400, ""},
		{line("POST", "/write/a%2Fb", "Content-Length: 0\r\n"), "bad_request", 400, ""},
		{line("POST", "/write", "Idempotency-Key: a\r\nIdempotency-Key: b\r\nContent-Length: 0\r\n"), "bad_request", 400, ""},
		{line("POST", "/good", te+"\r\n") + "nonsense\r\n", "bad_request", 400, ""},
		{line("POST", "/write", te+"\r\n") + "nonsense\r\n", "bad_request", 400, ""},
		{line("GET", "/nowhere", ""), "no_route", 404, ""},
		{line("GET", "/innocents", ""), "no_route", 404, ""},
		{line("GET", "/.lb/fanout/nobody", ""), "no_route", 404, ""},
		{line("GET", "/.lb/", ""), "no_route", 404, ""},
		{line("PUT", "/good", "Content-Length: 2\r\n") + "xy", "method_not_allowed", 405, "GET, HEAD, POST"},
		{line("GET", "/write", ""), "method_not_allowed", 405, "POST"},
		{line("POST", "/.lb/fanout/x", "Content-Length: 2\r\n") + "xy", "method_not_allowed", 405, "GET, HEAD"},
		{line("TRACE", "/good", ""), "method_not_allowed", 405, "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"},
		{line("HEAD", "/nowhere", ""), "no_route", 404, ""},
		{line("POST", "/write", "Content-Length: 11\r\n") + "01234567890", "body_too_large", 413, ""},
		{line("POST", "/write", te+"\r\n") + chunked("01234567890"), "body_too_large", 413, ""},
		{line("GET", "/good", strings.Repeat("X-A: a\r\n", 101)), "header_too_large", 431, ""},
		{line("GET", "/reset", ""), "backend_reset", 502, ""},
		{line("POST", "/reset", "Content-Length: 2\r\n") + "xy", "backend_reset", 502, ""},
		{line("GET", "/garbage", ""), "backend_invalid", 502, ""},
		{line("GET", "/silent", ""), "backend_timeout", 504, ""},
		{line("POST", "/silent", "Content-Length: 2\r\n") + "xy", "backend_timeout", 504, ""},
		{line("GET", "/dead", ""), "no_backend", 503, ""},
		{line("POST", "/dead", "Content-Length: 2\r\n") + "xy", "no_backend", 503, ""},
		{line("POST", "/full", "Content-Length: 0\r\n"), "overloaded", 503, ""},
	} {
		c := d.raw(t, "")
		a := c.ask(row.request)
		if strings.HasPrefix(row.request, "HEAD") {
			require.Equal(t, []string{strconv.Itoa(row.status), row.code, ""}, []string{strconv.Itoa(a.Status), a.Header.Get("X-LB-Error"), a.Body})
		} else {
			requireProblem(t, a, row.status, row.code)
			var members map[string]any
			a.json(t, &members)
			require.Len(t, members, 6, "type, title, status, detail, code, request_id")
			require.Equal(t, strconv.Itoa(len(a.Body)), a.Header.Get("Content-Length"))
		}
		require.Equal(t, row.allow, a.Header.Get("Allow"), row.request)
		require.Empty(t, b.next(t), row.request)
		if a.Close {
			c.closed()
		} else {
			c.innocent(b, fmt.Sprintf("same-%d", i))
		}
		other.innocent(b, fmt.Sprintf("other-%d", i))
	}
}

// accessKeys are the keys of every access line.
var accessKeys = strings.Fields(`time request_id client method host path status bytes_in bytes_out duration_ms
	route pool backend attempts queue_ms generation code`)

// Promise: any bytes a client sends leave one valid line with all keys, of
// bounded length.
func TestAccessLinesOfAnyBytes(t *testing.T) {
	t.Parallel()
	b := newTap(t)
	d := start(t, proxyAll("", b.Addr))
	c := d.raw(t, "")
	for _, target := range slices.Concat(kept, refused) {
		c.ask(get(target))
	}
	want := len(kept) + len(refused)
	_ = c.Close()
	for _, request := range []string{
		oddTokens + strings.Repeat("M", 1000) + " / HTTP/1.1\r\nHost: x\r\n\r\n", "GET / HTTP/1.1\r\nHost: " + strings.Repeat("h", 5000) + "\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a$&'()*+,;=%41\r\n\r\n", "GET / HTTP/1.1\r\nHost: \r\nX-Request-Id: \"\x80\\\r\nUser-Agent: \xff\"}{\r\nX-Forwarded-For: \"\\\r\n\r\n",
		"TRACE \"{}\"://x HTTP/1.1\r\nHost: x\r\n\r\n", "CONNECT \"\\:1 HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		c := d.raw(t, request)
		if r, err := c.final(http.MethodGet); err == nil && r.Header.Get("X-Request-Id") != "" {
			want++ // else net/http has refused it, and no handler has seen it
		}
		_ = c.Close()
	}
	d.stop()
	lines := strings.SplitAfter(d.stdout.String(), "\n")
	require.Empty(t, lines[len(lines)-1])
	require.Len(t, lines, want+1)
	for _, line := range lines[:want] {
		var fields map[string]any
		require.NoError(t, json.Unmarshal([]byte(line), &fields), "%q", line)
		for _, key := range accessKeys {
			require.Contains(t, fields, key)
		}
		require.Len(t, fields, len(accessKeys))
		require.True(t, utf8.ValidString(line))
		require.Less(t, len(line), 20_000)
		require.Equal(t, len(line)-1, strings.IndexFunc(line, func(r rune) bool { return r < ' ' || r == 0x7f }))
	}
}

// Promise: a client that left before its answer is logged as 499, and the
// backend is let go.
func TestClientsThatLeave(t *testing.T) {
	t.Parallel()
	came, left := make(chan struct{}, 9), make(chan struct{}, 9)
	d := start(t, proxyAll("", rawBackend(t, func(conn net.Conn) {
		in := bufio.NewReader(conn)
		if _, err := in.Peek(1); err != nil {
			return
		}
		came <- struct{}{}
		_, _ = io.Copy(io.Discard, in)
		left <- struct{}{}
	}).Addr))
	for _, request := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nxy",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + strings.Repeat("x", 100_000), "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n186a0\r\n" + strings.Repeat("x", 100_000),
	} {
		c := d.raw(t, request)
		await(t, "the request", came)
		_ = c.Close()
		await(t, "the backend to be let go", left)
		requireIdle(t, d)
	}
	d.stop()
	require.Len(t, d.accessLog(), 4)
	for _, line := range d.accessLog() {
		require.Equal(t, []any{499.0, "client_closed", "b1"}, []any{line["status"], line["code"], line["backend"]})
	}
}

// Promise: no series is made of what a client, or a backend, says.
func TestSeriesDoNotGrowWithInput(t *testing.T) {
	t.Parallel()
	d := start(t, failing(t, backendThatSays(t, func(req *http.Request) string {
		status, _ := strconv.Atoi(req.Header.Get("X-Status"))
		return head(max(200, status), "Content-Length: 0")
	})))
	series := func() int { return strings.Count(d.get(d.Admin+"/metrics").Body, "\nlb_") }
	c := d.raw(t, "")
	send := func(n int) {
		for range n {
			random := strconv.FormatUint(rand.Uint64(), 36)
			prefix := []string{"/innocent/", "/nowhere/", "/good", "/innocent/../"}[rand.IntN(4)]
			c.ask("M" + random + " " + prefix + random + " HTTP/1.1\r\nHost: " + random + ".example\r\nX-Forwarded-For: " + random + "\r\nUser-Agent: " + random + "\r\n\r\n")
		}
		for status := 200; status <= 999; status += 7 {
			c.ask(fmt.Sprintf("GET /innocent HTTP/1.1\r\nHost: x\r\nX-Status: %d\r\n\r\n", status))
		}
	}
	send(50)
	before := series()
	send(1000)
	require.Equal(t, before, series())
	require.NotContains(t, d.get(d.Admin+"/metrics").Body, ".example")
	require.Contains(t, d.get(d.Admin+"/metrics").Body, `code="other"`)
}
