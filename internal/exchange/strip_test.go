package exchange

import (
	"testing"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/outcome"
)

// What a route that strips sends on is the client's path, byte for byte, but
// for the segments of the prefix.
func TestStrip(t *testing.T) {
	for _, test := range []struct {
		strip, target string
		want          string // the raw path; "" for 400
	}{
		{"", "/app/x", "/app/x"},
		{"/", "/app/x", "/app/x"},
		{"/app", "/app/x", "/x"},
		{"/app", "/app/x/", "/x/"},
		{"/app", "/app", "/"},
		{"/app", "/app/", "/"},
		{"/app", "/app?q", "/"},
		{"/app/", "/app/x", "/x"},
		{"/app/sum", "/app/sum/x", "/x"},
		{"/app/sum", "/app/sum", "/"},
		{"/app", "/app/app/x", "/app/x"},
		{"/app", "http://h/app/x?y", "/x"},
		{"/app", "http://h/app", "/"},

		// Escapes: the client's stay, and those in the prefix count as one segment.
		{"/app", "/%61pp/x", "/x"},
		{"/app", "/%61%70%70", "/"},
		{"/app/a b", "/app/a%20b/c%20d", "/c%20d"},
		{"/app/a%2Fb", "/app/a%2fb/c", "/c"},
		{"/app", "/app/%2Fx", "/%2Fx"},
		{"/app", `/app/a"b|c%2Fd`, `/a"b|c%2Fd`},
		{"/app", "/app/%e4%f6", "/%e4%f6"},

		// Two slashes at the front leave only if net/url would change nothing.
		{"/app", "/app//x", "//x"},
		{"/app", "/app///", "///"},
		{"/app", "/app//a%20b", "//a%20b"},
		{"/app", `/app//a"b`, ""},
		{"/app", "/app//a|b", ""},
		{"/app", `/app/x//a"b`, `/x//a"b`},
	} {
		w := newWorld(t, options{backends: 1})
		w.app().Strip = test.strip
		x, action := w.begin(ask("GET " + test.target))
		if test.want == "" {
			require.Equal(t, Refuse, action, test.target)
			require.Equal(t, outcome.BadRequest, x.Failure.Code)
			require.Contains(t, x.Failure.Detail, "begins with //")
			continue
		}
		require.Equal(t, Proxy, action, test.target)
		require.Equal(t, test.want, x.Upstream, "%s without %s", test.target, test.strip)
		require.Contains(t, test.target, x.Target.RawPath, "the log has what the client sent")
	}
}

func TestForwardedPrefix(t *testing.T) {
	for _, test := range []struct {
		strip string
		peer  string
		prior []string
		want  string
	}{
		{strip: "/app", want: "/app"},
		{strip: "/app/", want: "/app"},
		{strip: "", want: ""},
		{strip: "/", want: ""},
		{strip: "/app", prior: []string{"X-Forwarded-Prefix", "/evil"}, want: "/app"},
		{strip: "/app", peer: "10.1.2.3", want: "/app"},
		{strip: "/app", peer: "10.1.2.3", prior: []string{"X-Forwarded-Prefix", "/outer"}, want: "/outer/app"},
		{strip: "/app", peer: "10.1.2.3", prior: []string{"X-Forwarded-Prefix", "/outer/"}, want: "/outer/app"},
		{strip: "", peer: "10.1.2.3", prior: []string{"X-Forwarded-Prefix", "/outer"}, want: ""},
		{
			strip: "/app", peer: "10.1.2.3", want: "/app",
			prior: []string{"X-Forwarded-Prefix", "/outer", "Connection", "x-forwarded-prefix"},
		},
	} {
		w := newWorld(t, options{backends: 1})
		w.app().Strip = test.strip
		r := ask("GET /app/x", test.prior...)
		if test.peer != "" {
			r.peer = insider
		}
		x, _ := w.begin(r)
		require.Equal(t, test.want, x.Prefix, "%+v", test)
	}
}

func TestProceduresThatNobodyServes(t *testing.T) {
	w := newWorld(t, options{backends: 2})
	w.app().Procedure, w.app().Strip = true, "/app"
	refused := func(target string) outcome.Code {
		x, action := w.begin(ask("GET " + target))
		defer w.Finish(x)
		if action == Proxy && w.Next(x, outcome.Outcome{}) == Try {
			return ""
		}
		require.Equal(t, outcome.Refused, x.Outcome.Class)
		return x.Failure.Code
	}
	require.Empty(t, refused("/app"))
	w.pool.SetPresence(w.backends[0], backend.Expired, "silent")
	require.Empty(t, refused("/app"))
	w.pool.SetHealth(w.backends[1], backend.HealthDown, "its checks fail")
	require.Equal(t, outcome.NoBackend, refused("/app"), "who is ill is there")
	w.pool.SetPresence(w.backends[1], backend.Leaving, "unregistered")
	require.Equal(t, outcome.NoSuchProcedure, refused("/app"))
	require.Equal(t, outcome.NoSuchProcedure, refused(`/app//a"b`), "before anything else")
	require.Equal(t, map[outcome.Code]int{outcome.NoBackend: 1, outcome.NoSuchProcedure: 2}, w.refused())

	w.app().Procedure = false
	require.Equal(t, outcome.NoBackend, refused("/app"), "a pool of the configuration has no backend")
	w.app().Procedure = true
	w.pool.SetPresence(w.backends[0], backend.Present, "heard of again")
	require.Empty(t, refused("/app"))
}
