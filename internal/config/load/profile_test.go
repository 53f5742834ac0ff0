package load

import (
	"testing"

	"github.com/stretchr/testify/require"

	"lb/internal/config"
)

// nowhere has no file, so that the environment profile is used.
func nowhere(t *testing.T) Options { return Options{Dirs: []string{t.TempDir()}} }

func TestProfile(t *testing.T) {
	t.Setenv("BACKEND_POOL", "server1:8080,server2:8080,server3:8080")
	c, warnings, err := File("", nowhere(t))
	require.NoError(t, err)
	require.Empty(t, warnings)
	requireStable(t, c)

	// The file says the same, for those who want to go on from it.
	t.Setenv("BACKEND_POOL", "")
	same, _, err := File("testdata/demo.good.yaml", Options{})
	require.NoError(t, err)
	require.Equal(t, same, c)
}

func TestProfileVariables(t *testing.T) {
	t.Setenv("BACKEND_POOL", "server1:8080")
	t.Setenv("LB_LISTEN", "127.0.0.1:8088")
	t.Setenv("METRICS_PORT", "9100")
	t.Setenv("LB_LOG_LEVEL", "debug")
	c, _, err := File("", nowhere(t))
	require.NoError(t, err)
	require.Empty(t, c.Storage.Path, "a container has no place for it unless somebody says so")
	require.Equal(t, "127.0.0.1:8088", c.Listeners[0].Address)
	require.Equal(t, ":9100", c.Metrics.Address)
	require.Equal(t, "127.0.0.1:9901", c.Admin.Address)
	require.Equal(t, "debug", c.Log.Level)

	t.Setenv("LB_METRICS_ADDRESS", "127.0.0.1:9200")
	t.Setenv("LB_STORAGE_PATH", "/var/lib/lb/lb.db")
	c, _, err = File("", nowhere(t))
	require.NoError(t, err)
	require.Equal(t, "/var/lib/lb/lb.db", c.Storage.Path)
	require.Equal(t, "127.0.0.1:9200", c.Metrics.Address)
}

func TestProfileIDs(t *testing.T) {
	tests := map[string][]string{
		"a:1,b:2":               {"a", "b"},
		"a:1, a:2 ,b:1":         {"a:1", "a:2", "b"},
		"10.0.0.1:80,[::1]:80":  {"10.0.0.1:80", "[::1]:80"},
		"10.0.0.1:80,web.dev:1": {"10.0.0.1:80", "web.dev"},
	}
	for pool, want := range tests {
		t.Run(pool, func(t *testing.T) {
			t.Setenv("BACKEND_POOL", pool)
			c, _, err := File("", nowhere(t))
			require.NoError(t, err)
			var ids []string
			for _, b := range c.Pools[0].Backends {
				ids = append(ids, b.ID)
			}
			require.Equal(t, want, ids)
		})
	}
}

func TestProfileProblems(t *testing.T) {
	t.Setenv("BACKEND_POOL", "server1:8080,,http://server2:8080,server3,a:1,a:1,:80")
	t.Setenv("LB_LISTEN", "8080")
	t.Setenv("METRICS_PORT", "none")
	t.Setenv("LB_SHUTDOWN_DRAIN", "never")
	_, _, err := File("", nowhere(t))
	require.EqualError(t, err, `shutdown.drain (LB_SHUTDOWN_DRAIN): expects a duration such as 250ms, not "never"
pools[0].backends[1].address (BACKEND_POOL, entry 2): is missing; write host:port
pools[0].backends[2].address (BACKEND_POOL, entry 3): "http://server2:8080" is not an address; write host:port without http://
pools[0].backends[3].address (BACKEND_POOL, entry 4): "server3" has no port; write host:port
pools[0].backends[5].id (BACKEND_POOL, entry 6): "a:1" is already the id of backends[4]; give each backend of a pool its own id
pools[0].backends[6].address (BACKEND_POOL, entry 7): ":80" has no host; write the server's name or address before the port
listeners[0].address (LB_LISTEN): "8080" is not an address; write :8080
metrics.address (METRICS_PORT): ":none" has no usable port; a port is a number from 0 to 65535`)
}

func TestProfileCollision(t *testing.T) {
	t.Setenv("BACKEND_POOL", "server1:8080")
	t.Setenv("METRICS_PORT", "80")
	_, _, err := File("", nowhere(t))
	require.EqualError(t, err, `metrics.address (METRICS_PORT): ":80" is already taken by listeners[0].address; choose another address or port`)
}

func TestDemo(t *testing.T) {
	c := Demo("127.0.0.1:0", "127.0.0.1:0", []config.Backend{{Address: "127.0.0.1:5001", ID: "one", Weight: 1}})
	problems, warnings := config.Validate(c, func(string) (string, bool) { return "", false })
	require.Empty(t, problems)
	require.Empty(t, warnings)
	requireStable(t, c)
	require.NotSame(t, c.Routes[1].Fanout, c.Routes[2].Fanout)
}
