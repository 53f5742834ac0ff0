package front

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"lb/internal/backend"
	"lb/internal/balance"
	"lb/internal/exchange"
	"lb/internal/metrics"
	"lb/internal/outcome"
	"lb/internal/pool"
	"lb/internal/proxy"
	"lb/internal/route"
	"lb/internal/transport"
)

// errorField is spelled as it stands on the wire, which is not Go's own way.
var errorField = "X-LB-Error"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a front before one backend, with what its requests came to.
type world struct {
	http.Handler
	front      *Front
	pool       *pool.Pool
	backend    *backend.Backend
	transports *transport.Set
	route      *exchange.Route
	listener   *exchange.Listener

	mu       sync.Mutex
	finished []record
	counts   map[outcome.Class]int // how attempts at the backend ended
}

// record is what the access log would have said.
type record struct {
	status    int
	class     outcome.Class
	code      outcome.Code
	in, out   int64
	requestID string
}

func (w *world) Count(class int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[outcome.Class(class)]++
}

// newWorld serves /own by itself and the rest through a backend that runs h.
func newWorld(t testing.TB, h http.HandlerFunc) *world {
	t.Helper()
	return newLimitedWorld(t, h, 0, pool.Limits{}, 200*time.Millisecond)
}

// newLimitedWorld is newWorld with so many slots, and another timeout of the route.
func newLimitedWorld(t testing.TB, h http.HandlerFunc, slots int, limits pool.Limits, timeout time.Duration) *world {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	w := &world{counts: make(map[outcome.Class]int)}
	b := &backend.Backend{Pool: "p", ID: "a", Address: s.Listener.Addr().String(), Outcomes: w}
	b.SetLimit(slots)
	factory, err := balance.New(balance.Spec{Name: "roundrobin"})
	require.NoError(t, err)
	p := pool.New(pool.Options{Name: "p", Policy: factory, Budget: pool.NewBudget(0, 0), Backends: []*backend.Backend{b}, Limits: limits})
	t.Cleanup(p.Close)
	set := new(transport.Set)
	set.Add(b, transport.New(b, transport.Settings{Connect: time.Second, ResponseHeader: time.Minute, Idle: time.Minute, MaxIdle: 1}))
	t.Cleanup(set.Close)

	m := metrics.New("test", "")
	snapshot := &exchange.Snapshot{
		Table: route.Compile([]route.Rule{{Path: "/own"}, {PathPrefix: "/"}}), Unrouted: m.Route("", ""),
		Routes: []exchange.Route{
			{Name: "own", Action: exchange.Respond, Status: http.StatusOK, Body: "mine", Instruments: m.Route("own", "")},
			{
				Name: "all", Action: exchange.Proxy, Pool: p, Timeout: timeout,
				Instruments: m.Route("all", "p"), Retries: m.Retries("p", exchange.RetryOutcomes),
			},
		},
	}
	decider := exchange.NewDecider(snapshot, func(x *exchange.Exchange) {
		r := record{x.Status, x.Outcome.Class, "", x.BytesIn, x.BytesOut, x.Forward.RequestID}
		if x.Failure != nil {
			r.code = x.Failure.Code
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.finished = append(w.finished, r)
	})
	w.pool, w.backend, w.transports, w.route = p, b, set, &snapshot.Routes[1]
	w.front = &Front{Decider: decider, Proxy: proxy.New(decider, set, nil)}
	w.listener = &exchange.Listener{Name: "public", MaxFields: 10, Scheme: "http"}
	w.Handler = w.front.Handler(w.listener, time.Minute)
	return w
}

// serve runs one request, whose handler may break off, and returns its record.
func (w *world) serve(t testing.TB, to http.ResponseWriter, r *http.Request) record {
	t.Helper()
	func() {
		defer func() {
			if broken := recover(); broken != nil && !errors.Is(broken.(error), http.ErrAbortHandler) {
				panic(broken)
			}
		}()
		w.ServeHTTP(to, r)
	}()
	require.Zero(t, w.front.Busy())
	require.NotEmpty(t, w.finished)
	return w.finished[len(w.finished)-1]
}

func ask(line string, body io.Reader) *http.Request {
	r := httptest.NewRequest(line, "/x", body)
	r.RequestURI = "/x"
	return r
}

// gone is a client that has left: nothing reaches it.
type gone struct{ http.ResponseWriter }

func (gone) Write([]byte) (int, error) { return 0, errors.New("connection reset by peer") }

// Whatever happens to the answer, the backend's outcome is the backend's.
func TestOutcomesOfBackendAndClientAreTwoThings(t *testing.T) {
	for name, c := range map[string]struct {
		backend http.HandlerFunc
		counted outcome.Class
		code    outcome.Code
		status  int
	}{
		"reset":   {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, outcome.Reset, outcome.BackendReset, 502},
		"timeout": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, outcome.Timeout, outcome.BackendTimeout, 504},
		"failure": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500); _, _ = io.WriteString(w, "no") }, outcome.Failure, "", 500},
		"success": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }, outcome.Success, "", 200},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, c.backend)
			got := w.serve(t, httptest.NewRecorder(), ask(http.MethodGet, nil))
			require.NotEqual(t, outcome.ClientGone, got.class)
			require.Equal(t, map[outcome.Class]int{c.counted: 1}, w.counts)

			got = w.serve(t, gone{httptest.NewRecorder()}, ask(http.MethodGet, nil))
			require.Equal(t, outcome.ClientGone, got.class)
			require.Equal(t, c.status, got.status)
			require.Equal(t, c.code, got.code)
			require.Equal(t, map[outcome.Class]int{c.counted: 2}, w.counts, "the client left later")
		})
	}
}

// A response that breaks off is the backend's doing, and the client must see it.
func TestCutResponses(t *testing.T) {
	w := newWorld(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "10")
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	r := ask(http.MethodGet, nil)
	r = r.WithContext(contextOfServer(r.Context()))
	got := w.serve(t, httptest.NewRecorder(), r)
	require.Equal(t, record{200, outcome.Cut, "", 0, 4, got.requestID}, got)
	require.Equal(t, map[outcome.Class]int{outcome.Cut: 1}, w.counts)
}

func TestOwnAnswers(t *testing.T) {
	w := newWorld(t, nil)
	for _, c := range []struct {
		method, target, body string
		status               int
		code                 outcome.Code
	}{
		{"GET", "/own", "mine", 200, ""},
		{"HEAD", "/own", "mine", 200, ""}, // httptest keeps what net/http would not send
		{"TRACE", "/own", "", 405, outcome.MethodNotAllowed},
		{"GET", "/a/..", "", 400, outcome.BadRequest},
		{"GET", "/.lb/fanout", "", 404, outcome.NoRoute},
		{"POST", "/.lb/fanout/x", "", 405, outcome.MethodNotAllowed},
	} {
		rec := httptest.NewRecorder()
		r := httptest.NewRequest(c.method, "/", nil)
		r.RequestURI = c.target
		got := w.serve(t, rec, r)
		require.Equal(t, c.status, rec.Code, c.target)
		require.Equal(t, c.status, got.status)
		require.Equal(t, c.code, got.code)
		require.Equal(t, []string{got.requestID}, rec.Header()["X-Request-Id"])
		if c.code == "" {
			require.Equal(t, c.body, rec.Body.String())
			require.Equal(t, c.method == http.MethodHead, got.out == 0)
		} else {
			require.Equal(t, []string{string(c.code)}, rec.Header()[errorField])
			require.Equal(t, int64(rec.Body.Len()), got.out)
		}
		require.Equal(t, c.status == http.StatusMethodNotAllowed, rec.Header().Get("Allow") != "")
	}
	require.Empty(t, w.counts)
}

// The next request finds nothing of the last in the record that both use.
func TestRecordsAreUsedAgain(t *testing.T) {
	w := newWorld(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	first := w.serve(t, httptest.NewRecorder(), ask(http.MethodGet, nil))
	require.Equal(t, record{200, outcome.Success, "", 0, 0, first.requestID}, first)
	refused := httptest.NewRequest(http.MethodGet, "/", nil)
	refused.RequestURI = "/a/.."
	require.Equal(t, outcome.BadRequest, w.serve(t, httptest.NewRecorder(), refused).code)
	last := w.serve(t, httptest.NewRecorder(), ask(http.MethodGet, nil))
	require.Equal(t, record{200, outcome.Success, "", 0, 0, last.requestID}, last)
	require.NotEqual(t, first.requestID, last.requestID)
}
