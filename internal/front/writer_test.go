package front

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"lb/internal/exchange"
)

// contextOfServer marks a request as one that a server serves: without it
// httputil takes a broken response for a test's and does not panic.
func contextOfServer(ctx context.Context) context.Context {
	return context.WithValue(ctx, http.ServerContextKey, new(http.Server))
}

// heads is a connection that keeps every head it is told to send.
type heads struct {
	*httptest.ResponseRecorder
	sent    []int
	flushes int
}

func (h *heads) WriteHeader(status int) {
	h.sent = append(h.sent, status)
	if status >= 200 {
		h.ResponseRecorder.WriteHeader(status)
	}
}

func (h *heads) FlushError() error { h.flushes++; return nil }

func newWriter(method string) (*writer, *heads) {
	to := &heads{ResponseRecorder: httptest.NewRecorder()}
	x := &exchange.Exchange{Method: method}
	x.Forward.RequestID = "id"
	return &writer{ResponseWriter: to, x: x, handler: &Handler{front: new(Front)}}, to
}

func TestInterimHeads(t *testing.T) {
	for _, c := range []struct {
		http10  bool
		status  int
		passed  []int
		counted bool
	}{
		{false, http.StatusEarlyHints, []int{103}, true},
		{false, http.StatusProcessing, []int{102}, true},
		{false, http.StatusContinue, nil, false}, // net/http's own to say
		{true, http.StatusEarlyHints, nil, false},
	} {
		w, to := newWriter(http.MethodGet)
		w.http10 = c.http10
		w.WriteHeader(c.status)
		require.Equal(t, c.passed, to.sent)
		require.Equal(t, c.counted, w.x.HeadSent.Load(), "from then on nothing is retried")
		require.Zero(t, w.x.Status)
		require.Empty(t, w.Header(), "what belongs to the final head waits for it")
	}
}

func TestFinalHeads(t *testing.T) {
	type header = http.Header
	for name, c := range map[string]struct {
		said, sent header
		draining   bool
	}{
		"nothing is sniffed":           {header{}, header{"Content-Type": nil}, false},
		"a content type stands":        {header{"Content-Type": {"a/b"}}, header{"Content-Type": {"a/b"}}, false},
		"an empty one too":             {header{"Content-Type": {""}}, header{"Content-Type": {""}}, false},
		"another's id":                 {header{"X-Request-Id": {"theirs"}}, header{"Content-Type": nil}, false},
		"leading zeros":                {header{"Content-Length": {"010"}}, header{"Content-Type": nil, "Content-Length": {"10"}}, false},
		"a length of zero":             {header{"Content-Length": {"0"}}, header{"Content-Type": nil, "Content-Length": {"0"}}, false},
		"the drain ends connections":   {header{}, header{"Content-Type": nil, "Connection": {"close"}}, true},
		"whatever the backend says of": {header{"Connection": {"keep-alive"}}, header{"Content-Type": nil, "Connection": {"close"}}, true},
	} {
		w, to := newWriter(http.MethodGet)
		for name, values := range c.said {
			w.Header()[name] = values
		}
		w.handler.draining.Store(c.draining)
		w.WriteHeader(http.StatusOK)
		c.sent["X-Request-Id"] = []string{"id"}
		require.Equal(t, c.sent, to.Header(), name)
		require.Equal(t, http.StatusOK, w.x.Status)
		require.True(t, w.x.HeadSent.Load())
	}
}

// The drain may begin between a request and its answer.
func TestDrainIsLookedAtWhenTheHeadIsSent(t *testing.T) {
	w := newWorld(t, nil)
	rec := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodPost, "/own", &trigger{do: w.front.Drain})
	r.RequestURI, r.Header = "/x", http.Header{}
	w.serve(t, rec, r)
	require.Equal(t, "close", rec.Header().Get("Connection"))
}

// trigger is a body that does something when it is read.
type trigger struct{ do func() }

func (b *trigger) Read([]byte) (int, error) { b.do(); return 0, io.EOF }

func TestWritesAreCountedAndFlushed(t *testing.T) {
	for name, c := range map[string]struct {
		method, length string
		flushes        int
		out            int64
	}{
		"of known length":  {"GET", "6", 1, 6}, // all but the last piece
		"without a length": {"GET", "", 0, 6},  // httputil flushes these
		"to HEAD":          {"HEAD", "6", 2, 0},
	} {
		w, to := newWriter(c.method)
		if c.length != "" {
			w.Header().Set("Content-Length", c.length)
		}
		for _, piece := range []string{"abc", "def"} {
			n, err := w.Write([]byte(piece))
			require.NoError(t, err)
			require.Equal(t, len(piece), n)
		}
		require.Equal(t, http.StatusOK, w.x.Status, "a write without a head is one of 200")
		require.Equal(t, []int{200}, to.sent)
		require.Equal(t, c.flushes, to.flushes, name)
		require.Equal(t, c.out, w.x.BytesOut, name)
		require.NoError(t, w.broken)
	}
	w, to := newWriter(http.MethodGet)
	require.NoError(t, w.FlushError())
	require.Equal(t, []int{200}, to.sent, "a flush sends the head")
}

func TestErrorsInWritingAreKept(t *testing.T) {
	w, to := newWriter(http.MethodGet)
	w.note(http.ErrBodyNotAllowed) // an answer to HEAD, a 304: nobody left
	require.NoError(t, w.broken)
	w.ResponseWriter = gone{to}
	_, first := w.Write([]byte("x"))
	require.Error(t, first)
	w.note(io.ErrClosedPipe)
	require.Equal(t, first, w.broken)
}

// pair is a connection that can be hijacked.
type pair struct {
	*httptest.ResponseRecorder
	conn net.Conn
	rw   *bufio.ReadWriter
}

func (p pair) Hijack() (net.Conn, *bufio.ReadWriter, error) { return p.conn, p.rw, nil }

// What the client has sent behind its handshake comes first, and is counted.
func TestTunnelsBeginWithWhatIsThere(t *testing.T) {
	here, there := net.Pipe()
	defer func() { _, _ = here.Close(), there.Close() }()
	in := bufio.NewReader(strings.NewReader("early "))
	_, err := in.Peek(6)
	require.NoError(t, err)
	w, to := newWriter(http.MethodGet)
	w.ResponseWriter = pair{to.ResponseRecorder, here, bufio.NewReadWriter(in, bufio.NewWriter(here))}
	conn, _, err := w.Hijack()
	require.NoError(t, err)
	require.Equal(t, http.StatusSwitchingProtocols, w.x.Status)
	require.True(t, w.x.HeadSent.Load())
	require.Equal(t, []string{"id"}, w.Header()["X-Request-Id"])

	go func() { _, _ = io.WriteString(there, "late") }()
	got := make([]byte, 10)
	n, err := conn.Read(got[:3])
	require.NoError(t, err)
	require.Equal(t, "ear", string(got[:n]))
	_, err = io.ReadFull(conn, got[3:])
	require.NoError(t, err)
	require.Equal(t, "early late", string(got))
	heard := make(chan []byte)
	go func() {
		b := make([]byte, 2)
		_, _ = io.ReadFull(there, b)
		heard <- b
	}()
	_, err = conn.Write([]byte("ok"))
	require.NoError(t, err)
	require.True(t, bytes.Equal([]byte("ok"), <-heard))
	require.Equal(t, []int64{10, 2}, []int64{w.tunnel.in.Load(), w.tunnel.out.Load()})
}
