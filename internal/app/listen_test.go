package app

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"lb/internal/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shortDir is t.TempDir with a path that is short enough for a socket.
func shortDir(t testing.TB) string {
	dir, err := os.MkdirTemp("", "lb")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// newApp compiles a configuration over these addresses, in silence.
func newApp(t testing.TB, addresses ...string) *App {
	t.Helper()
	c := config.Default()
	c.Admin.Address, c.Storage.Path = "", ""
	for i, address := range addresses {
		var l config.Listener
		l.SetDefaults()
		l.Name, l.Address = string(rune('a'+i)), address
		c.Listeners = append(c.Listeners, l)
	}
	c.Routes = []config.Route{{Name: "all", Match: config.Match{PathPrefix: "/"}, Respond: &config.Respond{Status: 200}}}
	c.Complete()
	logs, err := NewLogs(c.Log, io.Discard, io.Discard)
	require.NoError(t, err)
	t.Cleanup(logs.Close)
	a, err := New(t.Context(), Options{Loaded: Loaded{Config: c}, Logs: logs})
	require.NoError(t, err)
	t.Cleanup(a.Close)
	return a
}

func TestBindBindsAllOrNothing(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = taken.Close() }()
	socket := filepath.Join(shortDir(t), "s")

	a := newApp(t, "unix:"+socket, taken.Addr().String())
	err = a.Bind(t.Context())
	require.ErrorIs(t, err, ErrBind)
	require.ErrorContains(t, err, "listener b ("+taken.Addr().String()+")")
	require.Empty(t, a.Addr("a"))
	require.NoFileExists(t, socket, "the first is free again")

	for _, own := range []func(*config.Config){
		func(c *config.Config) { c.Metrics.Address = taken.Addr().String() },
		func(c *config.Config) { c.Admin.Address = taken.Addr().String() },
	} {
		a := newApp(t, "unix:"+socket)
		own(a.conf())
		require.ErrorIs(t, a.Bind(t.Context()), ErrBind)
		require.NoFileExists(t, socket)
	}
	a = newApp(t, "unix:"+socket, "127.0.0.1:0")
	require.NoError(t, a.Bind(t.Context()))
	require.Equal(t, socket, a.Addr("a"))
	require.NotEmpty(t, a.Addr("b"))
	ctx, stop := context.WithCancel(t.Context())
	stop()
	require.NoError(t, a.Run(ctx))
	require.Error(t, a.Ready())
}

// accepted returns a listener with its next connection and the client's end.
func accepted(t testing.TB, l *listener) (server, client net.Conn) {
	t.Helper()
	client, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	server, err = l.Accept()
	require.NoError(t, err)
	return server, client
}

func TestConnectionsAreCountedUntilTheyClose(t *testing.T) {
	bound, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l := newListener(bound, time.Minute, 2)
	one, _ := accepted(t, l)
	two, _ := accepted(t, l)
	require.Equal(t, int64(2), l.open.Load())

	third := make(chan net.Conn)
	go func() {
		c, _ := l.Accept() // waits for a place
		third <- c
	}()
	_, err = net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	closed := make(chan struct{})
	for range 10 { // net/http and a tunnel may both close it: it had one place
		go func() {
			_ = one.Close()
			closed <- struct{}{}
		}()
	}
	for range 10 {
		select {
		case <-closed:
		case <-time.After(10 * time.Second):
			require.FailNow(t, "a place was given back that nobody had")
		}
	}
	require.NotNil(t, <-third)
	require.Equal(t, int64(2), l.open.Load())
	require.Len(t, l.slots, 2)

	l.closeConns()
	require.Zero(t, l.open.Load())
	require.Empty(t, l.slots)
	require.Empty(t, l.all)
	_, err = two.Write([]byte("x"))
	require.ErrorIs(t, err, net.ErrClosed)
	require.NoError(t, l.Close())
}

func TestAcceptEndsWithTheListener(t *testing.T) {
	bound, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l := newListener(bound, time.Minute, 1)
	accepted(t, l)
	ended := make(chan error)
	go func() {
		_, err := l.Accept()
		ended <- err
	}()
	require.NoError(t, l.Close())
	require.ErrorIs(t, <-ended, net.ErrClosed)
	require.Equal(t, int64(1), l.open.Load(), "open connections go on")
	l.closeConns()
}

func TestWritesHaveADeadline(t *testing.T) {
	bound, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l := newListener(bound, 50*time.Millisecond, 0)
	server, _ := accepted(t, l) // the client does not read
	for err == nil {
		_, err = server.Write(make([]byte, 1<<20))
	}
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, l.Close())
	l.closeConns()
}
