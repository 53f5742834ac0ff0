package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// badAnswers are what a backend says instead of a response (S16): the client
// gets a 502 with this code.
var badAnswers = []struct{ name, said, code string }{
	{"nothing", closing, "backend_reset"},
	{"half a head", "HTTP/1.1 200 OK\r\nX-A: a" + closing, "backend_reset"},
	{"a head without its end", "HTTP/1.1 200 OK\r\nX-A: a\r\n" + closing, "backend_reset"},
	{"another protocol", "220 mail.example ESMTP\r\n", "backend_invalid"},
	{"binary", "\x00\x01\x02\x03\xff\xfe\r\n\r\n", "backend_invalid"},
	{"TLS", "\x15\x03\x01\x00\x02\x02\x0a", "backend_invalid"},
	{"HTTP/2", "\x00\x00\x00\x04\x00\x00\x00\x00\x00\r\n\r\n", "backend_invalid"},
	{"a page", "<html>hello</html>\r\n\r\n", "backend_invalid"},
	{"no status", "HTTP/1.1\r\n\r\n", "backend_invalid"},
	{"a short status", "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n", "backend_invalid"},
	{"a long status", "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n", "backend_invalid"},
	{"status in words", "HTTP/1.1 OK 200\r\nContent-Length: 0\r\n\r\n", "backend_invalid"},
	{"status 000", "HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n", "backend_invalid"},
	{"status 099", "HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n", "backend_invalid"},
	{"status -20", "HTTP/1.1 -20 OK\r\nContent-Length: 0\r\n\r\n", "backend_invalid"},
	{"no version", "HTTP 200 OK\r\nContent-Length: 0\r\n\r\n", "backend_invalid"},
	{"no colon", head(200, "X-A a", "Content-Length: 0"), "backend_invalid"},
	{"blank before the colon", head(200, "Content-Length : 0"), "backend_invalid"},
	{"empty name", head(200, ": a", "Content-Length: 0"), "backend_invalid"},
	{"CR in a value", head(200, "X-A: a\rSet-Cookie: b", "Content-Length: 0"), "backend_invalid"},
	{"NUL in a value", head(200, "X-A: a\x00b", "Content-Length: 0"), "backend_invalid"},
	{"NUL in a name", head(200, "X\x00: a", "Content-Length: 0"), "backend_invalid"},
	{"two lengths", head(200, "Content-Length: 2", "Content-Length: 3") + "ok!", "backend_invalid"},
	{"a list of lengths", head(200, "Content-Length: 2, 3") + "ok!", "backend_invalid"},
	{"negative length", head(200, "Content-Length: -1"), "backend_invalid"},
	{"signed length", head(200, "Content-Length: +2") + "ok", "backend_invalid"},
	{"length in hex", head(200, "Content-Length: 0x2") + "ok", "backend_invalid"},
	{"endless length", head(200, "Content-Length: 18446744073709551616"), "backend_invalid"},
	{"unknown coding", head(200, "Transfer-Encoding: gzip") + "ok", "backend_invalid"},
	{"two codings", head(200, "Transfer-Encoding: gzip, chunked") + "0\r\n\r\n", "backend_invalid"},
	{"two coding lines", head(200, "Transfer-Encoding: chunked", "Transfer-Encoding: chunked") + "0\r\n\r\n", "backend_invalid"},
	{"obscured coding", head(200, "Transfer-Encoding: xchunked") + "0\r\n\r\n", "backend_invalid"},
	{"huge head", "HTTP/1.1 200 OK\r\nX-A: " + strings.Repeat("a", 300<<10) + "\r\nContent-Length: 0\r\n\r\n", "backend_invalid"},
	{"many fields", "HTTP/1.1 200 OK\r\n" + strings.Repeat("X-A: a\r\n", 40_000) + "Content-Length: 0\r\n\r\n", "backend_invalid"},
	{"unasked 101", head(101, "Connection: Upgrade", "Upgrade: websocket"), "backend_invalid"},
	{"101 without words", head(101), "backend_invalid"},
	{"101 to h2c", head(101, "Connection: Upgrade", "Upgrade: h2c"), "backend_invalid"},
}

// Promise: an answer that is none becomes a 502, the connection that it came
// over is not used again, and nobody else notices.
func TestBadAnswers(t *testing.T) {
	t.Parallel()
	var reused atomic.Int32
	b := rawBackend(t, func(conn net.Conn) {
		in := bufio.NewReader(conn)
		for bad := false; ; {
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			if bad {
				reused.Add(1)
			}
			row, found := strings.CutPrefix(req.URL.Path, "/row/")
			n, err := strconv.Atoi(row)
			said := head(200, lengthOf(req.RequestURI)) + req.RequestURI
			if bad = found && err == nil; bad {
				said = badAnswers[n].said
			}
			said, last := strings.CutSuffix(said, closing)
			if _, err := io.WriteString(conn, said); err != nil || last {
				return
			}
		}
	})
	d := start(t, proxyAll("", b.Addr))
	c, other := d.raw(t, ""), d.raw(t, "")
	for i, row := range badAnswers {
		request := fmt.Sprintf("GET /row/%d HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", i)
		requireProblem(t, c.ask(request), http.StatusBadGateway, row.code)
		for j, conn := range []*rawConn{c, other} {
			path := fmt.Sprintf("/innocent/%d/%d", i, j)
			a := conn.ask("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n")
			require.Equal(t, path, a.Body, row.name)
		}
	}
	require.Zero(t, reused.Load(), "a connection was used again after a bad answer")
}

// Promise: what a backend sends behind the end of its answer is nobody's.
func TestBytesBehindAnAnswerAreNobodys(t *testing.T) {
	t.Parallel()
	const poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
	b := backendThatSays(t, func(req *http.Request) string {
		switch {
		case req.Method == http.MethodHead:
			return head(200, "Content-Length: 6") + poison
		case strings.HasSuffix(req.URL.Path, "204"):
			return head(204) + poison
		}
		return head(200, lengthOf(req.RequestURI)) + req.RequestURI + poison
	})
	d := start(t, proxyAll("", b))
	var clients sync.WaitGroup
	for i := range 4 {
		clients.Go(func() {
			for j := range 100 {
				path := fmt.Sprintf("/%d/%d", i, j)
				a := d.do(http.MethodGet, path, nil)
				if a.Status != http.StatusOK || a.Body != path {
					t.Errorf("%s got %d %q", path, a.Status, a.Body)
				}
				if a := d.do(http.MethodHead, path, nil); a.Status != http.StatusOK {
					t.Errorf("HEAD %s got %d", path, a.Status)
				}
				if a := d.do(http.MethodGet, path+"/204", nil); a.Status != http.StatusNoContent {
					t.Errorf("%s/204 got %d %q", path, a.Status, a.Body)
				}
			}
		})
	}
	clients.Wait()
}

// backendThatSays runs a backend that answers each request with these bytes,
// and closes the connection behind those that end with closing.
func backendThatSays(t testing.TB, say func(*http.Request) string) string {
	return rawBackend(t, func(conn net.Conn) {
		in := bufio.NewReader(conn)
		for {
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			if req.Header.Get("Expect") == "" {
				_, _ = io.Copy(io.Discard, req.Body)
			}
			said, last := strings.CutSuffix(say(req), closing)
			if _, err := io.WriteString(conn, said); err != nil || last {
				return
			}
		}
	}).Addr
}

// Promise: a response that breaks off reaches the client as one that broke
// off, never as a whole one.
func TestCutAnswersAreSeenAsCut(t *testing.T) {
	t.Parallel()
	cuts := []string{
		head(200, "Content-Length: 10") + "hello" + closing,
		head(200, "Content-Length: 1") + closing,
		head(200, "Content-Length: 10000000") + strings.Repeat("x", 100_000) + closing,
		head(200, "Transfer-Encoding: chunked") + "5\r\nhello\r\n" + closing,
		head(200, "Transfer-Encoding: chunked") + "5\r\nhel" + closing,
		head(200, "Transfer-Encoding: chunked") + "5\r\nhello\r\n0\r\n" + closing,
		head(200, "Transfer-Encoding: chunked") + "5\r\nhello\r\n0\r\nX-Sum: 1\r\n" + closing,
		head(200, "Transfer-Encoding: chunked") + "5\r\nhello\r\nnonsense\r\n",
		head(200, "Transfer-Encoding: chunked") + "5\r\nhelloXX\r\n0\r\n\r\n",
		head(200, "Transfer-Encoding: chunked") + "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
		head(206, "Content-Length: 10", "Content-Encoding: gzip") + closing,
	}
	d := start(t, proxyAll("", backendThatSays(t, func(req *http.Request) string {
		n, err := strconv.Atoi(strings.TrimPrefix(req.URL.Path, "/cut/"))
		if err != nil {
			return head(200, lengthOf(req.RequestURI)) + req.RequestURI
		}
		return cuts[n]
	})))
	other := d.raw(t, "")
	for i := range cuts {
		c := d.raw(t, fmt.Sprintf("GET /cut/%d HTTP/1.1\r\nHost: x\r\n\r\n", i))
		_, err := c.response(http.MethodGet)
		require.Error(t, err, "%d", i)
		var netErr net.Error
		require.False(t, errors.As(err, &netErr) && netErr.Timeout(), "%d: the end never came", i)
		require.Equal(t, "/innocent", other.ask("GET /innocent HTTP/1.1\r\nHost: x\r\n\r\n").Body)
	}
	_ = other.Close()
	d.stop()
	for _, line := range d.accessLog() {
		if strings.HasPrefix(line["path"].(string), "/cut/") {
			require.Equal(t, "backend_reset", line["code"], line)
		}
	}
}

// Promise: a backend cannot keep a client, or lb's memory, with interim
// responses without end.
func TestInterimFloodIsBounded(t *testing.T) {
	t.Parallel()
	interim := head(103, "Link: </"+strings.Repeat("x", 1000)+">; rel=preload")
	b := rawBackend(t, func(conn net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
			return
		}
		for {
			if _, err := io.WriteString(conn, interim); err != nil {
				return // nobody listens any more
			}
		}
	})
	d := start(t, proxyAll("", b.Addr))
	for _, proto := range []string{"1.1", "1.0"} {
		c := d.raw(t, "GET / HTTP/"+proto+"\r\nHost: x\r\n\r\n")
		a, interims := answer{}, 0
		for {
			var err error
			a, err = c.response(http.MethodGet)
			require.NoError(t, err)
			if a.Status != http.StatusEarlyHints {
				break
			}
			interims++
		}
		requireProblem(t, a, http.StatusBadGateway, "backend_invalid")
		require.Less(t, interims, 1000)
		require.Equal(t, proto == "1.0", interims == 0, "HTTP/1.0 knows no interim responses")
	}
}

// Promise: a final answer in place of 100 Continue poisons no connection
// (S13): the body that the backend did not want is never taken for a request.
func TestRefusedExpectationsPoisonNothing(t *testing.T) {
	t.Parallel()
	refuse := backendThatSays(t, func(req *http.Request) string {
		if req.Header.Get("Expect") != "" {
			return head(413, "Content-Length: 3") + "big"
		}
		return head(200, lengthOf(req.RequestURI)) + req.RequestURI
	})
	d := start(t, proxyAll(", retry: { attempts: 0 }", refuse))
	other := d.raw(t, "")
	for i := range 20 {
		c := d.raw(t, "POST /refused HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"+lengthOf(inside)+"\r\n\r\n")
		a, err := c.final(http.MethodPost)
		require.NoError(t, err)
		require.Equal(t, http.StatusRequestEntityTooLarge, a.Status, "%d: %s", i, a.Body)
		_, _ = io.WriteString(c, inside) // a client that did not listen
		_ = c.Close()
		path := fmt.Sprintf("/innocent/%d", i)
		require.Equal(t, path, other.ask("GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n").Body)
	}
}
