package front

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// through is a tunnel with both its ends in a test's hands.
type through struct {
	*world
	client, backend net.Conn
	done            chan struct{} // closed when the front is done with it
}

// upgrading is a client's, and what the backend answers.
const (
	upgrading = "GET /x HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
	switched = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
)

// newTunnelled opens a tunnel, over which the backend has said said. before, if
// not nil, is called when the request has come to the backend.
func newTunnelled(t *testing.T, said string, before func(*Handler)) *through {
	t.Helper()
	f := &through{done: make(chan struct{})}
	hijacked := make(chan net.Conn, 1)
	f.world = newWorld(t, func(w http.ResponseWriter, _ *http.Request) {
		if before != nil {
			before(f.Handler.(*Handler))
		}
		c, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			_, err = io.WriteString(c, switched+said)
		}
		if err != nil {
			t.Error(err)
		}
		hijacked <- c
	})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(f.done)
		f.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	var err error
	f.client, err = net.Dial("tcp", s.Listener.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.client.Close() })
	_, err = io.WriteString(f.client, upgrading)
	require.NoError(t, err)
	f.backend = <-hijacked
	t.Cleanup(func() { _ = f.backend.Close() })
	for _, c := range []net.Conn{f.client, f.backend} { // a test that fails should not hang
		require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	}
	for head := ""; !strings.HasSuffix(head, "\r\n\r\n"); { // and not a byte more
		one := make([]byte, 1)
		_, err = f.client.Read(one)
		require.NoError(t, err)
		head += string(one)
	}
	return f
}

func (f *through) handler() *Handler { return f.Handler.(*Handler) }

// ended requires that the front is done with the tunnel.
func (f *through) ended(t *testing.T) {
	t.Helper()
	select {
	case <-f.done:
	case <-time.After(10 * time.Second):
		t.Fatal("the tunnel goes on")
	}
	require.Zero(t, f.handler().Tunnels())
	require.Zero(t, f.front.Busy())
	require.Equal(t, http.StatusSwitchingProtocols, f.finished[0].status)
}

// hears requires that c is sent want next.
func hears(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	_, err := io.ReadFull(c, got)
	require.NoError(t, err)
	require.Equal(t, want, string(got))
}

// hearsTheEnd requires that c is sent want and then a FIN: no reset.
func hearsTheEnd(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, want, string(got))
}

func say(t *testing.T, c net.Conn, what string) {
	t.Helper()
	_, err := io.WriteString(c, what)
	require.NoError(t, err)
}

func shut(t *testing.T, c net.Conn) {
	t.Helper()
	require.NoError(t, c.(*net.TCPConn).CloseWrite())
}

const (
	hello     = "\x81\x05hello"
	leaving   = "\x88\x02\x03\xe9"         // 1001, from lb
	farewell  = "\x88\x82\x01\x01\x01\x01" // of the client, masked
	unhurried = time.Minute
)

// A WebSocket closes in its own language, and then the connections do.
func TestATunnelEndsWithACloseFrame(t *testing.T) {
	f := newTunnelled(t, hello, nil)
	hears(t, f.client, hello)
	require.Equal(t, 1, f.handler().Tunnels())
	f.handler().EndTunnels(unhurried)
	hears(t, f.client, leaving)
	say(t, f.backend, hello) // too late: nothing follows a close frame
	say(t, f.client, farewell)
	hears(t, f.backend, farewell)
	say(t, f.backend, "\x88\x02\x03\xe9")
	shut(t, f.backend)
	hearsTheEnd(t, f.client, "")
	shut(t, f.client)
	hearsTheEnd(t, f.backend, "")
	f.ended(t)
	require.Equal(t, int64(len(farewell)), f.finished[0].in)
	require.Equal(t, int64(len(hello+leaving)), f.finished[0].out)
}

// The close frame waits for the end of the frame that is under way.
func TestTheCloseFrameSplitsNoOther(t *testing.T) {
	f := newTunnelled(t, hello+hello[:4], nil)
	hears(t, f.client, hello+hello[:4])
	f.handler().EndTunnels(unhurried)
	say(t, f.client, "ping")
	hears(t, f.backend, "ping") // so it has been asked to end
	say(t, f.backend, hello[4:])
	hears(t, f.client, hello[4:]+leaving)
	shut(t, f.client)
	hearsTheEnd(t, f.backend, "")
	shut(t, f.backend)
	hearsTheEnd(t, f.client, "")
	f.ended(t)
}

// A backend that says goodbye itself hears the client's answer.
func TestOneCloseFrameIsEnough(t *testing.T) {
	const own = "\x88\x02\x03\xe8"
	f := newTunnelled(t, own, nil)
	hears(t, f.client, own)
	f.handler().EndTunnels(unhurried)
	say(t, f.client, farewell)
	hears(t, f.backend, farewell)
	shut(t, f.backend)
	hearsTheEnd(t, f.client, "")
	shut(t, f.client)
	f.ended(t)
}

// Where nobody can know what a frame is, the backend is told by a FIN, and what
// it says to that still reaches the client, also one that goes on sending.
func TestATunnelOfNoFramesIsHalfClosed(t *testing.T) {
	f := newTunnelled(t, "no frames", nil)
	hears(t, f.client, "no frames")
	say(t, f.client, "bye")
	hears(t, f.backend, "bye")
	f.handler().EndTunnels(unhurried)
	hearsTheEnd(t, f.backend, "")
	say(t, f.client, "never read by the backend")
	say(t, f.backend, "last words")
	shut(t, f.backend)
	hearsTheEnd(t, f.client, "last words")
	shut(t, f.client)
	f.ended(t)
}

// Nobody has to answer: when the time is over, both ends are closed.
func TestTheTimeToEndIsBounded(t *testing.T) {
	for name, said := range map[string]string{"frames": hello, "half a frame": hello[:3], "no frames": "abc"} {
		t.Run(name, func(t *testing.T) {
			f := newTunnelled(t, said, nil)
			hears(t, f.client, said)
			f.handler().EndTunnels(50 * time.Millisecond)
			want := ""
			if name == "frames" {
				want = leaving
			}
			hearsTheEnd(t, f.client, want)
			hearsTheEnd(t, f.backend, "")
			f.ended(t)
		})
	}
}

// Also where the backend reads nothing and the pump to it is stuck.
func TestATunnelThatIsStuckEnds(t *testing.T) {
	f := newTunnelled(t, hello, nil)
	hears(t, f.client, hello)
	stuck := make(chan struct{})
	go func() {
		defer close(stuck)
		for err := error(nil); err == nil; {
			_, err = f.client.Write(make([]byte, 64<<10))
		}
	}()
	require.NoError(t, f.client.SetWriteDeadline(time.Now().Add(200*time.Millisecond)))
	<-stuck
	f.handler().EndTunnels(50 * time.Millisecond)
	f.ended(t)
}

// A handshake that was under way when the tunnels were told to end.
func TestATunnelThatComesTooLateEnds(t *testing.T) {
	f := newTunnelled(t, "", func(h *Handler) { h.EndTunnels(unhurried) })
	hears(t, f.client, leaving)
	shut(t, f.client)
	hearsTheEnd(t, f.backend, "")
	shut(t, f.backend)
	f.ended(t)
}

// As long as nobody asks it to end, a tunnel is over when either side is.
func TestATunnelIsOverWithEitherSide(t *testing.T) {
	for _, first := range []string{"client", "backend"} {
		t.Run(first, func(t *testing.T) {
			f := newTunnelled(t, hello, nil)
			hears(t, f.client, hello)
			one, other := f.client, f.backend
			if first == "backend" {
				one, other = other, one
			}
			shut(t, one)
			hearsTheEnd(t, other, "")
			f.ended(t)
		})
	}
}

// A backend that goes just when its tunnel is asked to end leaves the goodbye to
// lb.
func TestTheBackendLeavesFirst(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	client, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer func() { _ = client.Close() }()
	here, err := l.Accept()
	require.NoError(t, err)
	tunnel := newTunnel(here, bufio.NewReader(here))
	defer func() { _ = tunnel.Close() }()
	tunnel.ending.Store(true)
	require.NoError(t, tunnel.CloseWrite())
	hearsTheEnd(t, client, leaving)
}

// One listener drains alone.
func TestAListenerDrains(t *testing.T) {
	w := newWorld(t, nil)
	here, there := w.Handler.(*Handler), w.front.Handler(w.listener, time.Minute)
	closes := func(h http.Handler) bool {
		w.Handler = h
		rec := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/own", nil)
		r.RequestURI = "/own"
		w.serve(t, rec, r)
		return rec.Header().Get("Connection") == "close"
	}
	require.Equal(t, []bool{false, false}, []bool{closes(here), closes(there)})
	here.Drain()
	require.Equal(t, []bool{true, false}, []bool{closes(here), closes(there)})
	w.front.Drain()
	require.Equal(t, []bool{true, true}, []bool{closes(here), closes(there)})
}
