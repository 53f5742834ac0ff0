package socket

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// serviceManager is what NOTIFY_SOCKET names.
func serviceManager(t *testing.T, name string) (told func() string) {
	t.Helper()
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	t.Setenv(notifyEnv, name)
	return func() string {
		t.Helper()
		buffer := make([]byte, 1000)
		require.NoError(t, l.SetReadDeadline(time.Now().Add(10*time.Second)))
		n, err := l.Read(buffer)
		require.NoError(t, err)
		return string(buffer[:n])
	}
}

func TestNotify(t *testing.T) {
	for _, name := range []string{filepath.Join(filepath.Dir(socketPath(t)), "notify"), "@lb-test-" + strconv.Itoa(os.Getpid())} {
		told := serviceManager(t, name)
		require.NoError(t, Notify(Stopping, Status("draining,\n3 left")))
		require.Equal(t, "STOPPING=1\nSTATUS=draining, 3 left", told())
		require.NoError(t, Notify(Reloading()))
		first := told()
		require.Regexp(t, regexp.MustCompile(`^RELOADING=1\nMONOTONIC_USEC=[1-9]\d*$`), first)
		require.NoError(t, Notify(Reloading()))
		require.Greater(t, told(), first, "the clock runs")
	}
}

func TestNotifyWithoutAManager(t *testing.T) {
	t.Setenv(notifyEnv, "")
	require.NoError(t, Notify(Ready))
	t.Setenv(notifyEnv, "relative")
	require.ErrorContains(t, Notify(Ready), `NOTIFY_SOCKET is "relative"`)
	t.Setenv(notifyEnv, filepath.Join(t.TempDir(), "nobody"))
	require.ErrorContains(t, Notify(Ready), "telling the service manager")
}
