package e2e

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"lb/internal/admin"
)

// Promise: what the admin listener shows is what is going on.
func TestAdminShowsTheDaemon(t *testing.T) {
	t.Parallel()
	b := backend(t, always(http.StatusOK))
	d := start(t, proxyAll("", b))
	for path, contentType := range map[string]string{
		"/livez": "application/json", "/readyz": "application/json", "/health": "application/json",
		"/instances": "application/json", "/config": "application/yaml", "/metrics": "text/plain",
		"/audit": "application/json",
	} {
		a := d.get(d.Admin + path)
		require.Equal(t, http.StatusOK, a.Status, path)
		require.True(t, strings.HasPrefix(a.Header.Get("Content-Type"), contentType), path)
		require.Equal(t, "no-store", a.Header.Get("Cache-Control"), path)
		require.NotEmpty(t, a.Body, path)
		head := d.do(http.MethodHead, d.Admin+path, nil)
		require.Equal(t, http.StatusOK, head.Status, path)
		require.Empty(t, head.Body, path)
		for _, method := range []string{http.MethodPost, http.MethodDelete, http.MethodPut} {
			refused := d.do(method, d.Admin+path, nil)
			require.Equal(t, http.StatusMethodNotAllowed, refused.Status, "%s %s", method, path)
			require.Equal(t, "GET, HEAD", refused.Header.Get("Allow"))
		}
	}
	require.Equal(t, http.StatusNotFound, d.get(d.Admin+"/").Status)

	var health admin.Health
	d.get(d.Admin+"/health").json(t, &health)
	require.EqualValues(t, 1, health.Config.Generation)
	require.NotZero(t, health.Config.LoadedAt)
	health.Config = admin.ConfigHealth{}
	require.Equal(t, admin.Health{Status: "ok", Pools: admin.List[admin.PoolHealth]{{
		Name: "main", Eligible: 1,
		Backends: admin.List[admin.BackendHealth]{{ID: "b1", State: "up", Reasons: admin.List[string]{}}},
	}}}, health)
	config := d.get(d.Admin + "/config").Body
	require.Contains(t, config, b)
	require.Contains(t, config, "max_idle_per_backend: 256", "with all defaults")
	require.Equal(t, 1.0, d.metric("lb_config_generation"))
	require.Positive(t, d.metric("go_goroutines"))
	require.Positive(t, d.metric("process_open_fds"))
}

// Promise: who asks for JSON gets the metrics as statistics.
func TestMetricsAsStatistics(t *testing.T) {
	t.Parallel()
	d := start(t, proxyAll("", backend(t, always(http.StatusOK))))
	d.get("/")
	a := d.do(http.MethodGet, d.Admin+"/metrics", nil, "Accept", "application/json")
	require.Equal(t, "application/json", a.Header.Get("Content-Type"))
	var families []struct {
		Name, Type string
		Metrics    []struct {
			Labels map[string]string
			Value  float64
		}
	}
	a.json(t, &families)
	for _, f := range families {
		if f.Name == "lb_requests_total" {
			require.Equal(t, "counter", f.Type)
			require.Equal(t, map[string]string{"route": "all", "pool": "main", "code": "200"}, f.Metrics[0].Labels)
			require.Equal(t, 1.0, f.Metrics[0].Value)
			return
		}
	}
	require.Fail(t, "no lb_requests_total")
}

// Promise: with a token nothing but life and readiness is told without it, and
// it is itself told nowhere.
func TestAdminToken(t *testing.T) {
	t.Parallel()
	const token = "canary-8c1f3d"
	d := start(t, strings.Replace(proxyAll("", backend(t, always(http.StatusOK))),
		`admin: { address: "127.0.0.1:0" }`, `admin: { address: "127.0.0.1:0", token_env: ADMIN_TOKEN }`, 1),
		"ADMIN_TOKEN="+token)
	shown := ""
	for path, open := range map[string]bool{
		"/livez": true, "/readyz": true, "/health": false, "/instances": false, "/config": false,
		"/metrics": false, "/audit": false, "/nothing": false, "/%69nstances": false,
	} {
		for name, fields := range map[string][]string{
			"none": nil, "wrong": {"Authorization", "Bearer canary"}, "empty": {"Authorization", "Bearer "},
			"longer": {"Authorization", "Bearer " + token + "x"}, "basic": {"Authorization", "Basic " + token},
			"twice": {"Authorization", "Bearer " + token, "Authorization", "Bearer " + token},
		} {
			a := d.do(http.MethodGet, d.Admin+path, nil, fields...)
			if open {
				require.Equal(t, http.StatusOK, a.Status, "%s, %s", path, name)
				continue
			}
			require.Equal(t, http.StatusUnauthorized, a.Status, "%s, %s", path, name)
			require.Equal(t, `Bearer realm="lb"`, a.Header.Get("WWW-Authenticate"))
			require.Equal(t, "unauthorized", a.Header.Get("X-LB-Error"))
		}
		a := d.do(http.MethodGet, d.Admin+path, nil, "Authorization", "bearer "+token)
		require.NotEqual(t, http.StatusUnauthorized, a.Status, path)
		shown += a.Body
	}
	require.Contains(t, shown, "ADMIN_TOKEN", "/config tells where the token comes from")
	d.stop()
	for _, text := range []string{shown, d.log(), d.stdout.String()} {
		require.NotContains(t, text, token)
	}
}

// Promise: a web page cannot use a browser to ask the admin listener.
func TestAdminRefusesForeignPages(t *testing.T) {
	t.Parallel()
	d := start(t, strings.Replace(proxyAll("", backend(t, always(http.StatusOK))),
		`admin: { address: "127.0.0.1:0" }`, `admin: { address: "127.0.0.1:0", hosts: [lb.internal] }`, 1))
	for _, c := range []struct {
		name, value string
		status      int
	}{
		{"Host", "evil.example", 421},
		{"Host", "127.0.0.1.evil.example", 421},
		{"Host", "10.0.0.1:9901", 421},
		{"Host", "lb.internal.evil.example", 421},
		{"Host", "localhost", 200},
		{"Host", "LocalHost:1234", 200},
		{"Host", "127.0.0.9", 200},
		{"Host", "[::1]:9901", 200},
		{"Host", "lb.internal", 200},
		{"Host", "LB.internal:9901", 200},
		{"Origin", "https://evil.example", 403},
		{"Origin", "null", 403},
		{"Sec-Fetch-Site", "cross-site", 403},
		{"Sec-Fetch-Site", "same-origin", 200},
		{"Origin", d.Admin, 200},
	} {
		for _, path := range []string{"/instances", "/livez", "/metrics", "/audit"} {
			a := d.do(http.MethodGet, d.Admin+path, nil, c.name, c.value)
			require.Equal(t, c.status, a.Status, "%s: %s", c.name, c.value)
		}
		if c.status != http.StatusOK {
			require.Equal(t, c.status, d.operate("drain", "b1", c.name, c.value).Status, "%s: %s", c.name, c.value)
		}
	}
	require.Equal(t, "up", d.instance("b1").State)
	require.Empty(t, d.audit())
}

// Promise: what operators see is not to be had through the data plane, however
// its path is written.
func TestAdminIsNotOnTheDataPlane(t *testing.T) {
	t.Parallel()
	d := start(t, listeners+pools("", backend(t, always(http.StatusOK)))+
		"routes: [{ name: login, match: { path: /login }, proxy: { pool: main } }]")
	for _, path := range []string{"/instances", "/config", "/metrics", "/health", "/readyz", "/audit", "/.lb/instances", "/.lb/", "//instances"} {
		requireProblem(t, d.get(path), http.StatusNotFound, "no_route")
	}
	requireProblem(t, d.do(http.MethodPost, "/instances/b1/drain", nil), http.StatusNotFound, "no_route")
	requireProblem(t, d.do(http.MethodPost, "/.lb/instances/b1/drain", nil), http.StatusMethodNotAllowed, "method_not_allowed")
	require.Equal(t, "up", d.instance("b1").State)
}

// Promise: metrics are served where the configuration says, and nothing else is.
func TestMetricsListenerAndRoute(t *testing.T) {
	t.Parallel()
	d := start(t, listeners+pools("", backend(t, always(http.StatusOK)))+`
metrics: { address: "127.0.0.1:0" }
routes: [{ name: metrics, match: { path: /metrics }, metrics: true }]
`)
	own := "http://" + d.address("metrics")
	for _, url := range []string{"/metrics", own + "/metrics", d.Admin + "/metrics"} {
		a := d.get(url)
		require.Equal(t, http.StatusOK, a.Status, url)
		require.Contains(t, a.Body, "\nlb_backend_state{", url)
	}
	for _, path := range []string{"/", "/instances", "/config", "/livez"} {
		require.Equal(t, http.StatusNotFound, d.get(own+path).Status, path)
	}
	require.Equal(t, http.StatusMethodNotAllowed, d.do(http.MethodPost, own+"/metrics", nil).Status)
}
