package e2e

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const goodConfig = `listeners:
  - { name: public, address: ":8080" }
  - { name: local, address: "unix:/run/lb.sock" }
pools:
  - name: users
    backends:
      - { address: "server1:8080", id: server1 }
      - { address: "server2:8080", weight: 2 }
routes:
  - { name: rest, match: { path_prefix: / }, respond: { status: 404, body: "no such route\n" } }
  - { name: metrics, match: { path: /metrics }, metrics: true }
  - { name: register, match: { methods: [POST], path: /register }, fanout: { pool: users, ack: quorum } }
  - { name: login, match: { methods: [GET], hosts: [shop.example], path_prefix: /login }, proxy: { pool: users } }
metrics: { address: "127.0.0.1:8000" }
`

// Promise: `lb check` tells what a configuration means.
func TestCheckDescribes(t *testing.T) {
	t.Parallel()
	stdout, stderr, code := runLB(t, "check", "-c", configFile(t, goodConfig))
	require.Zero(t, code, stderr)
	require.Equal(t, `LISTENER   ADDRESS
public     :8080
local      unix:/run/lb.sock
(metrics)  127.0.0.1:8000
(admin)    127.0.0.1:9901

ROUTE     HOSTS         METHODS  PATH       DOES
login     shop.example  GET      /login/…   one of users
register  any           POST     /register  all of users, ack quorum
metrics   any           any      /metrics   metrics
rest      any           any      /…         respond 404

POOL   POLICY      BACKEND       ADDRESS       WEIGHT  HEALTH  BREAKER  LIMITS  QUEUE
users  roundrobin  server1       server1:8080  1       off     off      off     off
users  roundrobin  server2:8080  server2:8080  2       off     off      off     off
`, stdout)
	require.Equal(t, "warning: pools[0].backends[1].weight (line 8): weights are ignored by the policy roundrobin\n", stderr)
}

// Promise: what --effective prints is itself a configuration, and means the
// same.
func TestCheckEffectiveIsAConfiguration(t *testing.T) {
	t.Parallel()
	effective, _, code := runLB(t, "check", "--effective", "-c", configFile(t, goodConfig))
	require.Zero(t, code)
	require.Contains(t, effective, "max_attempts: 100")
	again, _, code := runLB(t, "check", "--effective", "-c", configFile(t, effective))
	require.Zero(t, code)
	require.Equal(t, effective, again)
}

// Promise: everything that is wrong is told at once, with its place and what
// to write instead; nothing is served with it.
func TestBadConfiguration(t *testing.T) {
	t.Parallel()
	file := configFile(t, `listeners:
  - { name: public, address: ":8080", adress: x }
pools:
  - name: users
    policy: least_con
    backends: [{ address: "server1" }]
  - { name: users, backends: [] }
routes:
  - name: login
    match: { path: /login }
    proxy: { pool: user, timeout: 5 }
registration: { enabled: true, ttl: 90 }
admin: { address: ":9901" }
`)
	const want = `lb: the configuration has 8 problems:
listeners[0].adress (line 2): unknown key "adress"; did you mean "address"?
pools[0].policy (line 5): no policy "least_con"; did you mean "least_conn"?
pools[0].backends[0].address (line 6): "server1" has no port; write host:port
pools[1].name (line 7): "users" is already the name of pools[0]; give it another name
routes[0].proxy.timeout (line 11): expects a duration such as 250ms, not 5
routes[0].proxy.pool (line 11): no pool "user"; did you mean "users"?
registration.ttl (line 12): expects a duration such as 250ms, not 90
admin.address (line 13): ":9901" can be reached from other machines and there is no token; ` +
		"set admin.token_env to the name of a variable that holds a token, or listen on 127.0.0.1:9901\n"
	for _, command := range []string{"check", "serve", "healthcheck"} {
		stdout, stderr, code := runLB(t, command, "-c", file)
		require.Equal(t, 1, code, command)
		require.Equal(t, want, stderr, command)
		require.Empty(t, stdout, command)
	}
}

// Promise: what cannot be read is an error that says so, never an empty
// configuration.
func TestUnreadableConfiguration(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ file, says string }{
		"missing":      {filepath.Join(t.TempDir(), "nothing.yaml"), "no such file or directory"},
		"a directory":  {t.TempDir(), "it is a directory"},
		"empty":        {configFile(t, ""), "is empty"},
		"only remarks": {configFile(t, "# nothing\n"), "is empty"},
		"not YAML":     {configFile(t, "listeners: [\n"), "line "},
		"not text":     {configFile(t, "\x00\x01\xff"), "UTF-8"},
	} {
		for _, command := range []string{"check", "serve"} {
			_, stderr, code := runLB(t, command, "-c", c.file)
			require.Equal(t, 1, code, "%s: %s", name, stderr)
			require.Contains(t, stderr, c.says, name)
			require.True(t, strings.HasPrefix(stderr, "lb: "), stderr)
		}
	}
	_, stderr, code := runLB(t, "serve")
	require.Equal(t, 1, code)
	for _, way := range []string{"./lb.yaml", "/etc/lb/lb.yaml", "-c", "BACKEND_POOL"} {
		require.Contains(t, stderr, way, "it names every way out")
	}
}

// Promise: a mistake on the command line is exit code 1 and one line.
func TestUsage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"nothing"}, {"serve", "--nothing"}, {"serve", "extra"}, {"check", "-c"}} {
		stdout, stderr, code := runLB(t, args...)
		require.Equal(t, 1, code, args)
		require.Equal(t, 1, strings.Count(stderr, "\n"), stderr)
		require.Empty(t, stdout)
	}
	stdout, _, code := runLB(t, "version")
	require.Zero(t, code)
	require.Regexp(t, `^lb \S+ \(commit \S+, go1\.\S+\)\n$`, stdout)
	stdout, _, code = runLB(t, "--help")
	require.Zero(t, code)
	for _, command := range []string{"serve", "check", "demo", "healthcheck", "version"} {
		require.Contains(t, stdout, "\n  "+command+" ")
	}
}

// Promise: a socket that is taken is exit code 2, told by name.
func TestPortInUse(t *testing.T) {
	t.Parallel()
	l := listenAnywhere(t)
	t.Cleanup(func() { _ = l.Close() })
	taken := l.Addr().String()
	for what, config := range map[string]string{
		"public":  `listeners: [{ name: public, address: "` + taken + `" }]` + "\nadmin: { address: \"127.0.0.1:0\" }\n",
		"admin":   "listeners: [{ name: public, address: \"127.0.0.1:0\" }]\nadmin: { address: \"" + taken + "\" }\n",
		"metrics": listeners + `metrics: { address: "` + taken + `" }` + "\n",
	} {
		_, stderr, code := runLB(t, "serve", "-c", configFile(t, config+"pools: []\nroutes: [{ name: all, match: {}, respond: { status: 200 } }]\n"))
		require.Equal(t, 2, code, stderr)
		require.Contains(t, stderr, "cannot bind")
		require.Contains(t, stderr, what)
		require.Contains(t, stderr, taken)
		require.NotContains(t, stderr, `"listening"`)
	}
}

// Promise: a listener can be a unix socket, and one that a killed daemon left
// behind is no obstacle.
func TestUnixSocket(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "lb") // its path must be short
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "lb.sock")
	config := "listeners: [{ name: public, address: \"127.0.0.1:0\" }, { name: local, address: \"unix:" + socket + "\" }]\n" +
		"admin: { address: \"127.0.0.1:0\" }\nroutes: [{ name: all, match: {}, respond: { status: 200, body: here } }]\n"
	client := newClient(t)
	client.Transport.(*http.Transport).DialContext = func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", socket)
	}
	first := start(t, config)
	a, err := try(client, http.MethodGet, "http://any/", nil)
	require.NoError(t, err)
	require.Equal(t, "here", a.Body)
	_, stderr, code := runLB(t, "serve", "-c", configFile(t, config))
	require.Equal(t, 2, code, "one that is in use is: %s", stderr)

	first.kill()
	client.CloseIdleConnections()
	start(t, config)
	a, err = try(client, http.MethodGet, "http://any/", nil)
	require.NoError(t, err)
	require.Equal(t, "here", a.Body)
	client.CloseIdleConnections()
}

// Promise: variables win over the file, for every scalar outside of lists.
func TestVariablesOverride(t *testing.T) {
	t.Parallel()
	d := start(t, proxyAll("", backend(t, always(http.StatusOK))), "LB_SHUTDOWN_DRAIN=3s", "LB_LOG_ACCESS_ENABLED=false")
	config := d.get(d.Admin + "/config").Body
	require.Contains(t, config, "drain: 3s")
	require.Equal(t, http.StatusOK, d.get("/").Status)
	d.stop()
	require.Empty(t, d.accessLog())
	_, stderr, code := runLBWith(t, []string{"LB_SHUTDOWN_DRAIN=soon"}, "check", "-c", configFile(t, goodConfig))
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "LB_SHUTDOWN_DRAIN")
}
