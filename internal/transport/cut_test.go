package transport

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/outcome"
)

func TestAllowIsAskedOfEachAddressThatIsDialled(t *testing.T) {
	s := newServer(t, func(w io.Writer, _ *http.Request, _, _ int) bool { return ok(w) })
	_, port, err := net.SplitHostPort(s.address)
	require.NoError(t, err)
	for name, host := range map[string]string{
		"an address":       "127.0.0.1",
		"one that is IPv6": "::ffff:127.0.0.1",
		"a name":           "localhost",
	} {
		var mu sync.Mutex
		var judged []netip.AddrPort
		refuse := true
		b := &backend.Backend{Address: net.JoinHostPort(host, port)}
		tr := New(b, Settings{Connect: 5 * time.Second, MaxIdle: 1, Allow: func(at netip.AddrPort) error {
			mu.Lock()
			defer mu.Unlock()
			judged = append(judged, at)
			if refuse {
				return errors.New("is not allowed by registration.allow")
			}
			return nil
		}})
		t.Cleanup(tr.Close)
		_, err := tr.RoundTrip(request(t, "GET", nil))
		var dial *outcome.DialError
		require.ErrorAs(t, err, &dial, name)
		require.ErrorContains(t, err, "is not allowed by registration.allow")
		require.Equal(t, outcome.Unsent, outcome.FromError(err).Class)
		require.True(t, b.Unreachable())
		require.NotEmpty(t, judged)
		for _, at := range judged {
			require.True(t, at.Addr().IsLoopback(), "the address, not the name: %s", at)
			require.Equal(t, port, strconv.Itoa(int(at.Port())))
		}
		require.Empty(t, s.requests(), "nobody was connected to")
		mu.Lock()
		refuse = false
		mu.Unlock()
		status, _ := roundTrip(t, tr, request(t, "GET", nil))
		require.Equal(t, 200, status, name)
		s.requests()
	}
}

func (s *connections) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

// requireCut requires what everybody is told whose backend is cut off.
func requireCut(t *testing.T, err error) {
	t.Helper()
	require.ErrorIs(t, err, outcome.ErrWithdrawn)
	require.Equal(t, outcome.Withdrawn, outcome.FromError(err).Class)
}

func TestCutEndsWhatIsInFlight(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\n"
	for name, c := range map[string]struct {
		method, body string
		answer       string // as far as it comes
	}{
		"before the head":        {"GET", "", ""},
		"a POST":                 {"POST", "hello", ""},
		"within the head":        {"GET", "", head},
		"within a body":          {"GET", "", head + "Content-Length: 9\r\n\r\nhalf"},
		"within a chunked body":  {"GET", "", head + "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"},
		"a body without an end":  {"GET", "", head + "\r\nhalf"},
		"a tunnel":               {"GET", "", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhalf"},
		"after an interim head":  {"GET", "", "HTTP/1.1 103 Early Hints\r\n\r\n"},
		"on a kept connection":   {"GET", "", ""},
		"a POST on a kept one":   {"POST", "hello", ""},
		"a DELETE on a kept one": {"DELETE", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			come := make(chan struct{}, 1)
			s := newServer(t, func(w io.Writer, r *http.Request, _, _ int) bool {
				if r.Header.Get("X-Warm") != "" {
					return ok(w)
				}
				_, _ = io.WriteString(w, c.answer)
				come <- struct{}{}
				return true
			})
			tr, b := newTransport(t, s.address)
			if strings.Contains(name, "kept") {
				status, _ := roundTrip(t, tr, request(t, "GET", nil, "X-Warm", "1"))
				require.Equal(t, 200, status)
			}
			var body io.Reader
			if c.body != "" {
				body = strings.NewReader(c.body)
			}
			fields := []string{}
			if name == "a tunnel" {
				fields = []string{"Connection", "Upgrade", "Upgrade", "websocket"}
			}
			failed := make(chan error, 1)
			began := make(chan struct{})
			go func() {
				res, err := tr.RoundTrip(request(t, c.method, body, fields...))
				if err != nil {
					close(began)
					failed <- err
					return
				}
				defer func() { _ = res.Body.Close() }()
				_, _ = io.ReadFull(res.Body, make([]byte, 4))
				close(began)
				_, err = res.Body.Read(make([]byte, 1))
				if up, ok := res.Body.(io.Writer); ok {
					_, werr := up.Write([]byte("x"))
					err = errors.Join(err, werr)
				}
				failed <- err
			}()
			<-come
			if strings.Contains(c.answer, "half") {
				<-began
			}
			require.False(t, tr.IsCut())
			tr.Cut()
			requireCut(t, <-failed)
			<-s.ended
			require.False(t, b.Unreachable(), "that is no failure of the backend's")
			require.Zero(t, tr.conns.count())

			s.requests()
			for range 2 {
				_, err := tr.RoundTrip(request(t, "GET", nil))
				requireCut(t, err)
			}
			require.Empty(t, s.requests(), "nobody gets there any more")
			require.True(t, tr.IsCut())
		})
	}
}

func TestCutClosesIdleConnections(t *testing.T) {
	s := newServer(t, func(w io.Writer, _ *http.Request, _, _ int) bool { return ok(w) })
	tr, _ := newTransport(t, s.address)
	status, _ := roundTrip(t, tr, request(t, "GET", nil))
	require.Equal(t, 200, status)
	tr.Cut()
	<-s.ended
	tr.Cut() // once more is fine
}

// Nobody waits for a dial that leads nowhere.
func TestCutEndsDials(t *testing.T) {
	tr, b := newTransport(t, "127.0.0.1:1")
	dialling := make(chan struct{})
	d := &net.Dialer{Timeout: time.Hour, ControlContext: func(ctx context.Context, _, _ string, _ syscall.RawConn) error {
		close(dialling)
		<-ctx.Done()
		return ctx.Err()
	}}
	failed := make(chan error, 1)
	go func() {
		_, err := tr.dial(t.Context(), d, "tcp")
		failed <- err
	}()
	<-dialling
	tr.Cut()
	requireCut(t, <-failed)
	require.False(t, b.Unreachable())
}

// Between the choice of a connection and the first byte is time for a Cut.
func TestCutBeforeARequestIsSent(t *testing.T) {
	for _, kept := range []bool{false, true} {
		for _, method := range []string{"GET", "POST"} {
			s := newServer(t, func(w io.Writer, _ *http.Request, _, _ int) bool { return ok(w) })
			tr, _ := newTransport(t, s.address)
			if kept {
				status, _ := roundTrip(t, tr, request(t, "GET", nil))
				require.Equal(t, 200, status)
			}
			var body io.Reader
			if method == "POST" {
				body = strings.NewReader("hello")
			}
			_, err := tr.roundTrip(request(t, method, body), func(httptrace.GotConnInfo) { tr.Cut() })
			requireCut(t, err)
			s.requests()
		}
	}
}

// A dial may succeed at the moment of a Cut.
func TestNoConnectionOutlivesACut(t *testing.T) {
	tr, _ := newTransport(t, "127.0.0.1:1")
	require.True(t, tr.conns.add(&backendConn{owner: tr}))
	require.Len(t, tr.conns.end(), 1)
	require.False(t, tr.conns.add(&backendConn{owner: tr}))
}

// What comes to its end by itself at that moment has ended well.
func TestCutMakesNoErrorOfAnEnd(t *testing.T) {
	tr, _ := newTransport(t, "127.0.0.1:1")
	tr.Cut()
	require.NoError(t, tr.explain(nil))
	require.Equal(t, io.EOF, tr.explain(io.EOF))
	requireCut(t, tr.explain(net.ErrClosed))
}

func TestConnectionsThatCloseAreForgotten(t *testing.T) {
	s := newServer(t, func(w io.Writer, _ *http.Request, _, n int) bool { return ok(w) && n < 2 })
	tr, _ := newTransport(t, s.address)
	for range 6 {
		status, _ := roundTrip(t, tr, request(t, "GET", nil))
		require.Equal(t, 200, status)
	}
	tr.Close()
	require.Eventually(t, func() bool { return tr.conns.count() == 0 }, 20*time.Second, time.Millisecond)
}

func TestSetForgets(t *testing.T) {
	var set Set
	tr, b := newTransport(t, "127.0.0.1:1")
	set.Add(b, tr)
	set.Remove(b)
	require.True(t, set.For(b).IsCut(), "what is sent there fails, and nothing else")
	again := New(b, Settings{})
	set.Add(b, again)
	require.Same(t, again, set.For(b), "who comes back has a new one")
}
