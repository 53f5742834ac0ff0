package socket

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// socketPath is a path that is short enough for a socket.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lb")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

func listen(t *testing.T, s *Set, name, address string) net.Listener {
	t.Helper()
	l, err := s.Listen(t.Context(), name, address)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// ask returns what a server says.
func ask(t *testing.T, l net.Addr) (answer string, err error) {
	t.Helper()
	c, err := net.DialTimeout(l.Network(), l.String(), 10*time.Second)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	said, err := io.ReadAll(c)
	return string(said), err
}

func TestAbandonedSocketIsTakenOver(t *testing.T) {
	path := socketPath(t)
	killed, err := net.Listen("unix", path)
	require.NoError(t, err)
	killed.(*net.UnixListener).SetUnlinkOnClose(false)
	require.NoError(t, killed.Close())
	require.FileExists(t, path)

	l := listen(t, new(Set), "a", "unix:"+path)
	_, err = new(Set).Listen(t.Context(), "a", "unix:"+path)
	require.ErrorIs(t, err, syscall.EADDRINUSE, "this one is in use")
	c, err := net.Dial("unix", path)
	require.NoError(t, err, "and stays so")
	require.NoError(t, c.Close())
	require.NoError(t, l.Close())
	require.NoFileExists(t, path, "a clean stop leaves nothing")
	require.ErrorIs(t, l.Close(), net.ErrClosed)
}

// A path that was mistyped must not cost its owner a file.
func TestFilesThatAreNoSocketsStay(t *testing.T) {
	path := socketPath(t)
	require.NoError(t, os.WriteFile(path, []byte("data"), 0o600))
	_, err := new(Set).Listen(t.Context(), "a", "unix:"+path)
	require.Error(t, err)
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "data", string(content))
}

// A reload asks for an address that is open: both accept, and the file of a unix
// socket stays until the last is closed.
func TestAnOpenSocketIsOpenedOnceMore(t *testing.T) {
	path := socketPath(t)
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := probe.Addr().String()
	require.NoError(t, probe.Close())
	for _, address := range []string{"unix:" + path, address} {
		var s Set
		older, newer := listen(t, &s, "a", address), listen(t, &s, "b", address)
		waiting, err := net.Dial(older.Addr().Network(), older.Addr().String())
		require.NoError(t, err)
		require.NoError(t, older.Close())
		c, err := newer.Accept()
		require.NoError(t, err, "who waited is not lost")
		require.NoError(t, c.Close())
		require.NoError(t, waiting.Close())
		if newer.Addr().Network() == "unix" {
			require.FileExists(t, path)
		}
		require.NoError(t, newer.Close())
		_, err = ask(t, newer.Addr())
		require.Error(t, err)
	}
	require.NoFileExists(t, path)
}

func TestPortsAreChosenForEachName(t *testing.T) {
	var s Set
	a, b, again := listen(t, &s, "a", "127.0.0.1:0"), listen(t, &s, "b", "127.0.0.1:0"), listen(t, &s, "a", "127.0.0.1:0")
	require.NotEqual(t, a.Addr().String(), b.Addr().String())
	require.Equal(t, a.Addr().String(), again.Addr().String())
}

func TestWhichAddressesAreTheSame(t *testing.T) {
	tcp := func(text string) net.Addr {
		a, err := net.ResolveTCPAddr("tcp", text)
		require.NoError(t, err)
		return a
	}
	for _, test := range []struct {
		address string
		have    net.Addr
		want    bool
	}{
		{":80", tcp("[::]:80"), true},
		{":80", tcp("0.0.0.0:80"), true},
		{"0.0.0.0:80", tcp("[::]:80"), true},
		{"[::]:80", tcp("0.0.0.0:80"), true},
		{":80", tcp("[::]:81"), false},
		{":80", tcp("127.0.0.1:80"), false},
		{"127.0.0.1:80", tcp("[::]:80"), false},
		{"127.0.0.1:80", tcp("127.0.0.1:80"), true},
		{"[::ffff:127.0.0.1]:80", tcp("127.0.0.1:80"), true},
		{"127.0.0.1:80", tcp("127.0.0.2:80"), false},
		{"[fe80::1%lo]:80", tcp("[fe80::1]:80"), false},
		{"localhost:80", tcp("127.0.0.1:80"), true},
		{"localhost:80", tcp("127.0.0.2:80"), false},
		{"unix:/run/lb.sock", &net.UnixAddr{Name: "/run/lb.sock"}, true},
		{"unix:/run//lb.sock", &net.UnixAddr{Name: "/run/lb.sock"}, true},
		{"unix:/run/lb.sock", &net.UnixAddr{Name: "/run/other.sock"}, false},
		{"unix:/run/lb.sock", tcp("127.0.0.1:80"), false},
		{":80", &net.UnixAddr{Name: ":80"}, false},
	} {
		require.Equal(t, test.want, same(t.Context(), test.address, test.have), "%s, bound to %s", test.address, test.have)
	}
}

// systemd passes sockets, which are found by their addresses, and hears that the
// service is ready. Nothing that is passed stays open unused, and the files are
// systemd's.
func TestSocketsFromSystemd(t *testing.T) {
	path := socketPath(t)
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: "@" + path, Net: "unixgram"})
	require.NoError(t, err)
	defer func() { _ = manager.Close() }()
	told := func() string {
		buffer := make([]byte, 100)
		require.NoError(t, manager.SetReadDeadline(time.Now().Add(10*time.Second)))
		n, err := manager.Read(buffer)
		require.NoError(t, err)
		return string(buffer[:n])
	}
	var units []*os.File
	var addrs []net.Addr
	for _, address := range []string{"127.0.0.1:0", "unix:" + path, "unix:" + path + "2"} {
		l, err := bind(t.Context(), address)
		require.NoError(t, err)
		if u, ok := l.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false)
		}
		f, err := duplicate(l)
		require.NoError(t, err)
		t.Cleanup(func() { _ = f.Close() })
		require.NoError(t, l.Close())
		units, addrs = append(units, f), append(addrs, l.Addr())
	}
	s := start(t, "any=unix:"+path+",public="+addrs[0].String(), units,
		"LISTEN_FDS=3", "LISTEN_FDNAMES=public:lb.socket:gone", "NOTIFY_SOCKET=@"+path)
	require.Equal(t, "[gone ("+path+"2)]", s.says())
	require.Equal(t, "READY=1\nSTATUS=serving", told())
	for _, addr := range addrs[:2] {
		said, err := ask(t, addr)
		require.NoError(t, err)
		require.Equal(t, "service", said)
	}
	s.stop()
	require.FileExists(t, path)
	require.FileExists(t, path+"2")
}

// A reload under traffic: whoever dials is served, by the older listener or by
// the newer one, and the older one ends at once.
func TestAReloadLosesNoConnection(t *testing.T) {
	var s Set
	path := socketPath(t)
	older := listen(t, &s, "a", "unix:"+path)
	at := older.Addr()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var dialling, serving sync.WaitGroup
	failed := make(chan error, 1)
	run := func(l net.Listener) { serving.Go(func() { _ = serve(l, "served") }) }
	run(older)
	dialling.Go(func() {
		for ctx.Err() == nil {
			if said, err := ask(t, at); err != nil || said != "served" {
				failed <- fmt.Errorf("%q %w", said, err)
				return
			}
		}
	})
	for range 500 {
		newer := listen(t, &s, "a", "unix:"+path)
		run(newer)
		require.NoError(t, older.Close())
		older = newer
	}
	cancel()
	dialling.Wait()
	require.Empty(t, failed)
	require.NoError(t, older.Close())
	serving.Wait()
}

// Opening a socket once more does not make it block for those who have it: then
// an Accept would outlast its listener, and a reload would hang.
func TestAcceptEndsWithItsListener(t *testing.T) {
	for range 300 {
		var s Set
		l := listen(t, &s, "a", "127.0.0.1:0")
		ended := make(chan struct{})
		go func() {
			_ = serve(l, "served")
			close(ended)
		}()
		ctx, cancel := context.WithCancel(t.Context())
		var reloading sync.WaitGroup
		reloading.Go(func() {
			for ctx.Err() == nil {
				if newer, err := s.Listen(t.Context(), "a", "127.0.0.1:0"); err == nil {
					_ = newer.Close()
				}
			}
		})
		for range 3 {
			_, err := ask(t, l.Addr())
			require.NoError(t, err)
		}
		cancel()
		reloading.Wait()
		go func() { _ = l.Close() }()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			_, _ = net.Dial("tcp", l.Addr().String()) // it can end now
			require.Fail(t, "Accept has not ended")
		}
	}
}

type variables map[string]string

func (v variables) get(name string) string { return v[name] }

// fd gives the descriptor of a file away, with a number that follows the one
// before and that nothing else gets.
func fd(t *testing.T, f *os.File) int {
	t.Helper()
	n, _, errno := syscall.Syscall(syscall.SYS_FCNTL, f.Fd(), syscall.F_DUPFD, 500)
	require.Zero(t, errno)
	require.NoError(t, f.Close())
	t.Cleanup(func() { _ = syscall.Close(int(n)) })
	return int(n)
}

func TestBadEnvironments(t *testing.T) {
	plain, err := os.Create(filepath.Join(t.TempDir(), "f"))
	require.NoError(t, err)
	file := fd(t, plain)
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	packetFile, err := packets.(*net.UDPConn).File()
	require.NoError(t, err)
	require.NoError(t, packets.Close())
	packet := fd(t, packetFile)
	deaf, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = syscall.Close(deaf) })
	good, err := bind(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	goodFile, err := duplicate(good)
	require.NoError(t, err)
	require.NoError(t, good.Close())
	listening := fd(t, goodFile)
	const closed = 1 << 19
	me := strconv.Itoa(os.Getpid())

	for _, test := range []struct {
		name  string
		vars  variables
		first int
		want  string // "": no error, and nothing inherited
	}{
		{"nothing", nil, 3, ""},
		{"another's", variables{pidEnv: "1", countEnv: "1"}, listening, ""},
		{"none", variables{pidEnv: me, countEnv: "0"}, 3, ""},
		{"no number of a process", variables{pidEnv: "me", countEnv: "1"}, 3, `LISTEN_PID is "me"`},
		{"a negative process", variables{pidEnv: "-" + me, countEnv: "1"}, 3, "expects a process id"},
		{"no count", variables{pidEnv: me}, 3, `LISTEN_FDS is ""`},
		{"a negative count", variables{pidEnv: me, countEnv: "-1"}, 3, `LISTEN_FDS is "-1": expects how many`},
		{"too many names", variables{pidEnv: me, countEnv: "1", namesEnv: "a:b"}, listening, "2 names for 1 sockets"},
		{"closed", variables{pidEnv: me, countEnv: "1000000", namesEnv: ""}, closed, "descriptor 524288 is not open"},
		{"a file", variables{pidEnv: me, countEnv: "1", namesEnv: "public"}, file, `"public": descriptor ` + strconv.Itoa(file) + " is not a socket"},
		{"packets", variables{pidEnv: me, countEnv: "1"}, packet, "is not a stream socket"},
		{"deaf", variables{pidEnv: me, countEnv: "1"}, deaf, "does not listen"},
	} {
		t.Run(test.name, func(t *testing.T) {
			set, err := inherit(test.vars.get, test.first)
			if test.want == "" {
				require.NoError(t, err)
				require.Empty(t, set.sockets)
				return
			}
			require.ErrorContains(t, err, test.want)
			require.Nil(t, set)
		})
	}
	for name, fd := range map[string]int{"a file": file, "packets": packet} {
		var stat syscall.Stat_t
		require.NoError(t, syscall.Fstat(fd, &stat), "%s is left as it is", name)
	}
}

// Every problem is told, and what was good is let go.
func TestOneBadSocketSpoilsAll(t *testing.T) {
	l, err := bind(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	f, err := duplicate(l)
	require.NoError(t, err)
	require.NoError(t, l.Close())
	plain, err := os.Open(os.DevNull)
	require.NoError(t, err)
	first := fd(t, plain)
	require.Equal(t, first+1, fd(t, f))
	vars := variables{pidEnv: strconv.Itoa(os.Getpid()), countEnv: "3", namesEnv: "one:good:two"}
	_, err = inherit(vars.get, first)
	require.ErrorContains(t, err, fmt.Sprintf(`socket 1 of 3 from systemd, "one": descriptor %d is not a socket`, first))
	require.ErrorContains(t, err, fmt.Sprintf(`socket 3 of 3 from systemd, "two": descriptor %d is not open`, first+2))
	_, err = ask(t, l.Addr())
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}

// What may listen where is judged by the configuration: a unit file cannot open
// an admin listener to the world by its name.
func TestANameFromSystemdIsNotEnough(t *testing.T) {
	l, err := bind(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	f, err := duplicate(l)
	require.NoError(t, err)
	set, err := inherit(variables{pidEnv: strconv.Itoa(os.Getpid()), countEnv: "1", namesEnv: "admin"}.get, fd(t, f))
	require.NoError(t, err)
	_, err = set.Listen(t.Context(), "admin", "127.0.0.1:0")
	require.ErrorContains(t, err, `the socket "admin" from systemd is bound to `+l.Addr().String()+" and not to 127.0.0.1:0")
	other := listen(t, set, "public", "127.0.0.1:0")
	require.NotEqual(t, l.Addr().String(), other.Addr().String(), "another name has nothing to do with it")
	require.Equal(t, []string{"admin (" + l.Addr().String() + ")"}, set.Unused())
	require.Empty(t, set.Unused())
}
