package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"
)

// requireIdle waits until no backend has a request any more.
func requireIdle(t testing.TB, d *daemon) {
	t.Helper()
	poll(t, patience, "the leases to end", func() bool { return d.metric("lb_backend_in_flight") == 0 })
}

// Promise: a WebSocket passes through, in both directions, for as long as it
// is open; it holds its lease until it closes.
func TestWebSocket(t *testing.T) {
	t.Parallel()
	d := start(t, proxyAll("", backend(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"echo"}})
		if err != nil {
			return
		}
		c.SetReadLimit(1 << 21)
		for {
			kind, message, err := c.Read(context.Background())
			if err != nil {
				return // the client closed
			}
			if err := c.Write(context.Background(), kind, message); err != nil {
				return
			}
		}
	}))))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, res, err := websocket.Dial(ctx, d.URL+"/socket", &websocket.DialOptions{HTTPClient: d.client, Subprotocols: []string{"echo"}})
	require.NoError(t, err)
	require.Equal(t, "echo", c.Subprotocol())
	require.Len(t, res.Header.Get("X-Request-Id"), 32)
	c.SetReadLimit(1 << 21)
	for i := range 20 {
		message := strings.Repeat(fmt.Sprint(i), 1<<i/10)
		require.NoError(t, c.Write(ctx, websocket.MessageText, []byte(message)))
		_, echoed, err := c.Read(ctx)
		require.NoError(t, err)
		require.Equal(t, message, string(echoed))
	}
	require.Equal(t, 1.0, d.metric("lb_backend_in_flight"))
	require.NoError(t, c.Close(websocket.StatusNormalClosure, ""))
	requireIdle(t, d)
	d.stop()
	line := d.accessLog()[0]
	require.Equal(t, 101.0, line["status"])
	require.Greater(t, line["bytes_in"], 1e5)
	require.Greater(t, line["bytes_out"], 1e5)
}

const handshake = "GET /socket HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n" +
	"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"

// switching is a backend that switches, greets in the same write, and echoes
// bytes until the client ends; then it closes too.
func switching(conn net.Conn) {
	in := bufio.NewReader(conn)
	if _, err := http.ReadRequest(in); err != nil {
		return
	}
	_, _ = io.WriteString(conn, head(101, "Connection: Upgrade, X-Gone", "Upgrade: websocket", "X-Gone: 1", "Keep-Alive: timeout=5", "X-Kept: 1", "X-Request-Id: theirs")+"hello ")
	for b, err := in.ReadByte(); err == nil && b != '!'; b, err = in.ReadByte() {
		_, _ = conn.Write([]byte{b})
	}
}

// Promise: no byte is lost around a handshake, neither a client's that does not
// wait for the answer nor a backend's; and of the backend's fields the client
// gets those that are meant for it.
func TestBytesAroundTheHandshake(t *testing.T) {
	t.Parallel()
	b := rawBackend(t, switching)
	d := start(t, proxyAll("", b.Addr))
	c := d.raw(t, handshake+"first frame")
	res := c.head(http.MethodGet)
	require.Equal(t, http.StatusSwitchingProtocols, res.StatusCode)
	require.Len(t, res.Header["X-Request-Id"], 1)
	require.Equal(t, http.Header{
		"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "X-Kept": {"1"}, "X-Request-Id": res.Header["X-Request-Id"],
	}, res.Header)
	requireNext(t, c, "hello first frame")
	c.send("second")
	requireNext(t, c, "second")
}

func requireNext(t testing.TB, in io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	_, err := io.ReadFull(in, got)
	require.NoError(t, err, "instead of %q", want)
	require.Equal(t, want, string(got))
}

// Promise: a tunnel ends when either side ends it, and its lease with it.
func TestTunnelsCloseBothWays(t *testing.T) {
	t.Parallel()
	ended := make(chan struct{}, 2)
	b := rawBackend(t, func(conn net.Conn) {
		switching(conn)
		_ = conn.Close()
		ended <- struct{}{}
	})
	d := start(t, proxyAll("", b.Addr))
	open := func() *rawConn {
		c := d.raw(t, handshake)
		require.Equal(t, http.StatusSwitchingProtocols, c.head(http.MethodGet).StatusCode)
		requireNext(t, c, "hello ")
		require.Equal(t, 1.0, d.metric("lb_backend_in_flight"))
		return c
	}
	c := open()
	_ = c.Close()
	await(t, "the backend to be let go", ended)
	requireIdle(t, d)

	c = open()
	c.send("!") // makes the backend close
	await(t, "the backend to be let go", ended)
	c.closed()
	requireIdle(t, d)
}

// await waits for a word from elsewhere.
func await[T any](t testing.TB, what string, word <-chan T) (said T) {
	t.Helper()
	select {
	case said = <-word:
	case <-time.After(patience):
		require.FailNow(t, "waited in vain for "+what)
	}
	return said
}

// dripping is a backend that sends its answer in pieces, the first at once and
// each further one when next is called; then it closes.
func dripping(t testing.TB, pieces ...string) (addr string, next func()) {
	told, over := make(chan struct{}, len(pieces)), make(chan struct{})
	b := rawBackend(t, func(conn net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
			return
		}
		for _, piece := range pieces {
			if _, err := io.WriteString(conn, piece); err != nil {
				return
			}
			select {
			case <-told:
			case <-over:
				return
			}
		}
	})
	t.Cleanup(func() { close(over) })
	return b.Addr, func() { told <- struct{}{} }
}

// Promise: what a backend sends arrives as it comes, whatever its framing: no
// piece waits for the next.
func TestStreamsFlowAsTheyCome(t *testing.T) {
	for name, framing := range map[string]struct{ head, format string }{
		"events":           {head(200, "Content-Type: text/event-stream", "Transfer-Encoding: chunked"), "7\r\nevent %d\r\n"},
		"chunks":           {head(200, "Transfer-Encoding: chunked"), "7\r\nevent %d\r\n"},
		"until close":      {head(200, "Content-Type: text/plain"), "event %d"},
		"HTTP/1.0":         {"HTTP/1.0 200 OK\r\n\r\n", "event %d"},
		"with a length":    {head(200, "Content-Length: 7000"), "event %d"},
		"events of length": {head(200, "Content-Type: text/event-stream", "Content-Length: 7000"), "event %d"},
	} {
		for _, proto := range []string{"1.1", "1.0"} {
			t.Run(name+" to "+proto, func(t *testing.T) {
				t.Parallel()
				pieces := []string{framing.head + fmt.Sprintf(framing.format, 0)}
				for i := 1; i < 5; i++ {
					pieces = append(pieces, fmt.Sprintf(framing.format, i))
				}
				addr, next := dripping(t, pieces...)
				d := start(t, proxyAll("", addr))
				c := d.raw(t, "GET / HTTP/"+proto+"\r\nHost: x\r\n\r\n")
				res := c.head(http.MethodGet)
				for i := range pieces {
					requireNext(t, res.Body, fmt.Sprintf("event %d", i))
					if i+1 < len(pieces) {
						next()
					}
				}
				require.Equal(t, 1.0, d.metric("lb_backend_in_flight"), "the lease ends with the last byte")
				_ = c.Close() // the client has enough
				requireIdle(t, d)
				d.stop()
				require.Equal(t, "client_closed", d.accessLog()[0]["code"])
			})
		}
	}
}

// Promise: the head of a stream does not wait for its first piece.
func TestStreamHeadsAreNotHeldBack(t *testing.T) {
	t.Parallel()
	addr, next := dripping(t, head(200, "Transfer-Encoding: chunked"), "2\r\nok\r\n0\r\n\r\n")
	d := start(t, proxyAll("", addr))
	c := d.raw(t, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	res := c.head(http.MethodGet)
	next()
	requireNext(t, res.Body, "ok")
}

// Promise: interim responses reach a client that knows them, without the
// fields of the backend's connection; HTTP/1.0 does not know them.
func TestEarlyHints(t *testing.T) {
	t.Parallel()
	hint := head(103, "Link: </a.css>; rel=preload", "Connection: X-Gone", "X-Gone: 1", "Keep-Alive: timeout=1", "Upgrade: h2c")
	d := start(t, proxyAll("", backendThatSays(t, func(*http.Request) string {
		return head(100) + hint + head(102) + hint + hint + head(200, "Content-Length: 2", "X-Final: 1") + "ok"
	})))
	c := d.raw(t, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	for _, want := range []int{103, 102, 103, 103, 200} {
		a, err := c.response(http.MethodGet)
		require.NoError(t, err)
		require.Equal(t, want, a.Status)
		switch want {
		case 103:
			require.Equal(t, http.Header{"Link": {"</a.css>; rel=preload"}}, a.Header)
		case 200:
			require.Equal(t, "ok", a.Body)
			require.Empty(t, a.Header["Link"], "an interim field is not the answer's")
		}
	}
	a, err := d.raw(t, "GET / HTTP/1.0\r\nHost: x\r\n\r\n").response(http.MethodGet)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, a.Status)
}
