package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// withListener gives the listener of a configuration more keys.
func withListener(config, more string) string {
	return strings.Replace(config, `"127.0.0.1:0" }`, `"127.0.0.1:0", `+more+` }`, 1)
}

// Promise: a client that sends its head, or the first bytes of anything, too
// slowly loses its connection, and others are served meanwhile (D1, D2).
func TestSlowHeadsAreCutOff(t *testing.T) {
	t.Parallel()
	b := newTap(t)
	d := start(t, withListener(proxyAll("", b.Addr), "timeouts: { header: 500ms, idle: 500ms }"))
	began := time.Now()
	var slow []*rawConn
	for _, beginning := range []string{
		"", "G", "GET", "GET / HTTP/1.1", "GET / HTTP/1.1\r\nHost: x\r\n", "GET / HTTP/1.1\r\nHost: x\r\nX-A: a", "POST / HTTP/1.1\r\nContent-Le",
		"PRI * HTTP/2.0\r\n\r", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "\r\n\r\n",
	} {
		slow = append(slow, d.raw(t, beginning))
	}
	d.raw(t, "").innocent(b, "meanwhile")
	for i, c := range slow {
		_, err := io.Copy(io.Discard, c.Reader) // 408, 400 or nothing, and then the end
		require.NoError(t, err, "%d", i)
		d.raw(t, "").innocent(b, fmt.Sprint(i))
	}
	require.Less(t, time.Since(began), 5*time.Second)

	c := d.raw(t, "") // an idle connection between two requests
	c.innocent(b, "idle-then")
	c.closed()

	c = d.raw(t, "GET / HTTP/1.1\r\nHost: x\r\nX-A: ") // a byte now and then does not help
	cut := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, c.Reader) // to its end, good or bad
		close(cut)
	}()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for over := time.After(5 * time.Second); ; {
		select {
		case <-cut:
			return
		case <-tick.C:
			_, _ = io.WriteString(c, "a") // fails once the connection is cut
		case <-over:
			require.FailNow(t, "a slow head is still being read")
		}
	}
}

// Promise: a client that pauses for too long in its body is answered 400 and
// cut off; the backend never gets a whole request. One that only takes its time
// is not.
func TestSlowBodies(t *testing.T) {
	t.Parallel()
	b := newTap(t)
	d := start(t, withListener(fanoutAll("", b.Addr), "timeouts: { body_idle: 500ms }"))
	other := d.raw(t, "")
	var slow []*rawConn
	for _, request := range []string{
		"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello", "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n",
		"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", "PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 9223372036854775807\r\n\r\nhello", "POST /fanout HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello",
	} {
		slow = append(slow, d.raw(t, request))
	}
	for i, c := range slow {
		a, err := c.final(http.MethodPost)
		require.NoError(t, err, "%d", i)
		requireProblem(t, a, http.StatusBadRequest, "bad_request")
		require.True(t, a.Close)
		c.closed()
		other.innocent(b, fmt.Sprint(i)) // and nothing else has come whole
	}
	c := d.raw(t, "PUT /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\n")
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for _, piece := range strings.Split("abcdefgh", "") { // 0.8 s in all
		<-tick.C
		c.send(piece)
	}
	a, err := c.final(http.MethodPut)
	require.NoError(t, err)
	require.Equal(t, echoed("PUT", "/slow", "abcdefgh"), a.Body)
}

// Promise: a client that does not read its answer is cut off after write_idle,
// and the backend is let go; one that reads slowly gets everything.
func TestSlowReaders(t *testing.T) {
	t.Parallel()
	const size = 32 << 20
	released := make(chan struct{}, 1)
	b := rawBackend(t, func(conn net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
			return
		}
		_, _ = io.WriteString(conn, head(200, fmt.Sprintf("Content-Length: %d", size)))
		_, _ = io.CopyN(conn, zeros{}, size)
		released <- struct{}{}
	})
	d := start(t, withListener(proxyAll("", b.Addr), "timeouts: { write_idle: 500ms }"))
	c := d.raw(t, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	c.head(http.MethodGet)
	await(t, "the backend to be let go", released)
	requireIdle(t, d)
	n, _ := io.Copy(io.Discard, c.Reader)
	require.Less(t, n, int64(size))
	poll(t, patience, "the access line", func() bool { return len(d.accessLog()) == 1 })
	require.Equal(t, "client_closed", d.accessLog()[0]["code"])
}

// zeros is an endless reader.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// Promise: a head over the listener's limits is answered 431: by lb if it has
// too many fields, by net/http if it has too many bytes (D3).
func TestOversizedHeads(t *testing.T) {
	t.Parallel()
	b := newTap(t)
	d := start(t, proxyAll("", b.Addr))
	other := d.raw(t, "")
	request := func(more string) string { return "GET / HTTP/1.1\r\nHost: x\r\n" + more + "\r\n" }
	for i, fields := range []string{
		strings.Repeat("X-A: a\r\n", 101), strings.Repeat("X-A: a\r\n", 5000), strings.Repeat("Cookie: a=1\r\n", 101), strings.Repeat("Connection: x\r\n", 101),
		"X-Last: a\r\n" + strings.Repeat("X-A:\r\n", 100),
	} {
		c := d.raw(t, "")
		requireProblem(t, c.ask(request(fields)), http.StatusRequestHeaderFieldsTooLarge, "header_too_large")
		require.Empty(t, b.next(t))
		c.innocent(b, fmt.Sprintf("same-%d", i))
		other.innocent(b, fmt.Sprintf("other-%d", i))
	}
	c := d.raw(t, "")
	require.Equal(t, http.StatusOK, c.ask(request(strings.Repeat("X-A: a\r\n", 100))).Status)
	require.Equal(t, http.StatusOK, c.ask(request("X-A: "+strings.Repeat("a", 64<<10-100)+"\r\n")).Status)
	b.next(t)
	for i, fields := range []string{
		"X-A: " + strings.Repeat("a", 70<<10) + "\r\n", strings.Repeat("X-"+strings.Repeat("a", 1000)+": a\r\n", 80), strings.Repeat("Cookie: a=1\r\n", 10_000), "X-A: a\r\n" + strings.Repeat(" fold\r\n", 12_000),
	} {
		c := d.raw(t, request(fields))
		a, err := c.response(http.MethodGet)
		require.NoError(t, err)
		require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, a.Status)
		require.True(t, a.Close)
		require.Empty(t, b.next(t))
		other.innocent(b, fmt.Sprintf("third-%d", i))
	}
	c = d.raw(t, "GET /"+strings.Repeat("a", 70<<10)+" HTTP/1.1\r\nHost: x\r\n\r\n")
	a, err := c.response(http.MethodGet)
	require.NoError(t, err)
	require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, a.Status)
}

// Promise: limits.connections holds: who comes above it waits until a place is
// free, and is served then.
func TestConnectionLimit(t *testing.T) {
	t.Parallel()
	b := newTap(t)
	d := start(t, withListener(proxyAll("", b.Addr), "limits: { connections: 2 }"))
	first, second := d.raw(t, ""), d.raw(t, "")
	first.innocent(b, "first")
	second.innocent(b, "second")
	third := d.raw(t, "GET /third HTTP/1.1\r\nHost: x\r\n\r\n")
	for i := range 20 { // it is not served while others go on
		first.innocent(b, fmt.Sprint(i))
	}
	require.Empty(t, b.next(t))
	_ = second.Close()
	a, err := third.final(http.MethodGet)
	require.NoError(t, err)
	require.Equal(t, echoed("GET", "/third", ""), a.Body)
	first.ask("GET /last HTTP/1.1\r\nHost: x\r\n\r\n")
}
