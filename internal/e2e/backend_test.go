package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// server is an HTTP backend that can be stopped and started again in place.
type server struct {
	Addr string

	t       testing.TB
	handler http.Handler
	http    *http.Server
	served  chan struct{}
}

// backend runs an HTTP backend until the test's end and returns its address.
func backend(t testing.TB, h http.Handler) string {
	t.Helper()
	return startServer(t, h).Addr
}

// startServer is backend for one that the test stops.
func startServer(t testing.TB, h http.Handler) *server {
	t.Helper()
	l := listenAnywhere(t)
	s := &server{Addr: l.Addr().String(), t: t, handler: h}
	s.serve(l)
	t.Cleanup(s.stop)
	return s
}

func (s *server) serve(l net.Listener) {
	own, done := &http.Server{Handler: s.handler}, make(chan struct{})
	s.http, s.served = own, done
	go func() {
		defer close(done)
		_ = own.Serve(l) // until it is closed
	}()
}

// stop cuts all connections and refuses new ones.
func (s *server) stop() {
	_ = s.http.Close()
	<-s.served
}

// restart listens again where it did before.
func (s *server) restart() {
	s.t.Helper()
	l, err := net.Listen("tcp", s.Addr)
	require.NoError(s.t, err)
	s.serve(l)
}

// listenAnywhere listens on a loopback port below those that the system hands
// out: nobody takes it while a test has its backend down.
func listenAnywhere(t testing.TB) net.Listener {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000)))
		if err == nil {
			return l
		}
		require.True(t, errors.Is(err, syscall.EADDRINUSE), err)
	}
	require.FailNow(t, "no free port")
	return nil
}

// deadAddress returns an address where nobody listens.
//
// It is on 127.0.0.2: connections that are dialled from 127.0.0.1 cannot take
// its port meanwhile.
func deadAddress(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.2:0")
	require.NoError(t, err)
	_ = l.Close()
	return l.Addr().String()
}

// rawServer is a backend that speaks bytes, and keeps what it received.
type rawServer struct {
	Addr string

	mu    sync.Mutex
	conns []*recorder
}

// recorder keeps what is read from a connection.
type recorder struct {
	net.Conn
	mu   sync.Mutex
	read bytes.Buffer
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.mu.Lock()
	r.read.Write(p[:n])
	r.mu.Unlock()
	return n, err
}

// rawBackend runs handle for each connection, which is closed after it. At the
// test's end all are closed, and handle must return then.
func rawBackend(t testing.TB, handle func(conn net.Conn)) *rawServer {
	t.Helper()
	l := listenAnywhere(t)
	s := &rawServer{Addr: l.Addr().String()}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r := &recorder{Conn: c}
			s.mu.Lock()
			s.conns = append(s.conns, r)
			s.mu.Unlock()
			running.Go(func() {
				defer func() { _ = c.Close() }()
				handle(r)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		s.mu.Lock()
		for _, c := range s.conns {
			_ = c.Close()
		}
		s.mu.Unlock()
		running.Wait()
	})
	return s
}

// received returns what each connection brought so far, byte for byte.
func (s *rawServer) received() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]string, len(s.conns))
	for i, c := range s.conns {
		c.mu.Lock()
		all[i] = c.read.String()
		c.mu.Unlock()
	}
	return all
}

// rawConn is a client's connection that speaks bytes.
type rawConn struct {
	net.Conn
	*bufio.Reader

	t testing.TB
}

// Read reads through the buffer.
func (c *rawConn) Read(p []byte) (int, error) { return c.Reader.Read(p) }

// raw opens a connection to the public listener and writes bytes to it.
func (d *daemon) raw(t testing.TB, bytes string) *rawConn {
	t.Helper()
	conn, err := net.Dial("tcp", d.Addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	c := &rawConn{Conn: conn, Reader: bufio.NewReader(conn), t: t}
	c.send(bytes)
	return c
}

// send writes more bytes.
func (c *rawConn) send(bytes string) {
	c.t.Helper()
	_, err := c.Write([]byte(bytes))
	require.NoError(c.t, err)
}

// head reads the next response head to a request with that method; the body
// is the caller's to read.
func (c *rawConn) head(method string) *http.Response {
	c.t.Helper()
	res, err := http.ReadResponse(c.Reader, &http.Request{Method: method})
	require.NoError(c.t, err)
	return res
}

// waitForClose reads and never answers.
func waitForClose(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

// fullBacklog returns the address of a listener that nobody accepts from and
// whose queue is full, so that a dial to it hangs.
func fullBacklog(t testing.TB) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = syscall.Close(fd) })
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, syscall.Listen(fd, 0))
	bound, err := syscall.Getsockname(fd)
	require.NoError(t, err)
	address := fmt.Sprintf("127.0.0.1:%d", bound.(*syscall.SockaddrInet4).Port)
	for {
		conn, err := net.DialTimeout("tcp", address, 100*time.Millisecond)
		if err != nil {
			return address // no room for one more
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
}
