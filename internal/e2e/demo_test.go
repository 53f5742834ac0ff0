package e2e

import (
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"lb/internal/demo"
)

// Promise: every curl that `lb demo` prints does what it says beside it.
func TestDemoCurls(t *testing.T) {
	t.Parallel()
	d := startCommand(t, nil, "demo", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
	poll(t, patience, "the text", func() bool { return strings.Contains(d.stdout.String(), "Ctrl-C") })
	lines := regexp.MustCompile(`(?m)^  (curl .*?)\s*# (.*)$`).FindAllStringSubmatch(d.stdout.String(), -1)
	require.Len(t, lines, 8)
	run := func(i int) string {
		out, err := exec.Command("sh", "-c", lines[i][1]).Output()
		require.NoError(t, err, lines[i][1])
		return string(out)
	}
	for _, server := range []string{"server1", "server2", "server3", "server1"} {
		require.Equal(t, "logged in on "+server+"\n", run(0), "one backend, in turn")
	}
	for i, said := range []string{1: "registered on server1\n", 2: "password changed on server1\n"} {
		if said == "" {
			continue
		}
		out := run(i)
		require.True(t, strings.HasPrefix(out, "HTTP/1.1 201 Created\r\n"), out)
		require.Contains(t, out, "\r\nX-LB-Acked: 3/3\r\n")
		require.True(t, strings.HasSuffix(out, "\r\n\r\n"+said), out)
	}
	metrics := run(3)
	require.Contains(t, metrics, "\nTotal_domains_success_counter_total 6\n")
	require.Equal(t, 3, strings.Count(metrics, "\ntarget_domain_success_counter_total{domain=\"127.0.0.1:"))
	require.Equal(t, 3, strings.Count(run(4), `"instanceId":"server`))
	hashes := make(map[string]bool)
	for i, server := range []string{"server1", "server2", "server3"} {
		var s demo.State
		answer{Body: run(5 + i)}.json(t, &s)
		require.Equal(t, server, s.Name)
		require.Len(t, s.Users, 1)
		require.Equal(t, "ada", s.Users[0].Username)
		hashes[s.Hash] = true
	}
	require.Len(t, hashes, 1)
}

// Promise: who reads from the demo, or writes to it, never sees the flaky
// backend.
func TestDemoHidesTheFlakyBackend(t *testing.T) {
	t.Parallel()
	d := startCommand(t, nil, "demo", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
	for range rounds {
		require.Equal(t, http.StatusOK, d.get("/login").Status)
	}
	require.Equal(t, http.StatusCreated, d.register("ada").Status)
	require.Zero(t, d.stop())
}

// Promise: three variables and no file are enough.
func TestEnvironmentProfile(t *testing.T) {
	t.Parallel()
	_, addresses := demoBackends(t, true)
	metricsAt := deadAddress(t)
	_, port, err := net.SplitHostPort(metricsAt)
	require.NoError(t, err)
	d := startCommand(t, []string{
		"BACKEND_POOL=" + strings.Join(addresses, ","), "LB_LISTEN=127.0.0.1:0", "METRICS_PORT=" + port,
		"LB_ADMIN_ADDRESS=127.0.0.1:0",
	}, "serve")
	for i := range rounds {
		require.Equal(t, http.StatusOK, d.get("/login").Status, "request %d", i)
	}
	require.Equal(t, http.StatusCreated, d.register("ada").Status)
	require.Equal(t, http.StatusCreated, d.do(http.MethodPost, "/changePassword",
		strings.NewReader(`{"username":"ada","password":"y"}`), "Content-Type", "application/json").Status)
	requireSameState(t, 1, addresses...)
	for _, url := range []string{"/metrics", "http://" + metricsAt + "/metrics"} {
		require.Contains(t, d.get(url).Body, "\nTotal_domains_success_counter_total 6\n", url)
	}
	refused := d.get("/register")
	requireProblem(t, refused, http.StatusMethodNotAllowed, "method_not_allowed")
	require.Equal(t, "POST", refused.Header.Get("Allow"))

	_, stderr, code := runLBWith(t, []string{"BACKEND_POOL=server1,server2:8080"}, "check")
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "BACKEND_POOL, entry 1")
}

// Promise: `lb healthcheck` is 0 exactly while the daemon is ready.
func TestHealthcheck(t *testing.T) {
	t.Parallel()
	at := deadAddress(t)
	release := make(chan struct{})
	config := strings.Replace(draining("10s", slowBackend(t, release)),
		`admin: { address: "127.0.0.1:0" }`, `admin: { address: "`+at+`" }`, 1)
	file := configFile(t, config)
	_, stderr, code := runLB(t, "healthcheck", "--admin", at)
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "not ready")

	d := startCommand(t, nil, "serve", "-c", file)
	for _, args := range [][]string{{"-c", file}, {"--admin", at}} {
		stdout, stderr, code := runLB(t, append([]string{"healthcheck"}, args...)...)
		require.Zero(t, code, stderr)
		require.Empty(t, stdout+stderr)
	}
	slow := halfway(t, d)
	d.terminate()
	poll(t, patience, "the drain to begin", func() bool { return len(d.events("stopping")) == 1 })
	_, stderr, code = runLB(t, "healthcheck", "--admin", at)
	require.Equal(t, 1, code, "one that drains is not ready")
	require.Contains(t, stderr, "503")
	close(release)
	_ = slow.Body.Close()
}
