package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/outcome"
)

// operator writes down what it is asked for, and answers as it is told.
type operator struct {
	fanouts
	registrar
	reloader
	changes []Change
	err     error
	records []AuditRecord
	before  int64
	limit   int
}

// made counts the changes that were asked for.
func (o *operator) made() int { return len(o.changes) + len(o.asked) + len(o.said) + len(o.ordered) }

func (o *operator) SetAdmin(_ context.Context, change Change) (Instance, error) {
	if o.err != nil {
		return Instance{}, o.err
	}
	o.changes = append(o.changes, change)
	return Instance{ID: change.ID, Pool: "users", State: string(change.To)}, nil
}

func (o *operator) Audit(_ context.Context, before int64, limit int) ([]AuditRecord, error) {
	o.before, o.limit = before, limit
	return o.records[:min(limit, len(o.records))], o.err
}

// peerAddress is what ask leaves empty and a server fills in.
const peerAddress = "203.0.113.7:51234"

// askFrom is ask with the address of a peer.
func askFrom(t *testing.T, h http.Handler, remote, line string, fields ...string) *httptest.ResponseRecorder {
	t.Helper()
	return ask(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.RemoteAddr = remote
		h.ServeHTTP(w, r)
	}), line, fields...)
}

func TestChanges(t *testing.T) {
	for _, c := range []struct {
		path string
		want Change
	}{
		{"/instances/server1/drain", Change{ID: "server1", To: Draining}},
		{"/instances/server1/maintenance", Change{ID: "server1", To: Maintenance}},
		{"/instances/server1/enable", Change{ID: "server1", To: Enabled}},
		{"/instances/server1/drain?pool=users", Change{ID: "server1", Pool: "users", To: Draining}},
		{"/instances/server1/drain?pool=a%26b+c", Change{ID: "server1", Pool: "a&b c", To: Draining}},
		// An id is what stands between the slashes, decoded once.
		{"/instances/10.0.0.1:8080/drain", Change{ID: "10.0.0.1:8080", To: Draining}},
		{"/instances/%5Bfd00::1%5D%3A80/drain", Change{ID: "[fd00::1]:80", To: Draining}},
		{"/instances/a%20b%25%3f/drain", Change{ID: "a b%?", To: Draining}},
		{"/instances/%252Fx/drain", Change{ID: "%2Fx", To: Draining}},
		{"/instances/a+b;c=d/drain", Change{ID: "a+b;c=d", To: Draining}},
		{"/instances/%ff%0a/drain", Change{ID: "\xff\n", To: Draining}},
		{"/instances/{id}/drain", Change{ID: "{id}", To: Draining}},
		{"/instances/drain/enable", Change{ID: "drain", To: Enabled}},
	} {
		o := new(operator)
		h := New(Options{}, healthy(), o, metricsStub)
		rec := askFrom(t, h, peerAddress, "POST "+c.path)
		require.Equal(t, 200, rec.Code, "%s: %s", c.path, rec.Body)
		require.Equal(t, "application/json", rec.Header().Get("Content-Type"))
		c.want.By = "203.0.113.7"
		require.Equal(t, []Change{c.want}, o.changes, c.path)
	}
	rec := ask(t, New(Options{}, healthy(), new(operator), metricsStub), "POST /instances/server1/drain")
	require.JSONEq(t, `{"instanceId":"server1","pool":"users","address":"","source":"","weight":0,"in_flight":0,"limit":0,
		"queued":0,"state":"draining","eligible":false,"reasons":[],"ewma_ms":0}`, rec.Body.String())
}

func TestChangesThatAreRefused(t *testing.T) {
	for _, c := range []struct {
		query  string
		fields []string
		say    string
	}{
		{query: "?pol=users", say: `no parameter \"pol\"`},
		{query: "?pool=users&force=true", say: `no parameter \"force\"`},
		{query: "?" + strings.Repeat("x", 5000), say: "…"},
		{query: "?pool=users&pool=api", say: "pool is given 2 times"},
		{query: "?pool=", say: "pool is empty"},
		{query: "?pool", say: "pool is empty"},
		{query: "?pool=%zz", say: "query cannot be read"},
		{query: "?pool=a;b", say: "query cannot be read"},
		{fields: []string{"Content-Length: 2", "", "{}"}, say: "no body"},
		{fields: []string{"Transfer-Encoding: chunked", "", "1", "x", "0", ""}, say: "no body"},
		{fields: []string{"Transfer-Encoding: chunked", "", "nonsense"}, say: "no body"},
		{fields: []string{"X-LB-Operator:"}, say: "X-LB-Operator"},
		{fields: []string{"X-LB-Operator: " + strings.Repeat("x", 65)}, say: "X-LB-Operator"},
		{fields: []string{"X-LB-Operator: zoë"}, say: "X-LB-Operator"},
		{fields: []string{"X-LB-Operator: a\tb"}, say: "X-LB-Operator"},
		{fields: []string{"X-LB-Operator: alice", "X-LB-Operator: bob"}, say: "X-LB-Operator"},
	} {
		o := new(operator)
		h := New(Options{}, healthy(), o, metricsStub)
		rec := ask(t, h, "POST /instances/server1/drain"+c.query, append([]string{"Host: localhost"}, c.fields...)...)
		require.Equal(t, "bad_request", requireProblem(t, rec, 400), "%+v", c)
		require.Contains(t, rec.Body.String(), c.say)
		require.Less(t, rec.Body.Len(), 1000)
		require.Empty(t, o.changes, "%+v", c)
	}
	// Chunks that hold nothing are no body.
	rec := ask(t, New(Options{}, healthy(), new(operator), metricsStub), "POST /instances/server1/drain",
		"Host: localhost", "Transfer-Encoding: chunked", "", "0", "")
	require.Equal(t, 200, rec.Code, rec.Body)
}

func TestErrorsOfTheOperator(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
		code   string
		say    string
	}{
		{&outcome.Error{Code: outcome.InstanceNotFound, Detail: `no backend has the id "a"`}, 404, "instance_not_found", "no backend has"},
		{&outcome.Error{Code: outcome.AmbiguousInstance, Detail: "in the pools users, api"}, 409, "ambiguous_instance", "users, api"},
		{&outcome.Error{Code: outcome.StorageUnavailable, Detail: "nothing has changed", Err: errors.New("canary-cause")}, 503, "storage_unavailable", "nothing has"},
		{fmt.Errorf("wrapped: %w", &outcome.Error{Code: outcome.InstanceNotFound, Detail: "none"}), 404, "instance_not_found", "none"},
		{errors.New("canary-cause"), 500, "internal_error", "log"},
	} {
		var logged string
		h := New(Options{Logger: func(msg string, kv ...any) { logged += fmt.Sprintln(msg, kv) }},
			healthy(), &operator{err: c.err}, metricsStub)
		for _, line := range []string{"POST /instances/a/drain", "POST /instances/a/enable?pool=b", "GET /audit"} {
			logged = ""
			rec := ask(t, h, line)
			require.Equal(t, c.code, requireProblem(t, rec, c.status), line)
			require.Contains(t, rec.Body.String(), c.say)
			require.NotContains(t, rec.Body.String(), "canary-cause")
			require.Equal(t, c.status == 503, rec.Header().Get("Retry-After") != "")
			require.Equal(t, c.status >= 500, strings.Contains(logged, "canary-cause"), logged)
			require.Equal(t, 1, strings.Count(logged, "\n"), "one line a request: %s", logged)
		}
	}
}

func TestWhoAsks(t *testing.T) {
	for _, c := range []struct {
		secret, remote, name, want string
	}{
		{"", "127.0.0.1:51234", "", "127.0.0.1"},
		{"", "[::1]:51234", "", "::1"},
		{"", "127.0.0.1:51234", "alice", "alice (127.0.0.1)"},
		{"", "127.0.0.1:51234", strings.Repeat("~", 64), strings.Repeat("~", 64) + " (127.0.0.1)"},
		{"", "10.0.0.7:1", "bob (127.0.0.1)", "bob (127.0.0.1) (10.0.0.7)"},
		{token, "10.0.0.7:1", "", "token, 10.0.0.7"},
		{token, "10.0.0.7:1", "alice", "alice (token, 10.0.0.7)"},
	} {
		o := new(operator)
		fields := []string{"Authorization: Bearer " + token}
		if c.name != "" {
			fields = append(fields, "X-LB-Operator: "+c.name)
		}
		rec := askFrom(t, New(Options{Token: c.secret}, healthy(), o, metricsStub), c.remote, "POST /instances/a/drain", fields...)
		require.Equal(t, 200, rec.Code, rec.Body)
		require.Equal(t, c.want, o.changes[0].By)
	}
}

// A unix socket's client may bind its own end to a path that reads like an
// address.
func TestWhoAsksOverAUnixSocket(t *testing.T) {
	o := new(operator)
	path := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	s := httptest.NewUnstartedServer(New(Options{}, healthy(), o, metricsStub))
	require.NoError(t, s.Listener.Close())
	s.Listener = l
	s.Start()
	defer s.Close()

	t.Chdir(t.TempDir())
	dialer := net.Dialer{LocalAddr: &net.UnixAddr{Net: "unix", Name: "10.0.0.1:80"}}
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", path)
		},
	}}
	res, err := client.Post("http://localhost/instances/a/drain", "", http.NoBody)
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, res.Body)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, 200, res.StatusCode)
	require.Equal(t, "unix socket", o.changes[0].By)
}

func TestAuditPages(t *testing.T) {
	records := make([]AuditRecord, 0, 150)
	for id := int64(150); id > 0; id-- {
		records = append(records, AuditRecord{ID: id})
	}
	for _, c := range []struct {
		query  string
		have   int
		before int64
		limit  int
		shown  int
		next   string
	}{
		{"", 0, 0, 101, 0, `"next":null`},
		{"", 100, 0, 101, 100, `"next":null`},
		{"", 101, 0, 101, 100, `"next":51`},
		{"?limit=1", 2, 0, 2, 1, `"next":150`},
		{"?limit=2", 2, 0, 3, 2, `"next":null`},
		{"?limit=1000", 150, 0, 1001, 150, `"next":null`},
		{"?before=7&limit=3", 4, 7, 4, 3, `"next":148`},
		{"?before=9223372036854775807", 0, 9223372036854775807, 101, 0, `"next":null`},
	} {
		o := &operator{records: records[:c.have]}
		rec := ask(t, New(Options{}, healthy(), o, metricsStub), "GET /audit"+c.query)
		require.Equal(t, 200, rec.Code, rec.Body)
		require.Equal(t, c.before, o.before, c.query)
		require.Equal(t, c.limit, o.limit, c.query)
		require.Equal(t, c.shown, strings.Count(rec.Body.String(), `"id":`), c.query)
		require.Contains(t, rec.Body.String(), c.next, c.query)
	}
}

func TestAuditBody(t *testing.T) {
	h := New(Options{}, healthy(), new(operator), metricsStub)
	require.JSONEq(t, `{"records":[],"next":null}`, ask(t, h, "GET /audit").Body.String())

	h = New(Options{}, healthy(), &operator{records: []AuditRecord{{
		ID: 7, At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Who: "alice (127.0.0.1)", Action: "drain",
		Target: "users/server1", Detail: "enabled → draining", Generation: 3,
	}}}, metricsStub)
	require.JSONEq(t, `{"records":[{"id":7,"at":"2026-01-02T03:04:05Z","who":"alice (127.0.0.1)","action":"drain",
		"target":"users/server1","detail":"enabled → draining","generation":3}],"next":null}`, ask(t, h, "GET /audit").Body.String())
}

func TestAuditParameters(t *testing.T) {
	h := New(Options{}, healthy(), new(operator), metricsStub)
	for query, say := range map[string]string{
		"limit=0": "limit", "limit=1001": "limit", "limit=-1": "limit", "limit=x": "limit", "limit=": "limit", "limit=1&limit=1": "limit",
		"limit=99999999999999999999": "limit", "limit=1.5": "limit", "limit=0x10": "limit",
		"before=0": "before", "before=-1": "before", "before=9223372036854775808": "before", "before=now": "before",
		"after=1": `\"after\"`,
	} {
		rec := ask(t, h, "GET /audit?"+query)
		require.Equal(t, "bad_request", requireProblem(t, rec, 400), query)
		require.Contains(t, rec.Body.String(), say, query)
	}
}
