package front

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/exchange"
	"lb/internal/fanout"
	"lb/internal/outcome"
)

func TestView(t *testing.T) {
	for remote, peer := range map[string]string{
		"192.0.2.1:5": "192.0.2.1", "[2001:db8::1]:5": "2001:db8::1", "[::ffff:192.0.2.1]:5": "192.0.2.1",
		"[fe80::1%eth0]:5": "fe80::1", "@": "", "": "", "/run/lb.sock": "",
	} {
		r := httptest.NewRequest(http.MethodPut, "/", nil)
		r.RemoteAddr, r.RequestURI, r.Host = remote, "/a%2Fb?c", "h:1"
		var v view
		v.reset(r)
		want := netip.Addr{}
		if peer != "" {
			want = netip.MustParseAddr(peer)
		}
		require.Equal(t, want, v.Peer(), remote)
		require.Equal(t, []string{"PUT", "/a%2Fb?c", "h:1"}, []string{v.Method(), v.Target(), v.Host()})
		v.reset(nil)
		require.Equal(t, view{}, v)
	}
}

func TestViewOfFields(t *testing.T) {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header = http.Header{
		"Connection": {"close, x-hidden", " Idempotency-Key"},
		"X-Hidden":   {"1"}, "Idempotency-Key": {"k"},
		"X-Forwarded-For": {"a, b", "c"}, "X-Request-Id": {"id"}, "X-Empty": {""},
	}
	var v view
	v.reset(r)
	for field, want := range map[string]string{
		"X-Forwarded-For": "a, b, c", "X-Request-Id": "id", "X-Empty": "", "X-None": "", "X-Hidden": "", "Idempotency-Key": "",
	} {
		require.Equal(t, want, v.Lookup(field), field)
	}
	require.Equal(t, 8, v.Fields(), "lines, not names")
}

// deadlines is a connection that keeps what its read deadline was set to.
type deadlines struct {
	http.ResponseWriter
	set []time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error {
	d.set = append(d.set, t)
	return nil
}

func (d *deadlines) EnableFullDuplex() error { return nil }

// state names the deadline that stands now.
func (d *deadlines) state() string {
	switch last := d.set[len(d.set)-1]; {
	case last.IsZero():
		return "none"
	case last.Before(time.Now()):
		return "past"
	default:
		return "ahead"
	}
}

func newBody(content io.Reader) (*body, *deadlines) {
	d := &deadlines{ResponseWriter: httptest.NewRecorder()}
	return &body{ReadCloser: io.NopCloser(content), control: http.NewResponseController(d), idle: time.Minute}, d
}

func TestEachReadOfABodyHasADeadline(t *testing.T) {
	b, d := newBody(iotest.OneByteReader(strings.NewReader("abc")))
	for range 3 {
		n, err := b.Read(make([]byte, 9))
		require.NoError(t, err)
		require.Equal(t, 1, n)
		require.Equal(t, "ahead", d.state())
	}
	_, err := b.Read(make([]byte, 9))
	require.ErrorIs(t, err, io.EOF)
	require.Len(t, d.set, 5)
	require.Equal(t, "none", d.state(), "the backend is at work now")
	require.Equal(t, int64(3), b.read.Load())
	b.Interrupt()
	b.abandon(true)
	require.Len(t, d.set, 5, "there is nothing left to wait for")
	require.False(t, b.cutShort())
}

func TestInterruptedBodies(t *testing.T) {
	b, d := newBody(strings.NewReader("abc"))
	b.Interrupt()
	require.Equal(t, "past", d.state())
	_, _ = b.Read(make([]byte, 1))
	require.Equal(t, "past", d.state(), "a read that was about to begin ends too")
	require.True(t, b.cutShort())
	b.abandon(true)
	require.Equal(t, "ahead", d.state(), "net/http takes the rest off the wire for a while")
	b.Interrupt()
	require.Equal(t, "ahead", d.state(), "the connection may be another request's by now")
}

func TestWithheldBodies(t *testing.T) {
	b, _ := newBody(strings.NewReader("abc"))
	require.False(t, b.withheld(), "nobody said Expect")
	b.awaited = true
	require.True(t, b.withheld())
	_, _ = b.Read(make([]byte, 1))
	require.False(t, b.withheld(), "reading is the leave to send")
}

// Which answers wait for the end of the body, and for how long.
func TestAnswersBeforeTheEndOfTheBody(t *testing.T) {
	failure := &outcome.Error{Code: outcome.BackendReset}
	for name, c := range map[string]struct {
		prepare func(*writer)
		early   bool
		left    string // the deadline for net/http
	}{
		"lb's own":               {func(*writer) {}, false, "ahead"},
		"lb's own, nothing sent": {func(w *writer) { w.body.awaited = true }, true, ""},
		"no backend was reached": {func(w *writer) { w.x.Backend, w.x.Failure = new(backend.Backend), failure }, false, "ahead"},
		"a backend failed during the upload": {func(w *writer) {
			w.x.Backend, w.x.Failure = new(backend.Backend), failure
			w.body.begun.Store(true)
		}, true, ""},
		"a backend's":                {func(w *writer) { w.x.Backend = new(backend.Backend) }, true, ""},
		"time over during a pause":   {func(w *writer) { w.x.Backend, w.x.Failure = new(backend.Backend), failure; w.body.Interrupt() }, true, "past"},
		"the body is whole":          {func(w *writer) { w.body.end() }, false, "none"},
		"there is no body":           {func(w *writer) { w.body = nil }, false, ""},
		"a backend's, body is whole": {func(w *writer) { w.x.Backend = new(backend.Backend); w.body.end() }, false, "none"},
	} {
		w, _ := newWriter(http.MethodPost)
		b, d := newBody(strings.NewReader("abc"))
		w.body = b
		c.prepare(w)
		w.WriteHeader(http.StatusOK)
		require.Equal(t, c.early, w.Header().Get("Connection") == "close", name)
		if c.left == "" {
			require.Empty(t, d.set, name)
		} else {
			require.Equal(t, c.left, d.state(), name)
		}
	}
}

func TestReadAll(t *testing.T) {
	late := iotest.ErrReader(os.ErrDeadlineExceeded)
	left, leave := context.WithCancel(context.Background())
	leave()
	for name, c := range map[string]struct {
		body   io.Reader
		length int64
		ctx    context.Context
		code   outcome.Code
	}{
		"nothing":                {strings.NewReader(""), 0, t.Context(), ""},
		"as much as is allowed":  {strings.NewReader("12345"), 5, t.Context(), ""},
		"in chunks":              {strings.NewReader("12345"), -1, t.Context(), ""},
		"too much":               {iotest.ErrReader(errors.New("is not even read")), 6, t.Context(), outcome.BodyTooLarge},
		"too much in chunks":     {strings.NewReader("123456"), -1, t.Context(), outcome.BodyTooLarge},
		"broken":                 {io.MultiReader(strings.NewReader("1"), iotest.ErrReader(errors.New("malformed chunk"))), -1, t.Context(), outcome.BadRequest},
		"paused for too long":    {late, 5, t.Context(), outcome.BadRequest},
		"paused, and called off": {late, 5, left, outcome.BadRequest},
		"left":                   {iotest.ErrReader(io.ErrUnexpectedEOF), 5, left, "panic"},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodPost, "/", c.body).WithContext(c.ctx)
			r.ContentLength = c.length
			if c.code == "panic" {
				require.PanicsWithError(t, http.ErrAbortHandler.Error(), func() { _, _ = readAll(r, 5) })
				return
			}
			content, failure := readAll(r, 5)
			if c.code != "" {
				require.Equal(t, c.code, failure.Code)
				require.Empty(t, content)
				return
			}
			require.Nil(t, failure)
			require.Equal(t, int64(len(content)), max(c.length, int64(len(content))))
		})
	}
}

func TestEndToEnd(t *testing.T) {
	said := http.Header{
		"Connection": {"close, x-a", "X-B"}, "Keep-Alive": {"1"}, "Proxy-Authorization": {"s"}, "Proxy-Connection": {"1"},
		"Te": {"trailers"}, "Trailer": {"X"}, "Transfer-Encoding": {"chunked"}, "Upgrade": {"h2c"},
		"Content-Length": {"1"}, "Expect": {"100-continue"}, "Idempotency-Key": {"k"},
		"X-A": {"1"}, "X-B": {"2"}, "X-C": {"2", "1"}, "Accept": {""}, "Cookie": {"c"},
		"X-Forwarded-For": {"spoof"}, "X-Forwarded-Host": {"spoof"}, "X-Forwarded-Proto": {"spoof"}, "X-Forwarded-Port": {"1"},
		"Forwarded": {"for=spoof"}, "X-Real-Ip": {"spoof"}, "X_forwarded_for": {"spoof"}, "X-Request-Id": {"theirs"},
	}
	own := []fanout.Field{{Name: "X-C", Value: "2"}, {Name: "X-C", Value: "1"}} // in the client's order
	forwarded := []fanout.Field{
		{Name: "X-Forwarded-For", Value: "c"}, {Name: "X-Forwarded-Host", Value: "h"}, {Name: "X-Forwarded-Proto", Value: "http"},
	}
	id := fanout.Field{Name: "X-Request-Id", Value: "id"}
	forward := exchange.Forward{For: "c", Host: "h", Proto: "http", RequestID: "id"}
	accept, cookie := fanout.Field{Name: "Accept"}, fanout.Field{Name: "Cookie", Value: "c"}

	want := append(append([]fanout.Field{accept, cookie}, own...), append(forwarded, id)...)
	for range 20 { // the order of a map is not the order of a request
		require.Equal(t, want, endToEnd(said, &forward))
	}
	forward.Trusted = true
	want = append([]fanout.Field{accept, cookie, {Name: "Forwarded", Value: "for=spoof"}}, own...)
	want = append(want, forwarded[:2]...)
	want = append(want, fanout.Field{Name: "X-Forwarded-Port", Value: "1"}, forwarded[2], fanout.Field{Name: "X-Real-Ip", Value: "spoof"}, id)
	require.Equal(t, want, endToEnd(said, &forward))
	require.Empty(t, endToEnd(http.Header{}, &exchange.Forward{}), "what lb does not know, it does not say")
}
