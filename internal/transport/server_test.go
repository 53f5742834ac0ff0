package transport

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"lb/internal/backend"
	"lb/internal/outcome"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is a backend that writes down the requests it read, as "method
// connection", and answers each as told.
type server struct {
	address string
	mu      sync.Mutex
	log     []string
	opened  int           // connections
	ended   chan struct{} // one value for each connection that the client closed
}

// newServer starts a server. answer gets the number of the connection and of
// the request on it, both from 1, and closes the connection by returning false.
func newServer(t *testing.T, answer func(w io.Writer, r *http.Request, conn, n int) bool) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &server{address: l.Addr().String(), ended: make(chan struct{}, 1000)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.opened++
			conn := s.opened
			s.mu.Unlock()
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				in := bufio.NewReader(c)
				for n := 1; ; n++ {
					r, err := http.ReadRequest(in)
					if err != nil {
						s.ended <- struct{}{}
						return
					}
					s.mu.Lock()
					s.log = append(s.log, fmt.Sprintf("%s %d", r.Method, conn))
					s.mu.Unlock()
					if !answer(c, r, conn, n) {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return s
}

// requests returns what came in since the last call.
func (s *server) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	log := s.log
	s.log = nil
	return log
}

// ok answers 200 without a body and keeps the connection.
func ok(w io.Writer) bool {
	_, err := io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	return err == nil
}

// newTransport returns a transport to address that lasts as long as the test.
func newTransport(t *testing.T, address string) (*Transport, *backend.Backend) {
	t.Helper()
	b := &backend.Backend{Address: address}
	tr := New(b, Settings{Connect: 5 * time.Second, ResponseHeader: 5 * time.Second, Idle: time.Minute, MaxIdle: 10})
	t.Cleanup(tr.Close)
	return tr, b
}

// request returns a request as the carrier makes it: no GetBody.
func request(t *testing.T, method string, body io.Reader, fields ...string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://backend/x", body)
	require.NoError(t, err)
	req.GetBody = nil
	for i := 0; i < len(fields); i += 2 {
		req.Header.Set(fields[i], fields[i+1])
	}
	return req
}

// roundTrip sends req, reads the answer's body and returns its status or the
// class of the error.
func roundTrip(t *testing.T, tr *Transport, req *http.Request) (int, outcome.Class) {
	t.Helper()
	res, err := tr.RoundTrip(req)
	if err != nil {
		return 0, outcome.FromError(err).Class
	}
	_, err = io.Copy(io.Discard, res.Body)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	return res.StatusCode, outcome.FromStatus(res.StatusCode).Class
}
