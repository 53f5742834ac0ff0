package admin

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/outcome"
)

// reloader writes down what it is told and asked, and answers as it is told.
type reloader struct {
	ordered  []string // changes, with every word of them
	looked   []string // what was read
	changed  Changes
	kept     []ConfigVersion
	obstacle error
}

func (l *reloader) Reload(_ context.Context, by string) (Reloaded, error) {
	l.ordered = append(l.ordered, fmt.Sprintf("reload by %q", by))
	return Reloaded{Generation: 4, Result: Applied, Changes: l.changed}, l.obstacle
}

func (l *reloader) ConfigVersions(_ context.Context, before int64, limit int) ([]ConfigVersion, error) {
	l.looked = append(l.looked, fmt.Sprintf("%d before %d", limit, before))
	return l.kept[:min(limit, len(l.kept))], l.obstacle
}

func (l *reloader) ConfigVersion(_ context.Context, id int64) (ConfigVersion, error) {
	return ConfigVersion{ID: id, Document: "pools: []\n"}, l.obstacle
}

func (l *reloader) DiffConfig(_ context.Context, from, to int64) (Changes, error) {
	l.looked = append(l.looked, fmt.Sprintf("from %d to %d", from, to))
	return l.changed, l.obstacle
}

func (l *reloader) Rollback(_ context.Context, id int64, by string) (Reloaded, error) {
	l.ordered = append(l.ordered, fmt.Sprintf("rollback to %d by %q", id, by))
	return Reloaded{Generation: 5, Result: Unchanged}, l.obstacle
}

// desired returns a handler through which l can be told what is to serve.
func desired(l *reloader) *Handler {
	return New(Options{Reloader: l}, healthy(), new(operator), metricsStub)
}

func TestReloadAndRollback(t *testing.T) {
	l := &reloader{changed: Changes{
		Added: List[string]{"pool users"}, Removed: List[string]{"route login"},
		Changed: List[ChangedPart]{{Name: "pool api", Values: List[ChangedValue]{{Path: "pools.api.limits.total", From: "0", To: "8"}}}},
	}}
	for line, c := range map[string]struct{ ordered, body string }{
		"POST /reload": {`reload by "w (203.0.113.7)"`, `{"generation":4,"result":"applied","changes":{"added":["pool users"],"removed":["route login"],
			"changed":[{"name":"pool api","values":[{"path":"pools.api.limits.total","from":"0","to":"8"}]}]}}`},
		"POST /config/versions/7/rollback": {`rollback to 7 by "w (203.0.113.7)"`,
			`{"generation":5,"result":"unchanged","changes":{"added":[],"removed":[],"changed":[]}}`},
	} {
		l.ordered = nil
		rec := askFrom(t, desired(l), peerAddress, line, "X-LB-Operator: w")
		require.Equal(t, 200, rec.Code, "%s: %s", line, rec.Body)
		require.JSONEq(t, c.body, rec.Body.String(), line)
		require.Equal(t, []string{c.ordered}, l.ordered)
	}
}

func TestOrdersThatAreRefused(t *testing.T) {
	for _, line := range []string{"POST /reload", "POST /config/versions/7/rollback"} {
		for _, c := range [][]string{
			{"?force=true"},
			{"", "X-LB-Operator: zoë"},
			{"", "Host: localhost", "Content-Length: 2", "", "{}"},
		} {
			l := new(reloader)
			rec := ask(t, desired(l), line+c[0], c[1:]...)
			require.Equal(t, "bad_request", requireProblem(t, rec, 400), "%s %q", line, c)
			require.Empty(t, l.ordered, line)
		}
	}
}

// A version is a whole number; nothing else gets as far as the Reloader.
func TestVersionsInThePath(t *testing.T) {
	l := new(reloader)
	for _, id := range []string{"0", "-1", "x", "1.5", "9223372036854775808", "%20", "1%00x", strings.Repeat("9", 5000)} {
		for _, line := range []string{"GET /config/versions/" + id, "GET /config/versions/" + id + "/diff", "POST /config/versions/" + id + "/rollback"} {
			rec := ask(t, desired(l), line)
			require.Equal(t, "bad_request", requireProblem(t, rec, 400), line)
			require.Less(t, rec.Body.Len(), 1000)
		}
	}
	for _, path := range []string{"/config/versions/", "/config/versions/1/", "/config/versions/1/DIFF", "/config/versions/1/diff/2", "/config/version/1", "/config/reload"} {
		require.Equal(t, "not_found", requireProblem(t, ask(t, desired(l), "GET "+path), 404), path)
	}
	require.Empty(t, l.ordered)
	require.Empty(t, l.looked)
}

func TestConfigVersionPages(t *testing.T) {
	kept := make([]ConfigVersion, 0, 150)
	for id := int64(150); id > 0; id-- {
		kept = append(kept, ConfigVersion{ID: id})
	}
	for _, c := range []struct {
		query string
		have  int
		asked string
		shown int
		next  string
	}{
		{"", 0, "101 before 0", 0, `"next":null`},
		{"", 100, "101 before 0", 100, `"next":null`},
		{"", 101, "101 before 0", 100, `"next":51`},
		{"?limit=1000", 150, "1001 before 0", 150, `"next":null`},
		{"?before=7&limit=3", 4, "4 before 7", 3, `"next":148`},
	} {
		l := &reloader{kept: kept[:c.have]}
		rec := ask(t, desired(l), "GET /config/versions"+c.query)
		require.Equal(t, 200, rec.Code, rec.Body)
		require.Equal(t, []string{c.asked}, l.looked, c.query)
		require.Equal(t, c.shown, strings.Count(rec.Body.String(), `"id":`), c.query)
		require.Contains(t, rec.Body.String(), c.next, c.query)
		require.NotContains(t, rec.Body.String(), "document")
	}
	l := &reloader{kept: []ConfigVersion{{ID: 7, At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), By: "alice (127.0.0.1)",
		Source: "/etc/lb/lb.yaml", Generation: 3, Serving: true}}}
	require.JSONEq(t, `{"versions":[{"id":7,"at":"2026-01-02T03:04:05Z","by":"alice (127.0.0.1)","source":"/etc/lb/lb.yaml",
		"generation":3,"serving":true}],"next":null}`, ask(t, desired(l), "GET /config/versions").Body.String())
	for _, query := range []string{"limit=0", "limit=1001", "limit=x", "before=0", "before=x", "before=1&before=1", "after=1"} {
		rec := ask(t, desired(l), "GET /config/versions?"+query)
		require.Equal(t, "bad_request", requireProblem(t, rec, 400), query)
	}
}

func TestConfigVersionAsJSONOrAsItIs(t *testing.T) {
	for accept, yaml := range map[string]bool{
		"": false, "*/*": false, "application/json": false, "text/plain": false, "application/*": false, "application/yamlx": false,
		"application/yaml": true, "text/plain, Application/YAML;q=0.5": true, ";;, application/yaml": true,
		"application/yaml, application/json": false, "application/json;q=0.1, application/yaml": false,
	} {
		rec := ask(t, desired(new(reloader)), "GET /config/versions/7", "Accept: "+accept)
		require.Equal(t, 200, rec.Code, rec.Body)
		require.Equal(t, "Accept", rec.Header().Get("Vary"))
		if yaml {
			require.Equal(t, "application/yaml", rec.Header().Get("Content-Type"), accept)
			require.Equal(t, "pools: []\n", rec.Body.String(), accept)
			continue
		}
		require.Equal(t, "application/json", rec.Header().Get("Content-Type"), accept)
		require.JSONEq(t, `{"id":7,"at":"0001-01-01T00:00:00Z","by":"","source":"","generation":0,"serving":false,"document":"pools: []\n"}`,
			rec.Body.String(), accept)
	}
}

func TestDiffConfig(t *testing.T) {
	l := new(reloader)
	for query, asked := range map[string]string{"": "from 7 to 0", "?to=9": "from 7 to 9", "?to=7": "from 7 to 7"} {
		l.looked = nil
		rec := ask(t, desired(l), "GET /config/versions/7/diff"+query)
		require.Equal(t, 200, rec.Code, rec.Body)
		require.Equal(t, []string{asked}, l.looked)
		require.JSONEq(t, `{"added":[],"removed":[],"changed":[]}`, rec.Body.String())
	}
	for _, query := range []string{"to=0", "to=-1", "to=x", "to=", "to=1&to=2", "from=1"} {
		rec := ask(t, desired(l), "GET /config/versions/7/diff?"+query)
		require.Equal(t, "bad_request", requireProblem(t, rec, 400), query)
	}
}

func TestErrorsOfTheReloader(t *testing.T) {
	lines := []string{"POST /reload", "GET /config/versions", "GET /config/versions/7", "GET /config/versions/7/diff",
		"POST /config/versions/7/rollback"}
	for _, c := range []struct {
		err    error
		status int
		code   string
		say    string
	}{
		{&outcome.Error{Code: outcome.ConfigInvalid, Detail: "1 problem", Fields: []outcome.FieldError{
			{Field: "pools[0].policy", Detail: "pools[0].policy (line 4): nonsense"}}}, 422, "config_invalid",
			`"errors":[{"field":"pools[0].policy","detail":"pools[0].policy (line 4): nonsense"}]`},
		{&outcome.Error{Code: outcome.ConfigVersionNotFound, Detail: "there is no version 7"}, 404, "config_version_not_found", "no version 7"},
		{&outcome.Error{Code: outcome.ConfigNotWritable, Detail: "it is read-only"}, 409, "config_not_writable", "read-only"},
		{&outcome.Error{Code: outcome.StorageUnavailable, Detail: "nothing has changed"}, 503, "storage_unavailable", "nothing has"},
		{fmt.Errorf("canary-cause"), 500, "internal_error", "log"},
	} {
		for _, line := range lines {
			rec := ask(t, desired(&reloader{obstacle: c.err}), line, "Accept: application/yaml")
			require.Equal(t, c.code, requireProblem(t, rec, c.status), line)
			require.Contains(t, rec.Body.String(), c.say, line)
			require.NotContains(t, rec.Body.String(), "canary-cause")
			require.Equal(t, c.status == 503, rec.Header().Get("Retry-After") != "")
		}
	}
}

// Two patterns that match one path would make it a matter of luck which of them
// answers.
func TestNoPathHasTwoPatterns(t *testing.T) {
	routes := everything().routes
	for pattern, a := range routes {
		for other, b := range routes {
			both := len(a.segments) == len(b.segments)
			for i := 0; both && i < len(a.segments); i++ {
				both = a.segments[i] == b.segments[i] || braced(a.segments[i]) != "" || braced(b.segments[i]) != ""
			}
			require.Equal(t, pattern == other, both, "%s and %s", pattern, other)
		}
	}
}
