package admin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/outcome"
)

// fanouts writes down what it is asked for, and answers as it is told.
type fanouts struct {
	asked   []string // what was to be done, with every word of it
	filter  FanoutFilter
	held    []Fanout
	failure error
}

func (f *fanouts) ListFanouts(_ context.Context, filter FanoutFilter) ([]Fanout, error) {
	f.filter = filter
	return f.held[:min(filter.Limit, len(f.held))], f.failure
}

func (f *fanouts) ShowFanout(_ context.Context, id string) (Fanout, error) {
	return Fanout{ID: id}, f.failure
}

func (f *fanouts) RetryDelivery(_ context.Context, c DeliveryChange) (Fanout, error) {
	f.asked = append(f.asked, fmt.Sprintf("retry %q %q by %q", c.ID, c.Backend, c.By))
	return Fanout{ID: c.ID}, f.failure
}

func (f *fanouts) SkipDelivery(_ context.Context, c DeliveryChange) (Fanout, error) {
	f.asked = append(f.asked, fmt.Sprintf("skip %q %q by %q", c.ID, c.Backend, c.By))
	return Fanout{ID: c.ID}, f.failure
}

func TestFanoutPages(t *testing.T) {
	held := make([]Fanout, 0, 150)
	for seq := range uint64(150) {
		held = append(held, Fanout{Seq: seq + 1})
	}
	for _, c := range []struct {
		query string
		have  int
		want  FanoutFilter
		shown int
		next  string
	}{
		{"", 0, FanoutFilter{Limit: 101}, 0, `"next":null`},
		{"", 100, FanoutFilter{Limit: 101}, 100, `"next":null`},
		{"", 101, FanoutFilter{Limit: 101}, 100, `"next":100`},
		{"?limit=1", 2, FanoutFilter{Limit: 2}, 1, `"next":1`},
		{"?limit=2", 2, FanoutFilter{Limit: 3}, 2, `"next":null`},
		{"?limit=500&after=9223372036854775807", 150, FanoutFilter{Limit: 501, After: 9223372036854775807}, 150, `"next":null`},
		{"?state=parked&pool=a%26b+c&after=7&limit=3", 4, FanoutFilter{State: "parked", Pool: "a&b c", After: 7, Limit: 4}, 3, `"next":3`},
		{"?state=pending", 1, FanoutFilter{State: "pending", Limit: 101}, 1, `"next":null`},
		{"?state=done", 1, FanoutFilter{State: "done", Limit: 101}, 1, `"next":null`},
		{"?state=rejected", 1, FanoutFilter{State: "rejected", Limit: 101}, 1, `"next":null`},
		{"?state=cancelled", 1, FanoutFilter{State: "cancelled", Limit: 101}, 1, `"next":null`},
	} {
		o := &operator{fanouts: fanouts{held: held[:c.have]}}
		rec := ask(t, New(Options{}, healthy(), o, metricsStub), "GET /fanout"+c.query)
		require.Equal(t, 200, rec.Code, rec.Body)
		require.Equal(t, "application/json", rec.Header().Get("Content-Type"))
		require.Equal(t, c.want, o.filter, c.query)
		require.Equal(t, c.shown, strings.Count(rec.Body.String(), `"seq":`), c.query)
		require.Contains(t, rec.Body.String(), c.next, c.query)
	}
}

func TestFanoutParameters(t *testing.T) {
	h := New(Options{}, healthy(), new(operator), metricsStub)
	for query, say := range map[string]string{
		"state=PARKED": "parameter state is one of pending, done, parked, rejected, cancelled", "state=held": "parameter state",
		"state=": "parameter state is empty", "state=parked&state=done": "parameter state is given 2 times",
		"state=" + strings.Repeat("x", 5000): "…",
		"pool=":                              "parameter pool is empty",
		"after=0":                            "parameter after", "after=-1": "parameter after", "after=9223372036854775808": "parameter after",
		"after=now": "parameter after", "limit=0": "parameter limit", "limit=501": "parameter limit", "limit=x": "parameter limit",
		"before=1": `\"before\"`,
	} {
		rec := ask(t, h, "GET /fanout?"+query)
		require.Equal(t, "bad_request", requireProblem(t, rec, 400), query)
		require.Contains(t, rec.Body.String(), say, query)
		require.Less(t, rec.Body.Len(), 1000)
	}
	for _, line := range []string{"GET /fanout/a?pool=users", "POST /fanout/a/deliveries/b/retry?force=true", "POST /fanout/a/deliveries/b/skip?pool=users"} {
		require.Equal(t, "bad_request", requireProblem(t, ask(t, h, line), 400), line)
	}
}

func TestFanoutBody(t *testing.T) {
	require.JSONEq(t, `{"fanouts":[],"next":null}`,
		ask(t, New(Options{}, healthy(), new(operator), metricsStub), "GET /fanout").Body.String())

	status, next := 500, time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC)
	o := &operator{fanouts: fanouts{held: []Fanout{{
		Seq: 7, ID: "ID", State: "pending", Created: next.Add(-time.Second), Route: "register", Pool: "users",
		Method: "POST", Path: "/register", RequestID: "r", Deliveries: []Delivery{
			{Backend: "a", Address: "a:1", State: "done", Attempts: 1},
			{Backend: "b", State: "parked", Reason: "diverged", Attempts: 2, LastStatus: &status, Error: "<script>", NextAttempt: &next},
		}}}}}
	rec := ask(t, New(Options{}, healthy(), o, metricsStub), "GET /fanout")
	require.NotContains(t, rec.Body.String(), "<script>")
	require.JSONEq(t, `{"fanouts":[{"seq":7,"id":"ID","state":"pending","created":"2026-01-02T03:04:05Z","route":"register","pool":"users",
		"method":"POST","path":"/register","request_id":"r","deliveries":[
		{"backend":"a","address":"a:1","state":"done","reason":"","attempts":1,"last_status":null,"error":"","next_attempt":null},
		{"backend":"b","address":"","state":"parked","reason":"diverged","attempts":2,"last_status":500,"error":"<script>",
		 "next_attempt":"2026-01-02T03:04:06Z"}]}],"next":null}`, rec.Body.String())

	rec = ask(t, New(Options{}, healthy(), o, metricsStub), "GET /fanout/ID")
	require.Equal(t, 200, rec.Code)
	require.Contains(t, rec.Body.String(), `"id":"ID"`)
	require.Contains(t, rec.Body.String(), `"deliveries":[]`)
}

func TestDeliveryChanges(t *testing.T) {
	for path, want := range map[string]string{
		"/fanout/ID/deliveries/server1/retry":                  `retry "ID" "server1"`,
		"/fanout/ID/deliveries/server1/skip":                   `skip "ID" "server1"`,
		"/fanout/ID/deliveries/10.0.0.1:8080/skip":             `skip "ID" "10.0.0.1:8080"`,
		"/fanout/a%20b%3f/deliveries/%5Bfd00::1%5D%3A80/retry": `retry "a b?" "[fd00::1]:80"`,
		"/fanout/deliveries/deliveries/deliveries/skip":        `skip "deliveries" "deliveries"`,
		"/fanout/{id}/deliveries/{backend}/retry":              `retry "{id}" "{backend}"`,
		"/fanout/%252F/deliveries/%252e/retry":                 `retry "%2F" "%2e"`,
	} {
		o := new(operator)
		rec := askFrom(t, New(Options{}, healthy(), o, metricsStub), peerAddress, "POST "+path, "X-LB-Operator: alice")
		require.Equal(t, 200, rec.Code, "%s: %s", path, rec.Body)
		require.Equal(t, []string{want + ` by "alice (203.0.113.7)"`}, o.asked)
		require.Contains(t, rec.Body.String(), `"id":`)
	}
	for _, fields := range [][]string{{"X-LB-Operator: zoë"}, {"Content-Length: 2", "", "{}"}} {
		o := new(operator)
		rec := ask(t, New(Options{}, healthy(), o, metricsStub), "POST /fanout/ID/deliveries/server1/retry",
			append([]string{"Host: localhost"}, fields...)...)
		require.Equal(t, "bad_request", requireProblem(t, rec, 400))
		require.Empty(t, o.asked)
	}
}

func TestErrorsOfFanouts(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
		code   string
		say    string
	}{
		{&outcome.Error{Code: outcome.FanoutNotFound, Detail: `no fan-out has the id "a"`}, 404, "fanout_not_found", "no fan-out has"},
		{&outcome.Error{Code: outcome.DeliverySettled, Detail: "it is done"}, 409, "delivery_settled", "it is done"},
		{&outcome.Error{Code: outcome.StorageUnavailable, Detail: "nothing has changed", Err: errors.New("canary-cause")}, 503, "storage_unavailable", "nothing has"},
		{errors.New("canary-cause"), 500, "internal_error", "log"},
	} {
		var logged string
		h := New(Options{Logger: func(msg string, kv ...any) { logged += fmt.Sprintln(msg, kv) }},
			healthy(), &operator{fanouts: fanouts{failure: c.err}}, metricsStub)
		for _, line := range []string{"GET /fanout", "GET /fanout/a", "POST /fanout/a/deliveries/b/retry", "POST /fanout/a/deliveries/b/skip"} {
			logged = ""
			rec := ask(t, h, line)
			require.Equal(t, c.code, requireProblem(t, rec, c.status), line)
			require.Contains(t, rec.Body.String(), c.say)
			require.NotContains(t, rec.Body.String(), "canary-cause")
			require.Equal(t, c.status >= 500, strings.Contains(logged, "canary-cause"), logged)
			require.Equal(t, 1, strings.Count(logged, "\n"), "one line a request: %s", logged)
		}
	}
}
