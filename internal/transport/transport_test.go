package transport

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/outcome"
)

// A kept connection dies under a request: the server reads it and hangs up.
// Whether net/http may send it again by itself is not net/http's to say.
func TestNoHiddenResend(t *testing.T) {
	key := []string{"Idempotency-Key", "k"}
	for _, test := range []struct {
		method string
		body   string
		fields []string
		resent bool
	}{
		{"GET", "", nil, true},
		{"HEAD", "", nil, true},
		{"OPTIONS", "", nil, true},
		{"GET", "", key, true},
		{"PUT", "", key, true},
		{"DELETE", "", key, true},
		{"PUT", "", nil, false},
		{"DELETE", "", nil, false},
		{"POST", "", nil, false},
		{"POST", "", key, false},
		{"POST", "", []string{"X-Idempotency-Key", "k"}, false},
		{"PATCH", "", key, false},
		{"PURGE", "", key, false},
		{"POST", "body", nil, false},
		{"POST", "body", key, false},
		{"PUT", "body", key, false},
	} {
		t.Run(fmt.Sprintf("%s %q %q", test.method, test.body, test.fields), func(t *testing.T) {
			const kept = 3
			var all sync.WaitGroup
			all.Add(kept)
			s := newServer(t, func(w io.Writer, r *http.Request, conn, n int) bool {
				if conn <= kept && n == 1 { // all connections are open before the first is free
					all.Done()
					all.Wait()
				}
				_, _ = io.Copy(io.Discard, r.Body) // cut short or not
				return (conn > kept || n == 1) && ok(w)
			})
			tr, _ := newTransport(t, s.address)
			var warm sync.WaitGroup
			for range kept {
				warm.Go(func() {
					if status, _ := roundTrip(t, tr, request(t, "GET", nil)); status != 200 {
						t.Error("warming up:", status)
					}
				})
			}
			warm.Wait()
			require.Len(t, s.requests(), kept)

			var body io.Reader
			if test.body != "" {
				body = strings.NewReader(test.body)
			}
			status, class := roundTrip(t, tr, request(t, test.method, body, test.fields...))
			got := s.requests()
			if test.resent {
				require.Equal(t, 200, status)
				require.Len(t, got, kept+1, "each dead connection, then a new one: %v", got)
				return
			}
			require.Equal(t, outcome.Reset, class)
			require.Len(t, got, 1, "sent once, whatever became of it: %v", got)
		})
	}
}

func TestDialErrorsAreTypedAndMarkTheBackend(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	tr, b := newTransport(t, l.Addr().String())
	_, err = tr.RoundTrip(request(t, "GET", nil))
	var dial *outcome.DialError
	require.ErrorAs(t, err, &dial)
	require.Equal(t, b.Address, dial.Address)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	require.True(t, b.Unreachable())

	// It comes back at the same address: the next dial clears the mark.
	l, err = net.Listen("tcp", b.Address)
	require.NoError(t, err)
	server := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Second}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	defer serving.Wait()
	defer func() { _ = server.Close() }()
	status, _ := roundTrip(t, tr, request(t, "GET", nil))
	require.Equal(t, 404, status)
	require.False(t, b.Unreachable())

	// An answer over a kept connection is no dial.
	b.DialFailed()
	status, _ = roundTrip(t, tr, request(t, "GET", nil))
	require.Equal(t, 404, status)
	require.True(t, b.Unreachable())
}

func TestWantOfDescriptorsDoesNotMarkTheBackend(t *testing.T) {
	tr, b := newTransport(t, "127.0.0.1:1")
	var limit syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 3, Max: limit.Max}))
	_, class := roundTrip(t, tr, request(t, "GET", nil))
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit))
	require.Equal(t, outcome.Starved, class)
	require.False(t, b.Unreachable())
}

func TestACancelledRequestDoesNotMarkTheBackend(t *testing.T) {
	tr, b := newTransport(t, "127.0.0.1:1")
	dialling, dialled := make(chan struct{}), make(chan error, 1)
	dial := tr.rt.Load().DialContext
	tr.rt.Load().DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		close(dialling)
		<-ctx.Done()
		conn, err := dial(ctx, network, address)
		dialled <- err
		return conn, err
	}
	ctx, cancel := context.WithCancel(t.Context())
	answered := make(chan error, 1)
	go func() {
		_, err := tr.RoundTrip(request(t, "GET", nil).WithContext(ctx))
		answered <- err
	}()
	<-dialling
	cancel()
	err := <-answered
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, outcome.ClientGone, outcome.FromError(err).Class)
	require.False(t, b.Unreachable())

	tr.Close() // ends dials that nobody waits for any more
	require.ErrorIs(t, <-dialled, context.Canceled)
	require.False(t, b.Unreachable(), "that is no failure of the backend's")
}

func TestCloseClosesIdleConnectionsAlone(t *testing.T) {
	hold := make(chan struct{})
	s := newServer(t, func(w io.Writer, r *http.Request, _, _ int) bool {
		if r.Method == http.MethodPost {
			_, _ = io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsl")
			<-hold
			_, _ = io.WriteString(w, "ow")
			return true
		}
		return ok(w)
	})
	tr, _ := newTransport(t, s.address)
	res, err := tr.RoundTrip(request(t, "POST", nil)) // its connection stays in use
	require.NoError(t, err)
	status, _ := roundTrip(t, tr, request(t, "GET", nil))
	require.Equal(t, 200, status)

	tr.Close()
	<-s.ended // the idle one
	require.Equal(t, []string{"POST 1", "GET 2"}, s.requests())
	close(hold)
	content, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.Equal(t, "slow", string(content), "the one in use goes on to its end")
	require.NoError(t, res.Body.Close())
	<-s.ended // and is not kept after it
}

func TestRequestsGoToTheBackendWithTheClientsHost(t *testing.T) {
	read := make(chan *http.Request, 1)
	s := newServer(t, func(w io.Writer, r *http.Request, _, _ int) bool {
		read <- r
		return ok(w)
	})
	tr, _ := newTransport(t, s.address)
	req := request(t, "GET", nil)
	req.URL.Host, req.Host = "elsewhere.invalid:1", "shop.example"
	status, _ := roundTrip(t, tr, req)
	require.Equal(t, 200, status)
	got := <-read
	require.Equal(t, "shop.example", got.Host)
	require.Empty(t, got.Header["Accept-Encoding"], "none is invented")
}

func TestConnectionsAreKept(t *testing.T) {
	s := newServer(t, func(w io.Writer, _ *http.Request, _, _ int) bool { return ok(w) })
	tr, _ := newTransport(t, s.address)
	for range 5 {
		status, _ := roundTrip(t, tr, request(t, "GET", nil))
		require.Equal(t, 200, status)
	}
	require.Equal(t, []string{"GET 1", "GET 1", "GET 1", "GET 1", "GET 1"}, s.requests())
}

func TestSet(t *testing.T) {
	s := newServer(t, func(w io.Writer, _ *http.Request, _, _ int) bool { return ok(w) })
	var set Set
	var backends []*backend.Backend
	for range 2 {
		tr, b := newTransport(t, s.address)
		set.Add(b, tr)
		backends = append(backends, b)
		status, _ := roundTrip(t, set.For(b), request(t, "GET", nil))
		require.Equal(t, 200, status)
	}
	require.NotSame(t, set.For(backends[0]), set.For(backends[1]))
	require.Equal(t, []string{"GET 1", "GET 2"}, s.requests(), "backends share no connections")
	set.Close()
	<-s.ended
	<-s.ended
}
