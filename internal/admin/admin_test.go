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
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
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

// TestMatrix asks for every path of the handler, with every method and every
// state of the credential. A path without a row here fails.
func TestMatrix(t *testing.T) {
	rows := map[string]struct {
		open  bool
		allow string
	}{
		"/livez":     {open: true, allow: "GET, HEAD"},
		"/readyz":    {open: true, allow: "GET, HEAD"},
		"/health":    {allow: "GET, HEAD"},
		"/instances": {allow: "GET, HEAD"},
		"/config":    {allow: "GET, HEAD"},
		"/metrics":   {allow: "GET, HEAD"},
	}
	credentials := map[string]struct {
		fields []string
		right  bool
	}{
		"none":               {nil, false},
		"right":              {[]string{"Authorization: Bearer " + token}, true},
		"scheme in any case": {[]string{"Authorization: bEARER  " + token}, true},
		"wrong":              {[]string{"Authorization: Bearer s3cret-canarY"}, false},
		"shorter":            {[]string{"Authorization: Bearer s3cret-canar"}, false},
		"longer":             {[]string{"Authorization: Bearer " + token + "x"}, false},
		"empty":              {[]string{"Authorization: Bearer "}, false},
		"scheme only":        {[]string{"Authorization: Bearer"}, false},
		"no scheme":          {[]string{"Authorization: " + token}, false},
		"basic":              {[]string{"Authorization: Basic OnMzY3JldC1jYW5hcnk="}, false},
		"basic with token":   {[]string{"Authorization: Basic " + token}, false},
		"right, twice":       {[]string{"Authorization: Bearer " + token, "Authorization: Bearer " + token}, false},
		"right, in a list":   {[]string{"Authorization: Bearer x, Bearer " + token}, false},
		"in another field":   {[]string{"Proxy-Authorization: Bearer " + token, "Cookie: token=" + token}, false},
	}
	methods := []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "get", "X"}

	closed := New(Options{Token: token}, healthy(), metricsStub)
	free := New(Options{}, healthy(), metricsStub)
	for path := range closed.routes {
		require.Contains(t, rows, path, "a path without a row in this matrix")
	}
	for path, row := range rows {
		require.Contains(t, closed.routes, path, "a row without a path")
		for _, method := range methods {
			for name, credential := range credentials {
				want := http.StatusMethodNotAllowed
				if slices.Contains(strings.Split(row.allow, ", "), method) {
					want = http.StatusOK
				}
				at := fmt.Sprintf("%s %s, credential %s", method, path, name)

				rec := ask(t, free, method+" "+path, credential.fields...)
				require.Equal(t, want, rec.Code, "without a token set: %s", at)

				if !row.open && !credential.right {
					want = http.StatusUnauthorized
				}
				rec = ask(t, closed, method+" "+path, credential.fields...)
				require.Equal(t, want, rec.Code, at)
				require.Equal(t, "no-store", rec.Header().Get("Cache-Control"), at)
				require.Equal(t, "nosniff", rec.Header().Get("X-Content-Type-Options"), at)
				require.NotContains(t, rec.Body.String(), token, at)
				switch want {
				case http.StatusUnauthorized:
					require.Equal(t, "unauthorized", requireProblem(t, rec, want), at)
					require.Equal(t, `Bearer realm="lb"`, rec.Header().Get("WWW-Authenticate"), at)
					require.Empty(t, rec.Header().Get("Allow"), at)
				case http.StatusMethodNotAllowed:
					require.Equal(t, "method_not_allowed", requireProblem(t, rec, want), at)
					require.Equal(t, row.allow, rec.Header().Get("Allow"), at)
				}
			}
		}
	}
}

func TestUnknownPaths(t *testing.T) {
	h := New(Options{Token: token}, healthy(), metricsStub)
	for _, path := range []string{"/", "/nothing", "/config/", "/livez/", "/LIVEZ", "/livez%20", "/instances/00", "/debug/pprof/", "/livez;x", "/%252f"} {
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
	s := httptest.NewServer(New(Options{}, healthy(), metricsStub))
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
	h := New(Options{Token: token}, c, metricsStub)
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
	h := New(Options{}, c, metricsStub)
	rec := ask(t, h, "GET /health")
	require.Equal(t, 200, rec.Code)
	require.Equal(t, "application/json", rec.Header().Get("Content-Type"))
	require.JSONEq(t, `{"status":"ok","pools":[]}`, rec.Body.String())

	probed := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	c.health = Health{Status: StatusUnavailable, Pools: []PoolHealth{{Name: "empty"}, {
		Name: "users", Eligible: 1, Backends: []BackendHealth{
			{ID: "server1", State: "up"},
			{ID: "server2", State: "down", Reasons: []string{"<svg onload>"}, ConsecutiveOK: 1, ConsecutiveFail: 2,
				LastProbe: &probed, ErrorRate: 0.5, P50: 1.5, P99: 20},
		}}}}
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
			 "last_probe":"2026-01-02T03:04:05Z","error_rate":0.5,"p50_ms":1.5,"p99_ms":20}]}]}`, rec.Body.String())
}

func TestInstances(t *testing.T) {
	c := healthy()
	h := New(Options{}, c, metricsStub)
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
	h := New(Options{}, healthy(), metricsStub)
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
	h := New(Options{Logger: func(msg string, kv ...any) { logged += fmt.Sprintln(msg, kv) }}, c, metricsStub)

	rec := ask(t, h, "GET /config")
	require.Equal(t, "internal_error", requireProblem(t, rec, 500))
	require.NotContains(t, rec.Body.String(), "canary-cause")
	require.Contains(t, logged, "canary-cause")
	require.Equal(t, "internal_error", requireProblem(t, ask(t, h, "GET /instances"), 500))
}
