package socket

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// roleEnv makes this binary a service that inherits: its value says what it
// listens on, as name=address and a comma.
const roleEnv = "TEST_SERVICE_LISTENS"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		if err := service(role); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// service inherits, listens, says what was unused, answers with "service" on every
// connection, and stops in order when its standard input ends.
func service(role string) error {
	set, err := Inherit()
	if err != nil {
		return err
	}
	for _, name := range []string{pidEnv, countEnv, namesEnv} {
		if _, there := os.LookupEnv(name); there {
			return fmt.Errorf("%s is still set", name)
		}
	}
	var listeners []net.Listener
	var serving sync.WaitGroup
	for item := range strings.SplitSeq(role, ",") {
		name, address, _ := strings.Cut(item, "=")
		l, err := set.Listen(context.Background(), name, address)
		if err != nil {
			return err
		}
		listeners = append(listeners, l)
		serving.Go(func() { _ = serve(l, "service") })
	}
	child, err := exec.Command("ls", "-l", "/proc/self/fd").Output()
	if err != nil || strings.Contains(string(child), "socket:") {
		return fmt.Errorf("a child has sockets: %s %w", child, err)
	}
	if err := Notify(Ready, Status("serving")); err != nil {
		return err
	}
	fmt.Println(set.Unused())
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	for _, l := range listeners {
		if err := l.Close(); err != nil {
			return err
		}
	}
	serving.Wait()
	return nil
}

// serve answers each connection with who and ends when l is closed.
func serve(l net.Listener, who string) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			_, _ = io.WriteString(c, who)
			_ = c.Close()
		}()
	}
}

// running is a service.
type running struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Reader
}

// start starts this binary as a service, as systemd does: with files from
// descriptor 3 on, and variables that tell of them.
func start(t *testing.T, role string, files []*os.File, environ ...string) *running {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	r := &running{t: t, cmd: exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0"`, self)}
	r.cmd.Env = append(append(os.Environ(), roleEnv+"="+role), environ...)
	r.cmd.ExtraFiles = files
	r.cmd.Stderr = os.Stderr
	r.stdin, err = r.cmd.StdinPipe()
	require.NoError(t, err)
	out, err := r.cmd.StdoutPipe()
	require.NoError(t, err)
	r.out = bufio.NewReader(out)
	require.NoError(t, r.cmd.Start())
	t.Cleanup(func() {
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait()
	})
	return r
}

func (r *running) says() string {
	r.t.Helper()
	line, err := r.out.ReadString('\n')
	require.NoError(r.t, err)
	return strings.TrimSuffix(line, "\n")
}

func (r *running) stop() {
	r.t.Helper()
	require.NoError(r.t, r.stdin.Close())
	require.NoError(r.t, r.cmd.Wait())
}
