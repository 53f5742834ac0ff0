package e2e

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// Promise: Expect: 100-continue is between the client and the backend: the
// client hears what the backend said, and sends its body then.
func TestExpectContinue(t *testing.T) {
	t.Parallel()
	asked, allow := make(chan int, 1), make(chan struct{})
	b := rawBackend(t, func(conn net.Conn) {
		in := bufio.NewReader(conn)
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		asked <- in.Buffered()
		<-allow
		_, _ = io.WriteString(conn, head(100))
		body, _ := io.ReadAll(req.Body)
		_, _ = io.WriteString(conn, head(200, lengthOf(string(body)))+string(body))
	})
	goOn := sync.OnceFunc(func() { close(allow) })
	t.Cleanup(goOn)
	d := start(t, proxyAll("", b.Addr))
	c := d.raw(t, "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	require.Zero(t, await(t, "the head", asked))
	goOn()
	a, err := c.response(http.MethodPost)
	require.NoError(t, err)
	require.Equal(t, http.StatusContinue, a.Status)
	require.Equal(t, "hello", c.ask("hello").Body)
}

// Promise: a client that waits for leave to send its body is not left waiting
// when there is none: what lb or a backend says instead comes at once.
func TestExpectationsThatAreNotMet(t *testing.T) {
	t.Parallel()
	d := start(t, listeners+pools("", backendThatSays(t, func(*http.Request) string { return head(403, "Content-Length: 0", "Connection: close") + closing }))+`
routes:
  - { name: ask, match: { path_prefix: /ask }, proxy: { pool: main, retry: { attempts: 0 } } }
  - { name: write, match: { methods: [POST], path: /write }, fanout: { pool: main, max_body: 10 } }
  - { name: own, match: { path: /own }, respond: { status: 200, body: mine } }
`)
	for path, status := range map[string]int{"/ask": 403, "/nothing": 404, "/a/..": 400, "/own": 200, "/write": 413} {
		c := d.raw(t, "POST "+path+" HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 50\r\n\r\n")
		a, err := c.response(http.MethodPost)
		require.NoError(t, err, path)
		require.Equal(t, status, a.Status, path)
		require.True(t, a.Close, path)
	}
}

// Promise: an answer that comes before the request's end is not held back, and
// the rest of the request is never taken for another.
func TestAnswersBeforeTheRequestEnds(t *testing.T) {
	t.Parallel()
	b := rawBackend(t, func(conn net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			_, _ = io.WriteString(conn, head(403, "Content-Length: 2")+"no")
			_, _ = io.Copy(io.Discard, conn)
		}
	})
	d := start(t, proxyAll("", b.Addr))
	for _, framing := range []string{"Content-Length: 500000\r\n\r\nbegin", "Transfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\n"} {
		c := d.raw(t, "POST / HTTP/1.1\r\nHost: x\r\n"+framing)
		a, err := c.final(http.MethodPost)
		require.NoError(t, err)
		require.Equal(t, http.StatusForbidden, a.Status)
		require.True(t, a.Close)
		_, _ = io.WriteString(c, inside+"0\r\n\r\n"+inside)
		_, err = c.response(http.MethodGet)
		require.Error(t, err)
	}
	require.Len(t, b.received(), 2)
}

// Promise: a request and its answer may flow at the same time.
func TestBothDirectionsAtOnce(t *testing.T) {
	t.Parallel()
	b := rawBackend(t, func(conn net.Conn) {
		req, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil {
			return
		}
		_, _ = io.WriteString(conn, head(200, "Transfer-Encoding: chunked"))
		for piece := make([]byte, 5); ; {
			if _, err := io.ReadFull(req.Body, piece); err != nil {
				_, _ = io.WriteString(conn, "0\r\n\r\n")
				return
			}
			_, _ = fmt.Fprintf(conn, "5\r\n%s\r\n", piece)
		}
	})
	d := start(t, proxyAll("", b.Addr))
	c := d.raw(t, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
	var res *http.Response
	for i := range 5 {
		piece := fmt.Sprintf("now %d", i)
		c.send("5\r\n" + piece + "\r\n")
		if res == nil {
			res = c.head(http.MethodPost)
		}
		requireNext(t, res.Body, piece)
	}
	c.send("0\r\n\r\n")
	rest, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.Empty(t, rest)
}

// large is the size of a body that lb must not hold in memory.
const large = 64 << 20

// noise returns the same large body for the same seed.
func noise(seed byte) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), large)
}

func checksum(t testing.TB, r io.Reader) string {
	t.Helper()
	sum := sha256.New()
	n, err := io.Copy(sum, r)
	if err != nil || n != large {
		t.Errorf("%d bytes: %v", n, err)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}

// Promise: large bodies arrive whole, in both directions and framings, and lb
// keeps no more of them than a few buffers.
func TestLargeBodies(t *testing.T) {
	t.Parallel()
	d := start(t, proxyAll("", backend(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			_, _ = io.WriteString(w, checksum(t, r.Body))
			return
		}
		if r.URL.Path == "/length" {
			w.Header().Set("Content-Length", strconv.Itoa(large))
		}
		_, _ = io.Copy(w, noise(2))
	}))))
	for _, path := range []string{"/length", "/chunks"} {
		upload, err := http.NewRequest(http.MethodPut, d.URL+path, noise(1))
		require.NoError(t, err)
		if path == "/length" {
			upload.ContentLength = large
		}
		res, err := d.client.Do(upload)
		require.NoError(t, err)
		sum, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		require.Equal(t, checksum(t, noise(1)), string(sum))

		res, err = d.client.Get(d.URL + path)
		require.NoError(t, err)
		require.Equal(t, checksum(t, noise(2)), checksum(t, res.Body))
		require.NoError(t, res.Body.Close())
	}
	require.Less(t, d.peakMemory(t), int64(large))
}

// peakMemory returns the most memory, in bytes, that the daemon ever had.
func (d *daemon) peakMemory(t testing.TB) int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	require.NoError(t, err)
	_, peak, _ := strings.Cut(string(status), "VmHWM:")
	kib, err := strconv.ParseInt(strings.Fields(peak)[0], 10, 64)
	require.NoError(t, err)
	return kib << 10
}
