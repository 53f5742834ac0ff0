package exchange

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"lb/internal/backend"
	"lb/internal/balance"
	"lb/internal/metrics"
	"lb/internal/outcome"
	"lb/internal/pool"
	"lb/internal/route"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// request is a View of plain values.
type request struct {
	method, target, host string
	fields               map[string]string
	lines                int
	peer                 netip.Addr
}

func (r *request) Method() string   { return r.method }
func (r *request) Target() string   { return r.target }
func (r *request) Host() string     { return r.host }
func (r *request) Fields() int      { return r.lines }
func (r *request) Peer() netip.Addr { return r.peer }

func (r *request) Lookup(field string) string {
	for name := range strings.SplitSeq(r.fields["Connection"], ",") {
		if strings.EqualFold(strings.TrimSpace(name), field) {
			return ""
		}
	}
	return r.fields[field]
}

var (
	stranger = netip.MustParseAddr("203.0.113.9")
	insider  = netip.MustParseAddr("10.1.2.3")
)

// ask returns a request for "METHOD target" to the host h.
func ask(line string, fields ...string) *request {
	method, target, _ := strings.Cut(line, " ")
	r := &request{method: method, target: target, host: "h", fields: make(map[string]string), peer: stranger}
	for i := 0; i < len(fields); i += 2 {
		r.fields[fields[i]] = fields[i+1]
	}
	r.lines = len(r.fields)
	return r
}

// world is a decider over one pool, with what its requests came to.
type world struct {
	*Decider
	backends []*backend.Backend
	pool     *pool.Pool
	listener *Listener
	metrics  *metrics.Registry
	finished []*Exchange
	counts   [16]int // outcomes of attempts at all backends, by class
}

func (w *world) Count(class int) { w.counts[class]++ }

// options shape a world.
type options struct {
	backends         int
	ratio, perSecond float64 // the retry budget
	retry            RetryPolicy
	slots            int // of each backend
	limits           pool.Limits
}

func newWorld(t testing.TB, o options) *world {
	t.Helper()
	w := &world{listener: &Listener{
		Name: "public", MaxFields: 10, Scheme: "http",
		Trusted: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")},
	}}
	for i := range o.backends {
		w.backends = append(w.backends, &backend.Backend{Pool: "p", ID: string(rune('a' + i)), Outcomes: w})
		w.backends[i].SetLimit(o.slots)
	}
	factory, err := balance.New(balance.Spec{Name: "roundrobin"})
	require.NoError(t, err)
	w.pool = pool.New(pool.Options{Name: "p", Policy: factory, Budget: pool.NewBudget(o.ratio, o.perSecond), Backends: w.backends, Limits: o.limits})
	t.Cleanup(w.pool.Close)

	m := metrics.New("test", "")
	w.metrics = m
	s := &Snapshot{Generation: 7, Unrouted: m.Route("", "")}
	var rules []route.Rule
	for _, r := range []struct {
		name   string
		action Action
		rule   route.Rule
	}{
		{"proxy", Proxy, route.Rule{PathPrefix: "/app"}},
		{"login", Proxy, route.Rule{Path: "/login", Methods: []string{"GET"}}},
		{"register", Fanout, route.Rule{PathPrefix: "/register", Methods: []string{"POST", "PUT"}}},
		{"metrics", Metrics, route.Rule{Path: "/metrics"}},
		{"teapot", Respond, route.Rule{Path: "/teapot"}},
		{"host", Respond, route.Rule{Hosts: []string{"only.example"}}},
		{"shadow", Respond, route.Rule{PathPrefix: "/.lb"}},
	} {
		rt := Route{Name: r.name, Action: r.action, Timeout: time.Minute, Instruments: m.Route(r.name, "p")}
		if r.action == Proxy || r.action == Fanout {
			rt.Pool, rt.Retry, rt.Retries = w.pool, o.retry, m.Retries("p", RetryOutcomes)
			rt.Refused, rt.QueueWait = m.Refused("p", RefusedCodes), m.QueueWait("p")
		}
		s.Routes = append(s.Routes, rt)
		rules = append(rules, r.rule)
	}
	s.Table = route.Compile(rules)
	w.Decider = NewDecider(s, func(x *Exchange) { w.finished = append(w.finished, x) })
	return w
}

// begin opens an exchange for r whose body, if any, can be sent again.
func (w *world) begin(r *request) (*Exchange, Action) {
	x := &Exchange{Listener: w.listener}
	action := w.Begin(x, r)
	x.Replayable = true
	return x, action
}

func (w *world) inFlight() (n int64) {
	for _, b := range w.backends {
		n += b.InFlight()
	}
	return n
}

// app is the route of what is sent to /app.
func (w *world) app() *Route { return &w.Snapshot().Routes[0] }

// refused returns the values of lb_refused_total by their codes.
func (w *world) refused() map[outcome.Code]int {
	totals := make(map[outcome.Code]int)
	for i, code := range RefusedCodes {
		if n := int(w.app().Refused[i].Value()); n > 0 {
			totals[outcome.Code(code)] = n
		}
	}
	return totals
}

// retries returns the values of lb_retries_total by their names.
func (x *Exchange) retriesTotal() map[string]int {
	totals := make(map[string]int)
	for i, name := range RetryOutcomes {
		if n := int(x.Route.Retries[i].Value()); n > 0 {
			totals[name] = n
		}
	}
	return totals
}

func class(c outcome.Class) outcome.Outcome { return outcome.Outcome{Class: c} }
