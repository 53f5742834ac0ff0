package exchange

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/outcome"
)

// play drives an exchange by a script such as "a; reset b; 503 pass": the
// backend of the first try, then how each attempt ended and what follows: the
// next backend ("?" for any that was not tried), pass, or the code of a failure.
func (w *world) play(t *testing.T, x *Exchange, script string) {
	t.Helper()
	var o outcome.Outcome
	tried := make(map[*backend.Backend]bool)
	for i, step := range strings.Split(script, ";") {
		words := strings.Fields(step)
		if i > 0 {
			if status, err := strconv.Atoi(words[0]); err == nil {
				o = outcome.FromStatus(status)
			} else {
				c := slices.Index(outcome.Names[:], words[0])
				require.Positive(t, c, words[0])
				o = class(outcome.Class(c))
			}
			words = words[1:]
		}
		kind, where := w.Next(x, o), "%s: after step %d"
		switch want := words[0]; {
		case want == "pass":
			require.Equal(t, Pass, kind, where, script, i)
		case len(want) == 1:
			require.Equal(t, Try, kind, where, script, i)
			require.False(t, tried[x.Backend], where, script, i)
			tried[x.Backend] = true
			if want != "?" {
				require.Equal(t, want, x.Backend.ID, where, script, i)
			}
		default:
			require.Equal(t, Fail, kind, where, script, i)
			require.EqualValues(t, want, x.Failure.Code, where, script, i)
			require.NotEmpty(t, x.Failure.Detail)
		}
		if i > 0 {
			require.Equal(t, o, x.Outcome, where, script, i)
		}
		if kind == Try || kind == Pass {
			require.EqualValues(t, 1, w.inFlight(), "one lease at a time; "+where, script, i)
			require.EqualValues(t, 1, x.Backend.InFlight(), where, script, i)
		} else {
			require.LessOrEqual(t, w.inFlight(), int64(1), where, script, i)
		}
	}
}

func TestNext(t *testing.T) {
	usual := RetryPolicy{Attempts: 1, Reset: true, Statuses: map[int]bool{502: true, 503: true, 504: true}}
	with := func(change func(*RetryPolicy)) RetryPolicy {
		p := usual
		change(&p)
		return p
	}
	attempts := func(n int) RetryPolicy { return with(func(p *RetryPolicy) { p.Attempts = n }) }
	keyed := with(func(p *RetryPolicy) { p.Keyed = true })
	key := []string{"Idempotency-Key", "k"}

	for _, test := range []struct {
		name     string
		backends int // 3 if 0
		retry    RetryPolicy
		poor     bool // no retry budget
		line     string
		fields   []string
		change   func(*Exchange)
		script   string
		retries  string // lb_retries_total
	}{
		{name: "goes well", retry: usual, line: "GET /app", script: "a; 200 pass"},
		{name: "nobody is there", backends: -1, retry: usual, line: "GET /app", script: "no_backend"},

		// A dial that failed sent nothing.
		{
			name: "refused: the next", retry: usual, line: "GET /app",
			script: "a; unsent ?; 200 pass", retries: "redispatched=1",
		},
		{
			name: "refused: each of the others, whatever the method, attempts and budget", retry: attempts(0), poor: true, line: "POST /app",
			change: func(x *Exchange) { x.Replayable = false },
			script: "a; unsent ?; unsent ?; 201 pass", retries: "redispatched=2",
		},
		{
			name: "refused by all", retry: usual, line: "POST /app",
			script: "a; unsent ?; unsent ?; unsent no_backend", retries: "redispatched=2 no_backend=1",
		},
		{name: "refused by the only one", backends: 1, retry: usual, line: "GET /app", script: "a; unsent no_backend", retries: "no_backend=1"},
		{
			name: "refused by a dozen", backends: 12, retry: usual, line: "POST /app",
			script: "a; unsent ?; unsent ?; unsent ?; unsent ?; unsent ?; unsent ?; unsent ?; unsent ?; unsent ?; unsent ?; unsent ?; unsent no_backend",
		},
		{
			name: "out of descriptors: the next, and nobody is ejected", retry: usual, line: "POST /app",
			script: "a; starved b; starved c; starved no_backend", retries: "redispatched=2 no_backend=1",
		},

		// Other retries: which outcomes.
		{name: "reset", retry: usual, line: "GET /app", script: "a; reset b; 200 pass", retries: "retried=1"},
		{name: "a status of the list", retry: usual, line: "GET /app", script: "a; 503 b; 200 pass", retries: "retried=1"},
		{name: "a status that is not in the list", retry: usual, line: "GET /app", script: "a; 500 pass"},
		{name: "a status below 500", retry: usual, line: "GET /app", script: "a; 404 pass"},
		{
			name: "a status below 500 in the list", line: "GET /app", script: "a; 429 b; 200 pass",
			retry: with(func(p *RetryPolicy) { p.Statuses = map[int]bool{429: true} }),
		},
		{name: "no head in time", retry: usual, line: "GET /app", script: "a; timeout b; 200 pass", retries: "retried=1"},
		{
			name: "no head in time, and 504 is not in the list", line: "GET /app", script: "a; timeout backend_timeout",
			retry: with(func(p *RetryPolicy) { p.Statuses = nil }),
		},
		{
			name: "reset, and it is not in the list", line: "GET /app", script: "a; reset backend_reset",
			retry: with(func(p *RetryPolicy) { p.Reset = false }),
		},
		{name: "nonsense", retry: usual, line: "GET /app", script: "a; invalid backend_invalid"},
		{name: "the backend was taken away", retry: usual, line: "GET /app", script: "a; withdrawn canceled"},
		{name: "the client left", retry: usual, line: "GET /app", script: "a; client_gone client_closed"},
		{name: "the client's body broke off", retry: usual, line: "PUT /app", script: "a; client_fault bad_request"},

		// How often, and where.
		{name: "no attempts", retry: attempts(0), line: "GET /app", script: "a; reset backend_reset"},
		{name: "one attempt", retry: usual, line: "GET /app", script: "a; reset b; reset backend_reset", retries: "retried=1"},
		{name: "the last answer stands", retry: usual, line: "GET /app", script: "a; 503 b; 502 pass"},
		{name: "two attempts", retry: attempts(2), line: "GET /app", script: "a; reset b; 503 c; 200 pass", retries: "retried=2"},
		{
			name: "only on another backend", retry: attempts(9), line: "GET /app",
			script: "a; reset b; timeout c; reset backend_reset", retries: "retried=2 no_backend=1",
		},
		{name: "an answer stands when no other is left", backends: 1, retry: usual, line: "GET /app", script: "a; 503 pass", retries: "no_backend=1"},
		{
			name: "a refused dial is no attempt", retry: usual, line: "GET /app",
			script: "a; unsent ?; 503 ?; 200 pass", retries: "redispatched=1 retried=1",
		},
		{
			name: "nor is one after a retry", retry: usual, line: "GET /app",
			script: "a; 503 b; unsent ?; 200 pass", retries: "redispatched=1 retried=1",
		},

		// Which requests.
		{name: "HEAD", retry: usual, line: "HEAD /app", script: "a; reset b; 200 pass"},
		{name: "OPTIONS", retry: usual, line: "OPTIONS /app", script: "a; reset b; 200 pass"},
		{name: "PUT", retry: usual, line: "PUT /app", script: "a; reset b; 200 pass"},
		{name: "DELETE", retry: usual, line: "DELETE /app", script: "a; reset b; 200 pass"},
		{name: "PATCH", retry: usual, line: "PATCH /app", script: "a; reset backend_reset"},
		{name: "an unknown method", retry: usual, line: "BREW /app", script: "a; 503 pass"},
		{name: "plain POST, reset", retry: keyed, line: "POST /app", script: "a; reset backend_reset"},
		{name: "plain POST, status", retry: keyed, line: "POST /app", script: "a; 503 pass"},
		{name: "plain POST, timeout", retry: keyed, line: "POST /app", script: "a; timeout backend_timeout"},
		{name: "POST with a key", retry: keyed, line: "POST /app", fields: key, script: "a; reset b; 201 pass", retries: "retried=1"},
		{name: "POST with a key where keys do not count", retry: usual, line: "POST /app", fields: key, script: "a; reset backend_reset"},
		{
			name: "POST with a key that goes no further", retry: keyed, line: "POST /app",
			fields: append([]string{"Connection", "close, idempotency-key"}, key...), script: "a; reset backend_reset",
		},

		// What forbids it.
		{
			name: "a byte of an answer went down", retry: usual, line: "GET /app",
			change: func(x *Exchange) { x.HeadSent.Store(true) }, script: "a; reset backend_reset",
		},
		{
			name: "the body is lost", retry: usual, line: "PUT /app",
			change: func(x *Exchange) { x.Replayable = false }, script: "a; 503 pass",
		},
		{name: "the budget is empty", retry: usual, poor: true, line: "GET /app", script: "a; reset backend_reset", retries: "no_budget=1"},
		{name: "the budget is empty and there is an answer", retry: usual, poor: true, line: "GET /app", script: "a; 503 pass", retries: "no_budget=1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := options{backends: 3, perSecond: 10, retry: test.retry}
			if test.backends != 0 {
				o.backends = max(0, test.backends)
			}
			if test.poor {
				o.perSecond = 0
			}
			w := newWorld(t, o)
			x, action := w.begin(ask(test.line, test.fields...))
			require.Equal(t, Proxy, action)
			if test.change != nil {
				test.change(x)
			}
			w.play(t, x, test.script)
			w.Finish(x)

			require.Zero(t, w.inFlight(), "every lease has ended")
			steps := strings.Split(test.script, ";")
			require.Equal(t, len(steps)-1, x.Attempts)
			ended := 0
			for _, n := range w.counts {
				ended += n
			}
			require.Equal(t, x.Attempts, ended, "each attempt is counted at its backend")
			if test.retries != "" {
				want := make(map[string]int)
				for _, count := range strings.Fields(test.retries) {
					name, n, _ := strings.Cut(count, "=")
					want[name], _ = strconv.Atoi(n)
				}
				require.Equal(t, want, x.retriesTotal())
			}
			out := len(w.backends) - len(w.pool.Members().Eligible)
			require.Equal(t, strings.Count(test.script, "unsent "), out, "those and only those that refused are ejected")
		})
	}
}

func TestNextPutsBackInTheBackendThatAnswers(t *testing.T) {
	w := newWorld(t, options{backends: 2})
	first, _ := w.begin(ask("GET /app"))
	w.play(t, first, "a; unsent b; 200 pass")
	w.Finish(first)
	require.Equal(t, []*backend.Backend{w.backends[1]}, w.pool.Members().Eligible)

	second, _ := w.begin(ask("GET /app"))
	w.play(t, second, "b; unsent a; 500 pass") // a serves as the last resort, and any answer will do
	w.Finish(second)
	require.Equal(t, []*backend.Backend{w.backends[0]}, w.pool.Members().Eligible)
}

// An answer, though a bad one, is better than a dial that failed a moment ago.
func TestAnAnswerIsNotGivenUpForABackendThatIsKeptAway(t *testing.T) {
	w := newWorld(t, options{backends: 2, perSecond: 3, retry: RetryPolicy{Attempts: 1, Reset: true, Statuses: map[int]bool{503: true}}})
	ejects, _ := w.begin(ask("GET /app"))
	w.play(t, ejects, "a; unsent b; 200 pass")
	w.Finish(ejects)
	for _, script := range []string{"b; 503 pass", "b; reset a; unsent no_backend"} {
		x, _ := w.begin(ask("GET /app"))
		w.play(t, x, script)
		w.Finish(x)
	}
}

func TestNoBackendSaysWhenToComeBack(t *testing.T) {
	w := newWorld(t, options{backends: 2})
	x, _ := w.begin(ask("GET /app"))
	w.play(t, x, "a; unsent ?; unsent no_backend")
	require.InDelta(t, 1, x.Failure.RetryAfter.Seconds(), 0.5, "when the first of them may be tried again")
	w.Finish(x)
}

func TestRetriesMoveNoCursor(t *testing.T) {
	w := newWorld(t, options{backends: 3, perSecond: 100, retry: RetryPolicy{Attempts: 1, Reset: true}})
	for _, script := range []string{"a; reset b; 200 pass", "b; reset c; 200 pass", "c; reset a; 200 pass", "a; 200 pass"} {
		x, _ := w.begin(ask("GET /app"))
		w.play(t, x, script)
		w.Finish(x)
	}
}

func TestATokenIsNotSpentOnAWish(t *testing.T) {
	w := newWorld(t, options{backends: 1, perSecond: 1, retry: RetryPolicy{Attempts: 1, Reset: true}})
	x, _ := w.begin(ask("GET /app"))
	w.play(t, x, "a; reset backend_reset")
	w.Finish(x)
	require.True(t, w.pool.Budget.Withdraw(), "the one token is still there")
}

func TestMayRetry(t *testing.T) {
	for _, test := range []struct {
		line   string
		retry  RetryPolicy
		fields []string
		want   bool
	}{
		{"GET /app", RetryPolicy{Attempts: 1}, nil, true},
		{"GET /app", RetryPolicy{}, nil, false},
		{"POST /app", RetryPolicy{Attempts: 1, Keyed: true}, nil, false},
		{"POST /app", RetryPolicy{Attempts: 1, Keyed: true}, []string{"Idempotency-Key", "k"}, true},
	} {
		w := newWorld(t, options{backends: 1, retry: test.retry})
		x, _ := w.begin(ask(test.line, test.fields...))
		require.Equal(t, test.want, x.MayRetry(), "%+v", test)
	}
}
