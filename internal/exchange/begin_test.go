package exchange

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"lb/internal/metrics"
	"lb/internal/outcome"
)

func TestBegin(t *testing.T) {
	w := newWorld(t, options{backends: 1})
	const manyFields = 11
	for _, test := range []struct {
		line, host string
		lines      int
		action     Action
		route      string
		code       outcome.Code
		allow      string
	}{
		{line: "GET /app", action: Proxy, route: "proxy"},
		{line: "BREW /app/x?y", action: Proxy, route: "proxy"},
		{line: "GET /login", action: Proxy, route: "login"},
		{line: "HEAD /login", action: Proxy, route: "login"},
		{line: "GET /%6cogin", action: Proxy, route: "login"},
		{line: "GET http://h/login", action: Proxy, route: "login"},
		{line: "POST /register", action: Fanout, route: "register"},
		{line: "GET /metrics", action: Metrics, route: "metrics"},
		{line: "GET /teapot", action: Respond, route: "teapot"},
		{line: "GET /", host: "Only.Example.:8080", action: Respond, route: "host"},

		{line: "GET /nowhere", action: Refuse, code: outcome.NoRoute},
		{line: "GET /loginx", action: Refuse, code: outcome.NoRoute},
		{line: "DELETE /login", action: Refuse, code: outcome.MethodNotAllowed, allow: "GET HEAD"},
		{line: "GET /register/x", action: Refuse, code: outcome.MethodNotAllowed, allow: "POST PUT"},
		{line: "CONNECT h:80", action: Refuse, code: outcome.MethodNotAllowed, allow: "DELETE GET HEAD OPTIONS PATCH POST PUT"},
		{line: "TRACE /app", action: Refuse, code: outcome.MethodNotAllowed, allow: "DELETE GET HEAD OPTIONS PATCH POST PUT"},
		{line: "TRACE /.lb/fanout/x", action: Refuse, code: outcome.MethodNotAllowed, allow: "DELETE GET HEAD OPTIONS PATCH POST PUT"},

		{line: "GET /app/../login", action: Refuse, code: outcome.BadRequest},
		{line: "GET /nowhere/%2e%2e", action: Refuse, code: outcome.BadRequest},
		{line: `GET /app\x`, action: Refuse, code: outcome.BadRequest},
		{line: "GET *", action: Refuse, code: outcome.BadRequest},
		{line: "GET /app#x", action: Refuse, code: outcome.BadRequest},
		{line: "GET /app", host: "a/b", action: Refuse, code: outcome.BadRequest},
		{line: "GET /app", host: "u@h", action: Refuse, code: outcome.BadRequest},

		// %2F is data for one backend, but not where it could pick the backends.
		{line: "GET /app/a%2Fb", action: Proxy, route: "proxy"},
		{line: "POST /register/a%2fb", action: Refuse, route: "register", code: outcome.BadRequest},
		{line: "POST /register/a%252fb", action: Fanout, route: "register"},

		{line: "GET /app", lines: manyFields - 1, action: Proxy, route: "proxy"},
		{line: "GET /app", lines: manyFields, action: Refuse, code: outcome.HeaderTooLarge},
		{line: "POST /register", lines: manyFields, action: Refuse, code: outcome.HeaderTooLarge},

		// The reserved prefix outranks the route that covers it.
		{line: "GET /.lb/fanout/x", action: Status},
		{line: "POST /.lb/", action: Status},
		{line: "GET /%2elb/x", action: Status},
		{line: "GET /.lb", action: Respond, route: "shadow"},
	} {
		r := ask(test.line)
		if test.host != "" {
			r.host = test.host
		}
		r.lines = test.lines
		x, action := w.begin(r)
		require.Equal(t, test.action, action, "%s %s", test.line, test.host)
		if test.route == "" {
			require.Nil(t, x.Route, test.line)
		} else {
			require.Equal(t, test.route, x.Route.Name, test.line)
		}
		require.Equal(t, test.allow, strings.Join(x.Allow, " "), test.line)
		require.NotEmpty(t, x.Forward.RequestID, "even a refusal has an id")
		require.EqualValues(t, 7, x.Snapshot.Generation)
		if test.code == "" {
			require.Nil(t, x.Failure, test.line)
		} else {
			require.Equal(t, test.code, x.Failure.Code, test.line)
			require.NotEmpty(t, x.Failure.Detail, test.line)
			require.Equal(t, outcome.Refused, x.Outcome.Class)
		}
		w.Finish(x)
		require.Zero(t, w.inFlight())
	}
}

func TestBeginPaysForRetriesOfProxiedRequestsOnly(t *testing.T) {
	w := newWorld(t, options{backends: 1, ratio: 0.5})
	for range 2 {
		for _, line := range []string{"POST /register", "GET /teapot", "GET /nowhere", "GET /metrics"} {
			w.begin(ask(line))
		}
	}
	require.False(t, w.pool.Budget.Withdraw())
	w.begin(ask("GET /app"))
	w.begin(ask("POST /app"))
	require.True(t, w.pool.Budget.Withdraw())
	require.False(t, w.pool.Budget.Withdraw())
}

func TestFinishTellsOnceAndCountsUnderTheRoute(t *testing.T) {
	w := newWorld(t, options{backends: 1})
	m := metrics.New("test", "")
	w.Snapshot().Unrouted = m.Route("", "")
	for i := range w.Snapshot().Routes {
		w.Snapshot().Routes[i].Instruments = m.Route(w.Snapshot().Routes[i].Name, "p")
	}
	for line, status := range map[string]int{"GET /app": 200, "GET /nowhere": 404, "POST /register/%2f": 400} {
		x, _ := w.begin(ask(line))
		x.Status = status
		w.Finish(x)
		require.Same(t, x, w.finished[len(w.finished)-1])
		require.Positive(t, x.Took)
	}
	require.Len(t, w.finished, 3)
	rec := httptest.NewRecorder()
	m.Handler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	for _, series := range []string{
		`lb_requests_total{code="200",pool="p",route="proxy"} 1`,
		`lb_requests_total{code="404",pool="",route=""} 1`,
		`lb_requests_total{code="400",pool="p",route="register"} 1`,
		`lb_request_duration_seconds_count{route="proxy"} 1`,
	} {
		require.Contains(t, rec.Body.String(), series+"\n")
	}
}

func TestResetLeavesNothingOfTheLastRequest(t *testing.T) {
	w := newWorld(t, options{backends: 12, perSecond: 3, retry: RetryPolicy{Attempts: 1, Reset: true}})
	x, _ := w.begin(ask("GET /app", "X-Forwarded-For", "10.9.9.9"))
	o := outcome.Outcome{}
	for range 11 {
		require.Equal(t, Try, w.Next(x, o))
		o = class(outcome.Unsent)
	}
	require.Equal(t, Try, w.Next(x, class(outcome.Reset)))
	x.HeadSent.Store(true)
	x.Status, x.BytesIn, x.BytesOut = 200, 1, 2
	x.Allow = []string{"GET"}
	w.Finish(x)
	x.Reset()
	require.Equal(t, &Exchange{Listener: w.listener}, x)
}

func TestARequestThatGoesWellAllocatesItsIDAndNothingElse(t *testing.T) {
	w := newWorld(t, options{backends: 3, ratio: 0.2, perSecond: 3, retry: RetryPolicy{Attempts: 1, Reset: true}})
	w.Decider.finished = func(*Exchange) {}
	x := &Exchange{Listener: w.listener}
	r := ask("GET /app/users/7?x=y", "Connection", "", "X-Forwarded-For", "198.51.100.7")
	serve := func() {
		if w.Begin(x, r) != Proxy {
			panic("not proxied")
		}
		x.Replayable = true
		if w.Next(x, outcome.Outcome{}) != Try || w.Next(x, outcome.FromStatus(200)) != Pass {
			panic("not passed")
		}
		x.Status = 200
		w.Finish(x)
		x.Reset()
	}
	serve() // the first of a status makes its series
	require.LessOrEqual(t, testing.AllocsPerRun(1000, serve), 1.0, "from a client")
	require.Zero(t, w.inFlight())
}

func BenchmarkARequestThatGoesWell(b *testing.B) {
	w := newWorld(b, options{backends: 3, ratio: 0.2, perSecond: 3})
	w.Decider.finished = func(*Exchange) {}
	x := &Exchange{Listener: w.listener}
	r := ask("GET /app/users/7?x=y")
	b.ReportAllocs()
	for b.Loop() {
		w.Begin(x, r)
		w.Next(x, outcome.Outcome{})
		w.Next(x, outcome.FromStatus(200))
		x.Status = 200
		w.Finish(x)
		x.Reset()
	}
}
