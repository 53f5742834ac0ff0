package admin

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"lb/internal/outcome"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const token = "s3cret-canary"

type control struct {
	ready     error
	health    Health
	instances []Instance
	config    string
	configErr error
}

func (c *control) Ready() error            { return c.ready }
func (c *control) Health() Health          { return c.health }
func (c *control) Instances() []Instance   { return c.instances }
func (c *control) Config() ([]byte, error) { return []byte(c.config), c.configErr }

func healthy() *control { return &control{health: Health{Status: StatusOK}, config: "pools: []\n"} }

var metricsStub = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
	_, _ = io.WriteString(w, "lb_build_info 1\n")
})

// ask parses a request as a server does and returns the answer to it.
func ask(t *testing.T, h http.Handler, line string, fields ...string) *httptest.ResponseRecorder {
	t.Helper()
	raw := line + " HTTP/1.1\r\n"
	for _, f := range fields {
		raw += f + "\r\n"
	}
	if !strings.Contains(raw, "Host:") {
		raw += "Host: localhost:9901\r\n"
	}
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw + "\r\n")))
	require.NoError(t, err, "%q", raw)
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec
}

// requireProblem checks an answer that lb made itself, and returns its code.
func requireProblem(t *testing.T, rec *httptest.ResponseRecorder, status int) string {
	t.Helper()
	require.Equal(t, status, rec.Code, rec.Body)
	require.Equal(t, "application/problem+json", rec.Header().Get("Content-Type"))
	var p struct {
		Type, Detail, Code string
		Status             int
	}
	require.NoError(t, json.Unmarshal(rec.Body.Bytes(), &p))
	require.Equal(t, status, p.Status)
	require.NotEmpty(t, p.Type)
	require.NotEmpty(t, p.Detail)
	require.Equal(t, []string{p.Code}, rec.Header()[errorField])
	return p.Code
}

// errorField is spelled as it stands on the wire, which is not Go's own way.
var errorField = "X-LB-Error"

func TestUnknownPaths(t *testing.T) {
	h := New(Options{Token: token}, healthy(), new(operator), metricsStub)
	for _, path := range []string{"/", "/nothing", "/config/", "/livez/", "/LIVEZ", "/livez%20", "/instances/00", "/instances/", "/instances/a/", "/instances/a/stop", "/instances/a/DRAIN", "/instances/a/drain/", "/instances/a/b/drain", "/instances/{id}", "/audit/1",
		"/fanout/", "/fanout/a/", "/fanout/a/deliveries", "/fanout/a/deliveries/b", "/fanout/a/deliveries/b/", "/fanout/a/deliveries/b/RETRY",
		"/reload", "/reload/", "/config/versions", "/config/versions/1", "/config/versions/1/diff", "/config/versions/1/rollback",
		"/fanout/a/deliveries/b/retry/", "/fanout/a/deliveries/b/c/retry", "/fanout/a/instances/b/retry", "/.lb/fanout/a", "/debug/pprof/", "/livez;x", "/%252f"} {
		// Without the token nobody learns which paths there are.
		require.Equal(t, "unauthorized", requireProblem(t, ask(t, h, "GET "+path), 401), path)
		rec := ask(t, h, "GET "+path, "Authorization: Bearer "+token)
		require.Equal(t, "not_found", requireProblem(t, rec, 404), path)
	}
	// A query is no part of the path, and no method is taken from elsewhere.
	require.Equal(t, 200, ask(t, h, "GET /livez?/../%2f").Code)
	require.Equal(t, 405, ask(t, h, "POST /livez?_method=GET", "X-HTTP-Method-Override: GET").Code)
}

func TestHeadOverTheWire(t *testing.T) {
	s := httptest.NewServer(New(Options{}, healthy(), new(operator), metricsStub))
	defer s.Close()
	res, err := s.Client().Head(s.URL + "/health")
	require.NoError(t, err)
	body, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, 200, res.StatusCode)
	require.Empty(t, body)
	require.Positive(t, res.ContentLength)
	s.Client().CloseIdleConnections()
}

func TestLiveAndReady(t *testing.T) {
	c := healthy()
	h := New(Options{Token: token}, c, new(operator), metricsStub)
	require.JSONEq(t, `{"status":"ok"}`, ask(t, h, "GET /livez").Body.String())
	require.JSONEq(t, `{"status":"ok"}`, ask(t, h, "GET /readyz").Body.String())

	c.ready = errors.New(`listener "public" is not bound`)
	require.Equal(t, 200, ask(t, h, "GET /livez").Code)
	rec := ask(t, h, "GET /readyz")
	require.Equal(t, 503, rec.Code)
	require.Equal(t, "1", rec.Header().Get("Retry-After"))
	require.JSONEq(t, `{"status":"not_ready","reason":"listener \"public\" is not bound"}`, rec.Body.String())
}

func TestHealth(t *testing.T) {
	c := healthy()
	h := New(Options{}, c, new(operator), metricsStub)
	rec := ask(t, h, "GET /health")
	require.Equal(t, 200, rec.Code)
	require.Equal(t, "application/json", rec.Header().Get("Content-Type"))
	require.JSONEq(t, `{"status":"ok","pools":[],"config":{"generation":0,"loaded_at":"0001-01-01T00:00:00Z"}}`, rec.Body.String())

	probed := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	c.health = Health{Status: StatusUnavailable, Pools: []PoolHealth{{Name: "empty"}, {
		Name: "users", Eligible: 1, Backends: []BackendHealth{
			{ID: "server1", State: "up"},
			{ID: "server2", State: "down", Reasons: []string{"<svg onload>"}, ConsecutiveOK: 1, ConsecutiveFail: 2,
				LastProbe: &probed, LastError: "status 500", Breaker: "half-open", ErrorRate: 0.5, P50: 1.5, P99: 20},
		}}}, Config: ConfigHealth{Generation: 3, LoadedAt: probed, Error: &ConfigError{At: probed.Add(time.Second), Detail: "1 problem",
		Errors: []outcome.FieldError{{Field: "pools[0].policy", Detail: `pools[0].policy (line 4): no policy "rr2"`}}}}}
	rec = ask(t, h, "GET /health")
	require.Equal(t, 503, rec.Code)
	require.Equal(t, "1", rec.Header().Get("Retry-After"))
	require.NotContains(t, rec.Body.String(), "<svg")
	require.JSONEq(t, `{"status":"unavailable","pools":[
		{"name":"empty","eligible":0,"backends":[]},
		{"name":"users","eligible":1,"backends":[
			{"instanceId":"server1","state":"up","reasons":[],"consecutive_ok":0,"consecutive_fail":0,
			 "last_probe":null,"error_rate":0,"p50_ms":0,"p99_ms":0},
			{"instanceId":"server2","state":"down","reasons":["<svg onload>"],"consecutive_ok":1,"consecutive_fail":2,
			 "last_probe":"2026-01-02T03:04:05Z","last_error":"status 500","breaker":"half-open","error_rate":0.5,"p50_ms":1.5,"p99_ms":20}]}],
		"config":{"generation":3,"loaded_at":"2026-01-02T03:04:05Z","error":{"at":"2026-01-02T03:04:06Z","detail":"1 problem",
			"errors":[{"field":"pools[0].policy","detail":"pools[0].policy (line 4): no policy \"rr2\""}]}}}`, rec.Body.String())

	c.health.Config.Error.Errors = nil
	require.Contains(t, ask(t, h, "GET /health").Body.String(), `"errors":[]`, "a list, though there is nothing in it")
}

func TestInstances(t *testing.T) {
	c := healthy()
	h := New(Options{}, c, new(operator), metricsStub)
	require.JSONEq(t, `[]`, ask(t, h, "GET /instances").Body.String())

	c.instances = []Instance{
		{ID: "server1", Pool: "users", Address: "server1:8080", Source: "config", Weight: 2, InFlight: 3, State: "up", Eligible: true},
		{ID: "server2", Limit: 4, Queued: 5, State: "ejected", Reasons: []string{"dial"}, EWMA: 1.25},
	}
	rec := ask(t, h, "GET /instances")
	require.Equal(t, "application/json", rec.Header().Get("Content-Type"))
	require.JSONEq(t, `[
		{"instanceId":"server1","pool":"users","address":"server1:8080","source":"config","weight":2,"in_flight":3,
		 "limit":0,"queued":0,"state":"up","eligible":true,"reasons":[],"ewma_ms":0},
		{"instanceId":"server2","pool":"","address":"","source":"","weight":0,"in_flight":0,
		 "limit":4,"queued":5,"state":"ejected","eligible":false,"reasons":["dial"],"ewma_ms":1.25}]`, rec.Body.String())
}

func TestConfigAndMetrics(t *testing.T) {
	h := New(Options{}, healthy(), new(operator), metricsStub)
	rec := ask(t, h, "GET /config")
	require.Equal(t, 200, rec.Code)
	require.Equal(t, "application/yaml", rec.Header().Get("Content-Type"))
	require.Equal(t, "pools: []\n", rec.Body.String())
	require.Equal(t, "lb_build_info 1\n", ask(t, h, "GET /metrics").Body.String())
}

func TestFailuresTellTheLogOnly(t *testing.T) {
	var logged string
	c := healthy()
	c.configErr = errors.New("canary-cause")
	c.instances = []Instance{{EWMA: math.NaN()}} // no JSON for it
	h := New(Options{Logger: func(msg string, kv ...any) { logged += fmt.Sprintln(msg, kv) }}, c, new(operator), metricsStub)

	rec := ask(t, h, "GET /config")
	require.Equal(t, "internal_error", requireProblem(t, rec, 500))
	require.NotContains(t, rec.Body.String(), "canary-cause")
	require.Contains(t, logged, "canary-cause")
	require.Equal(t, "internal_error", requireProblem(t, ask(t, h, "GET /instances"), 500))
}
