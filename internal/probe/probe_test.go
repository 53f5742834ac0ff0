package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	// What is to end by itself gets this long, so that a busy machine does not
	// cut it off.
	ample = 20 * time.Second
	// What is to end at the deadline gets this long.
	brief = 150 * time.Millisecond
)

// serve listens on loopback and hands each connection to handle, which closes
// it by returning. It returns the address.
func serve(t testing.TB, handle func(c net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				handle(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

// silent is a backend that accepts and says nothing until its peer hangs up.
func silent(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

// nobody returns an address that nobody listens at.
func nobody(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Close()) }()
	return l.Addr().String()
}

// unaccepting returns the address of a listener whose queue is full: a further
// connection is neither accepted nor refused.
func unaccepting(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, syscall.Close(fd)) })
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, syscall.Listen(fd, 0))
	name, err := syscall.Getsockname(fd)
	require.NoError(t, err)
	bound, ok := name.(*syscall.SockaddrInet4)
	require.True(t, ok)
	address := fmt.Sprintf("127.0.0.1:%d", bound.Port)
	for range 10 {
		c, err := net.DialTimeout("tcp", address, 100*time.Millisecond)
		if err != nil {
			return address
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	require.Fail(t, "the queue does not fill")
	return ""
}

// probe asks once, bounded as the loop bounds it, and returns the reason, ""
// if the backend is well. It checks what Check promises of reasons.
func probe(t testing.TB, c Check, address string, timeout time.Duration) string {
	t.Helper()
	l := New(Options{Address: address, Check: c, Schedule: Schedule{Timeout: timeout}})
	began := time.Now()
	err := l.probe(t.Context())
	took := time.Since(began)
	require.Less(t, took, timeout+2*time.Second, "bounded by the context")
	if timeout == ample {
		require.Less(t, took, ample, "it needed nothing to cut it off")
	}
	if err == nil {
		return ""
	}
	require.NotEmpty(t, err.Error())
	require.LessOrEqual(t, len(err.Error()), 200)
	require.Equal(t, line(err.Error()), err.Error(), "fit to be shown")
	if timeout == brief {
		require.GreaterOrEqual(t, took, brief, "it waited as long as it might: %v", err)
	}
	return err.Error()
}

const hung = "no answer within 150ms"

func TestTCP(t *testing.T) {
	hungUp := make(chan error, 1)
	well := serve(t, func(c net.Conn) {
		_, err := c.Read(make([]byte, 1))
		hungUp <- err
	})
	require.Empty(t, probe(t, TCP{}, well, ample))
	require.Equal(t, io.EOF, <-hungUp, "connects, says nothing, hangs up")

	require.Contains(t, probe(t, TCP{}, nobody(t), ample), "connection refused")
	require.Equal(t, hung, probe(t, TCP{}, unaccepting(t), brief))
	require.Contains(t, probe(t, TCP{}, "nonsense", ample), "missing port")
	require.Contains(t, probe(t, TCP{Port: 1}, "nonsense", ample), "missing port")

	_, port, err := net.SplitHostPort(well)
	require.NoError(t, err)
	n, err := net.LookupPort("tcp", port)
	require.NoError(t, err)
	require.Empty(t, probe(t, TCP{Port: n}, nobody(t), ample), "another port of the host")
}

func TestACancelledProbeEndsAtOnce(t *testing.T) {
	address := serve(t, silent)
	http, err := NewHTTP(HTTPOptions{})
	require.NoError(t, err)
	for name, c := range map[string]Check{
		"tcp": TCP{}, "http": http, "grpc": GRPC{}, "exec": Exec{Command: []string{"sleep", "1000"}},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, c.Probe(ctx, address), context.Canceled, name)
	}
}

func TestStarvedProbesAreTold(t *testing.T) {
	lack := &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("socket", syscall.EMFILE)}
	err := failure(t.Context(), lack)
	require.ErrorIs(t, err, ErrStarved)
	require.Equal(t, "lb could not probe: dial tcp: socket: too many open files", err.Error())
	err = failure(t.Context(), fmt.Errorf("cannot start: %w", &os.PathError{Op: "fork/exec", Path: "/x", Err: syscall.EAGAIN}))
	require.ErrorIs(t, err, ErrStarved)
	err = failure(t.Context(), fmt.Errorf("%s: %w", strings.Repeat("x", 300), syscall.EMFILE))
	require.ErrorIs(t, err, ErrStarved)
	require.LessOrEqual(t, len(err.Error()), 200)
	require.NotErrorIs(t, failure(t.Context(), syscall.ECONNREFUSED), ErrStarved)
	require.NoError(t, failure(t.Context(), nil))
}

// The socket's timer may be ahead of the context's: the reason is the same.
func TestATimeoutOfTheSocketIsTheContexts(t *testing.T) {
	cause := errors.New("no answer within 1ms")
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Millisecond, cause)
	defer cancel()
	deadline, _ := ctx.Deadline()
	for !time.Now().After(deadline) {
	}
	require.Equal(t, cause, failure(ctx, os.ErrDeadlineExceeded))
	require.Equal(t, "i/o timeout", failure(t.Context(), os.ErrDeadlineExceeded).Error(), "an earlier one is its own")
}

func TestLine(t *testing.T) {
	for given, want := range map[string]string{
		"":                       "",
		"  plain text\n":         "plain text",
		"a\nb\r\tc":              `a\nb\r\tc`,
		"\x00\x1b[31mred\x7f":    `\x00\x1b[31mred\x7f`,
		"caf\u00e9 \"q\" \\":     "caf\u00e9 \"q\" \\",
		"\xff\xfe":               `\xff\xfe`,
		"right\u202eleft":        `right\u202eleft`,
		"\ufffd":                 "\ufffd",
		strings.Repeat("x", 197): strings.Repeat("x", 197),
		strings.Repeat("x", 198): strings.Repeat("x", 197) + "…",
		strings.Repeat("é", 150): strings.Repeat("é", 98) + "…",
		strings.Repeat("\n", 9) + "x" + strings.Repeat("\x00", 99): "x" + strings.Repeat(`\x00`, 49) + "…",
	} {
		require.Equal(t, want, line(given), "%q", given)
	}
}
