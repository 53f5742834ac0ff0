package outcome_test

import (
	"bufio"
	"context"
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
	"lb/internal/transport"
)

const soon = 150 * time.Millisecond // long for a loopback, short for a test

// send makes one request to address over a transport of its own.
func send(ctx context.Context, t *testing.T, address string, body io.Reader) error {
	t.Helper()
	tr := transport.New(&backend.Backend{Address: address}, transport.Settings{
		Connect: soon, ResponseHeader: soon, Idle: time.Second, MaxIdle: 1,
	})
	defer tr.Close()
	method := http.MethodGet
	if body != nil {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://backend/", body)
	require.NoError(t, err)
	res, err := tr.RoundTrip(req)
	if err == nil {
		require.NoError(t, res.Body.Close())
	}
	return err
}

// answering returns the address of a server that reads a request head and then
// does what it is told with the connection.
func answering(t *testing.T, with func(*net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer func() { _ = conn.Close() }()
				if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
					with(conn.(*net.TCPConn))
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

// closedPort returns an address where nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().String()
}

// silentPort returns an address whose connection attempts are never answered:
// the queue of a listener that accepts nothing is full.
func silentPort(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = syscall.Close(fd) })
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, syscall.Listen(fd, 0))
	name, err := syscall.Getsockname(fd)
	require.NoError(t, err)
	address := (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: name.(*syscall.SockaddrInet4).Port}).String()
	for range 10 {
		conn, err := net.DialTimeout("tcp", address, soon)
		if err != nil {
			return address
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	require.Fail(t, "the queue never fills")
	return ""
}

// noNames makes the resolver ask a name server that knows no name.
func noNames(t *testing.T) {
	t.Helper()
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		question := make([]byte, 1500)
		for {
			n, from, err := server.ReadFrom(question)
			if err != nil {
				return
			}
			question[2] |= 0x80                       // a response
			question[3] = question[3]&^0x0f | 3       // NXDOMAIN
			_, _ = server.WriteTo(question[:n], from) // who asked no longer listens: nothing to do
		}
	}()
	former := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", server.LocalAddr().String())
	}}
	t.Cleanup(func() {
		net.DefaultResolver = former
		_ = server.Close()
		<-done
	})
}

// noDescriptors takes away all file descriptors that are still free.
func noDescriptors(t *testing.T) {
	t.Helper()
	var limit syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	fd, err := syscall.Dup(0)
	require.NoError(t, err)
	require.NoError(t, syscall.Close(fd))
	lowered := limit
	lowered.Cur = uint64(fd) // fd is the lowest that is free
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lowered))
	t.Cleanup(func() { require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)) })
}

func TestFromErrorOfDials(t *testing.T) {
	t.Run("refused", func(t *testing.T) {
		err := send(t.Context(), t, closedPort(t), nil)
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		require.Equal(t, outcome.Unsent, outcome.FromError(err).Class)
	})
	t.Run("unresolved", func(t *testing.T) {
		noNames(t)
		err := send(t.Context(), t, "server1.test:8080", nil)
		require.ErrorContains(t, err, "no such host")
		require.Equal(t, outcome.Unsent, outcome.FromError(err).Class)
	})
	t.Run("over the connect timeout", func(t *testing.T) {
		err := send(t.Context(), t, silentPort(t), nil)
		require.ErrorContains(t, err, "timeout")
		require.Equal(t, outcome.Unsent, outcome.FromError(err).Class)
	})
	t.Run("no descriptor for the socket", func(t *testing.T) {
		address := closedPort(t)
		noDescriptors(t)
		err := send(t.Context(), t, address, nil)
		require.ErrorIs(t, err, syscall.EMFILE)
		require.Equal(t, outcome.Starved, outcome.FromError(err).Class)
	})
	t.Run("no descriptor to ask for the name", func(t *testing.T) {
		noNames(t)
		noDescriptors(t)
		err := send(t.Context(), t, "server1.test:8080", nil)
		require.ErrorContains(t, err, "too many open files")
		require.Equal(t, outcome.Starved, outcome.FromError(err).Class, "%v", err)
	})
	t.Run("given up by the client", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(soon/10, cancel)
		require.Equal(t, outcome.ClientGone, outcome.FromError(send(ctx, t, silentPort(t), nil)).Class)
	})
	t.Run("given up for its deadline", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), soon/10)
		defer cancel()
		require.Equal(t, outcome.Timeout, outcome.FromError(send(ctx, t, silentPort(t), nil)).Class)
	})
}

func TestFromErrorOfAnswers(t *testing.T) {
	say := func(s string) func(*net.TCPConn) {
		return func(c *net.TCPConn) { _, _ = io.WriteString(c, s) }
	}
	for _, test := range []struct {
		name string
		with func(*net.TCPConn)
		want outcome.Class
	}{
		{"closed without an answer", func(*net.TCPConn) {}, outcome.Reset},
		{"reset without an answer", func(c *net.TCPConn) { _ = c.SetLinger(0) }, outcome.Reset},
		{"closed within the version", say("HTTP/1.1"), outcome.Invalid}, // see below
		{"closed after the status line", say("HTTP/1.1 200 OK\r\n"), outcome.Reset},
		{"closed between two fields", say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"), outcome.Reset},
		{"reset between two fields", func(c *net.TCPConn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n")
			_ = c.SetLinger(0)
		}, outcome.Reset},
		// net/http judges half a line as if it were a whole one, and does not
		// tell that the connection ended there.
		{"closed within a field", say("HTTP/1.1 200 OK\r\nContent-Le"), outcome.Invalid},
		{"closed after an interim answer", say("HTTP/1.1 103 Early Hints\r\n\r\n"), outcome.Reset},
		{"another protocol", say("SSH-2.0-OpenSSH_9.6\r\n\r\n"), outcome.Invalid},
		{"a TLS alert", say("\x15\x03\x01\x00\x02\x02\x46\r\n\r\n"), outcome.Invalid},
		{"no status", say("HTTP/1.1 abc\r\n\r\n"), outcome.Invalid},
		{"a field without a colon", say("HTTP/1.1 200 OK\r\nnonsense\r\n\r\n"), outcome.Invalid},
		{"two lengths", say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"), outcome.Invalid},
		{"a NUL in a value", say("HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n"), outcome.Invalid},
		{"an unknown coding", say("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n"), outcome.Invalid},
		{"a head without end", func(c *net.TCPConn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n")
			for range 300 {
				_, _ = io.WriteString(c, "X: "+strings.Repeat("x", 1020)+"\r\n")
			}
			_, _ = io.Copy(io.Discard, c)
		}, outcome.Invalid},
		{"interim answers without end", func(c *net.TCPConn) {
			for range 4096 {
				if _, err := io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nX: "+strings.Repeat("x", 1020)+"\r\n\r\n"); err != nil {
					return
				}
			}
		}, outcome.Invalid},
		{"silence", func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) }, outcome.Timeout},
		{"a head that stops", func(c *net.TCPConn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Le")
			_, _ = io.Copy(io.Discard, c)
		}, outcome.Timeout},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := send(t.Context(), t, answering(t, test.with), nil)
			require.Error(t, err)
			require.Equal(t, test.want, outcome.FromError(err).Class, "%v", err)
		})
	}
}

func TestFromErrorOfAnUploadCutShort(t *testing.T) {
	address := answering(t, func(c *net.TCPConn) { _ = c.SetLinger(0) })
	err := send(t.Context(), t, address, io.LimitReader(zeros{}, 64<<20))
	require.Equal(t, outcome.Reset, outcome.FromError(err).Class, "%v", err)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
