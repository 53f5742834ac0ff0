package metrics

import (
	"math"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lines returns the samples that the text format shows, by series.
func lines(t *testing.T, r *Registry) map[string]string {
	t.Helper()
	rec := httptest.NewRecorder()
	r.Handler().ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	require.Equal(t, http.StatusOK, rec.Code)
	out := map[string]string{}
	for l := range strings.Lines(rec.Body.String()) {
		if l = strings.TrimSpace(l); l == "" || l[0] == '#' {
			continue
		}
		at := strings.LastIndexByte(l, ' ')
		out[l[:at]] = l[at+1:]
	}
	return out
}

// full returns a registry in which every instrument has been used.
func full(t *testing.T) *Registry {
	t.Helper()
	r := newOn(prometheus.NewPedanticRegistry(), "1.2.3", "abc")
	r.Route("login", "users").Observe(200, 0.004)
	r.Route("login", "users").Observe(777, 70)
	r.Backend("users", "server1", []string{"ok", "reset"}).Count(1)
	r.Retries("users", []string{"ok", "failed"})[1].Inc()
	d := r.Delivery("users", "server1", "server1:8080", []string{"ok", "failed"})
	d.Attempt(0)
	d.Attempt(1)
	d.Failed()
	d.Succeeded()
	r.FanoutDuration("register").Observe(3600)
	s := r.FanoutSettled("users")
	s.Done()
	s.Done()
	s.Cancelled()
	s.Skipped()
	r.SetGeneration(7)
	r.SetBackends([]string{"up", "ejected"}, func() []BackendSample {
		return []BackendSample{{Pool: "users", Backend: "server1", State: "ejected", InFlight: 3, Limit: 4}}
	})
	r.Refused("users", []string{"queue_full", "queue_timeout"})[1].Inc()
	r.QueueWait("users").Observe(0.3)
	r.SetPools(func() []PoolSample {
		return []PoolSample{{Pool: "users", Queued: 6, Registered: -1}, {Pool: "workers", Registered: 2}}
	})
	r.FanoutDisagreements("users").Inc()
	r.SetFanout(func() []FanoutSample {
		return []FanoutSample{
			{Pool: "users", Pending: 5, Parked: 2, OldestPending: 90500 * time.Millisecond, OldestParked: time.Hour}, {Pool: "writes"},
		}
	})
	r.SetStorage(func() bool { return true })
	return r
}

func TestText(t *testing.T) {
	got := lines(t, full(t))
	for series, want := range map[string]string{
		`lb_requests_total{code="200",pool="users",route="login"}`:                  "1",
		`lb_requests_total{code="other",pool="users",route="login"}`:                "1",
		`lb_request_duration_seconds_count{route="login"}`:                          "2",
		`lb_request_duration_seconds_bucket{route="login",le="0.005"}`:              "1",
		`lb_request_duration_seconds_bucket{route="login",le="60"}`:                 "1",
		`lb_backend_requests_total{backend="server1",outcome="ok",pool="users"}`:    "0",
		`lb_backend_requests_total{backend="server1",outcome="reset",pool="users"}`: "1",
		`lb_retries_total{outcome="failed",pool="users"}`:                           "1",
		`lb_retries_total{outcome="ok",pool="users"}`:                               "0",
		`lb_refused_total{code="queue_full",pool="users"}`:                          "0",
		`lb_refused_total{code="queue_timeout",pool="users"}`:                       "1",
		`lb_queue_wait_seconds_bucket{pool="users",le="0.25"}`:                      "0",
		`lb_queue_wait_seconds_bucket{pool="users",le="0.5"}`:                       "1",
		`lb_queue_depth{pool="users"}`:                                              "6",
		`lb_queue_depth{pool="workers"}`:                                            "0",
		`lb_registrations{pool="workers"}`:                                          "2",
		`lb_backend_limit{backend="server1",pool="users"}`:                          "4",
		`lb_fanout_attempts_total{backend="server1",outcome="failed",pool="users"}`: "1",
		`lb_fanout_attempts_total{backend="server1",outcome="ok",pool="users"}`:     "1",
		`lb_fanout_duration_seconds_bucket{route="register",le="1800"}`:             "0",
		`lb_fanout_duration_seconds_bucket{route="register",le="3600"}`:             "1",
		`lb_fanout_settled_total{pool="users",state="done"}`:                        "2",
		`lb_fanout_settled_total{pool="users",state="cancelled"}`:                   "1",
		`lb_fanout_settled_total{pool="users",state="skipped"}`:                     "1",
		`lb_fanout_deliveries{pool="users",state="pending"}`:                        "5",
		`lb_fanout_deliveries{pool="users",state="parked"}`:                         "2",
		`lb_fanout_oldest_seconds{pool="users",state="pending"}`:                    "90.5",
		`lb_fanout_oldest_seconds{pool="users",state="parked"}`:                     "3600",
		`lb_fanout_oldest_seconds{pool="writes",state="pending"}`:                   "0",
		`lb_fanout_oldest_seconds{pool="writes",state="parked"}`:                    "0",
		`lb_fanout_disagreements_total{pool="users"}`:                               "1",
		`lb_storage_up`: "1",
		`lb_backend_in_flight{backend="server1",pool="users"}`:             "3",
		`lb_backend_state{backend="server1",pool="users",state="up"}`:      "0",
		`lb_backend_state{backend="server1",pool="users",state="ejected"}`: "1",
		`lb_config_generation`: "7",
		`target_domain_success_counter_total{domain="server1:8080"}`: "1",
		`target_domain_failed_counter_total{domain="server1:8080"}`:  "1",
		`Total_domains_success_counter_total`:                        "1",
		`Total_domains_failed_counter_total`:                         "1",
	} {
		require.Equal(t, want, got[series], series)
	}
	require.NotContains(t, got, `lb_registrations{pool="users"}`, "nobody may register there")
	require.Contains(t, got, "go_goroutines")
	require.Contains(t, got, "process_start_time_seconds")
	build := ""
	for s := range got {
		if strings.HasPrefix(s, "lb_build_info{") {
			build = s
		}
	}
	require.Contains(t, build, `version="1.2.3"`)
	require.Contains(t, build, `commit="abc"`)
	require.Contains(t, build, `go_version="go`)
	require.Equal(t, "1", got[build])
}

func TestNamesFollowTheConventions(t *testing.T) {
	families, err := full(t).reg.Gather() // pedantic: also checks every collector
	require.NoError(t, err)
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	require.NoError(t, err)
	// These four are spelled as existing dashboards need them.
	exempt := map[string]bool{
		"target_domain_success_counter_total": true, "target_domain_failed_counter_total": true,
		"Total_domains_success_counter_total": true, "Total_domains_failed_counter_total": true,
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "go_") || strings.HasPrefix(p.Metric, "process_") || exempt[p.Metric] {
			continue
		}
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	seen := 0
	for _, f := range families {
		require.NotEmpty(t, f.GetHelp(), f.GetName())
		if exempt[f.GetName()] {
			seen++
		}
	}
	require.Equal(t, len(exempt), seen)
}

func TestSeedCountersExistBeforeAnythingHappens(t *testing.T) {
	r := New("dev", "")
	got := lines(t, r)
	require.Equal(t, "0", got["Total_domains_success_counter_total"])
	require.Equal(t, "0", got["Total_domains_failed_counter_total"])

	r.Delivery("users", "server1", "server1:8080", []string{"ok"})
	got = lines(t, r)
	require.Equal(t, "0", got[`target_domain_success_counter_total{domain="server1:8080"}`])
	require.Equal(t, "0", got[`target_domain_failed_counter_total{domain="server1:8080"}`])
}

func TestSameNamesSameInstrument(t *testing.T) {
	r := New("dev", "")
	o := []string{"ok", "failed"}
	require.Same(t, r.Route("a", "p"), r.Route("a", "p"))
	require.NotSame(t, r.Route("a", "p"), r.Route("a", "q"))
	require.Same(t, r.Backend("p", "b", o), r.Backend("p", "b", o))
	require.NotSame(t, r.Backend("p", "b", o), r.Backend("q", "b", o))
	require.Same(t, r.Retries("p", o)[1], r.Retries("p", o)[1])
	require.Same(t, r.Delivery("p", "b", "d:1", o), r.Delivery("p", "b", "d:1", o))
	require.NotSame(t, r.Delivery("p", "b", "d:1", o), r.Delivery("p", "b", "d:2", o))
	require.Same(t, r.FanoutDuration("a"), r.FanoutDuration("a"))
	require.Same(t, r.FanoutSettled("p"), r.FanoutSettled("p"))
	require.Same(t, r.FanoutDisagreements("p"), r.FanoutDisagreements("p"))

	// Routes that differ in the pool only share the histogram of their name.
	r.Route("a", "p").Observe(200, 1)
	r.Route("a", "q").Observe(200, 1)
	require.Equal(t, "2", lines(t, r)[`lb_request_duration_seconds_count{route="a"}`])
}

func TestStorage(t *testing.T) {
	r := New("dev", "")
	require.NotContains(t, lines(t, r), "lb_storage_up", "nobody has said how it is")
	up := true
	r.SetStorage(func() bool { return up })
	require.Equal(t, "1", lines(t, r)["lb_storage_up"])
	up = false
	require.Equal(t, "0", lines(t, r)["lb_storage_up"])
}

// A rate needs a first value to start from.
func TestDisagreementsAreShownBeforeTheFirst(t *testing.T) {
	r := New("dev", "")
	r.FanoutDisagreements("users")
	require.Equal(t, "0", lines(t, r)[`lb_fanout_disagreements_total{pool="users"}`])
}

func TestCounter(t *testing.T) {
	c := New("dev", "").Retries("p", []string{"ok"})[0]
	c.Inc()
	c.Add(2.5)
	require.Equal(t, 3.5, c.Value())
}

func TestOddStatusesMakeNoSeriesWithoutEnd(t *testing.T) {
	r := New("dev", "")
	route := r.Route("login", "users")
	for i := range 100_000 {
		route.Observe(i-50_000, 0.001)
	}
	route.Observe(math.MaxInt, 0.001)
	route.Observe(math.MinInt, 0.001)

	series, sum := 0, 0
	for s, v := range lines(t, r) {
		if strings.HasPrefix(s, "lb_requests_total{") {
			n, err := strconv.Atoi(v)
			require.NoError(t, err)
			series, sum = series+1, sum+n
		}
	}
	require.Equal(t, 501, series) // 100 to 599, and the others
	require.Equal(t, 100_002, sum)
	got := lines(t, r)
	require.Equal(t, "99502", got[`lb_requests_total{code="other",pool="users",route="login"}`])
	require.Equal(t, "1", got[`lb_requests_total{code="100",pool="users",route="login"}`])
	require.Equal(t, "1", got[`lb_requests_total{code="599",pool="users",route="login"}`])
}

func TestForget(t *testing.T) {
	r := New("dev", "")
	o := []string{"ok"}
	count := func(pool, backend, domain string) {
		r.Backend(pool, backend, o).Count(0)
		d := r.Delivery(pool, backend, domain, o)
		d.Attempt(0)
		d.Succeeded()
		d.Failed()
	}
	count("users", "a", "a:1")
	count("users", "b", "b:1")
	count("carts", "b", "b:1")
	held := r.Delivery("users", "a", "a:1", o)

	r.Forget("users", "a")
	r.Forget("users", "b")
	r.Forget("users", "never seen")
	held.Succeeded() // still counts for the total

	got := lines(t, r)
	for s := range got {
		require.NotContains(t, s, `pool="users"`)
		require.NotContains(t, s, `domain="a:1"`)
	}
	require.Equal(t, "1", got[`lb_backend_requests_total{backend="b",outcome="ok",pool="carts"}`])
	require.Equal(t, "1", got[`lb_fanout_attempts_total{backend="b",outcome="ok",pool="carts"}`])
	require.Equal(t, "2", got[`target_domain_success_counter_total{domain="b:1"}`])
	require.Equal(t, "4", got["Total_domains_success_counter_total"])
	require.Equal(t, "3", got["Total_domains_failed_counter_total"])

	// One that comes back starts anew, and is shown again.
	count("users", "a", "a:1")
	got = lines(t, r)
	require.Equal(t, "1", got[`lb_backend_requests_total{backend="a",outcome="ok",pool="users"}`])
	require.Equal(t, "1", got[`target_domain_success_counter_total{domain="a:1"}`])
	require.Equal(t, "5", got["Total_domains_success_counter_total"])
}

func TestForgetPool(t *testing.T) {
	r := New("dev", "")
	count := func(pool, route string) {
		r.Route(route, pool).Observe(200, 1)
		r.Retries(pool, []string{"retried"})[0].Inc()
		r.Refused(pool, []string{"queue_full"})[0].Inc()
		r.QueueWait(pool).Observe(1)
	}
	count("sum", "/call/sum")
	count("users", "login")
	late := r.Route("/call/sum", "sum")
	r.ForgetPool("sum", "/call/sum")
	r.ForgetPool("never", "seen")
	late.Observe(503, 1) // of a request that was under way
	got := lines(t, r)
	for s := range got {
		require.NotContains(t, s, "sum\"")
	}
	for _, s := range []string{
		`lb_requests_total{code="200",pool="users",route="login"}`, `lb_request_duration_seconds_count{route="login"}`,
		`lb_retries_total{outcome="retried",pool="users"}`, `lb_refused_total{code="queue_full",pool="users"}`,
		`lb_queue_wait_seconds_count{pool="users"}`,
	} {
		require.Equal(t, "1", got[s], s)
	}
	count("sum", "/call/sum")
	got = lines(t, r)
	require.Equal(t, "1", got[`lb_refused_total{code="queue_full",pool="sum"}`], "one that comes back starts anew")
	require.Equal(t, "1", got[`lb_requests_total{code="200",pool="sum",route="/call/sum"}`])
}

func TestForgetDropsEveryAddressOfABackend(t *testing.T) {
	r := New("dev", "")
	r.Delivery("users", "a", "old:1", []string{"ok"})
	r.Delivery("users", "a", "new:1", []string{"ok"})
	r.Forget("users", "a")
	for s := range lines(t, r) {
		require.NotContains(t, s, "domain=")
	}
}

func TestLabelsOfAnyBytes(t *testing.T) {
	r := New("\xff", "\xff")
	bad, o := "\xff\"\n{}", []string{"ok\xff"}
	r.Route(bad, bad).Observe(200, 1)
	r.Backend(bad, bad, o).Count(0)
	r.Retries(bad, o)[0].Inc()
	r.Delivery(bad, bad, bad, o).Attempt(0)
	r.FanoutDuration(bad).Observe(1)
	r.FanoutSettled(bad).Done()
	r.FanoutDisagreements(bad).Inc()
	r.SetBackends([]string{"up\xff"}, func() []BackendSample { return []BackendSample{{Pool: bad, Backend: bad}} })
	r.SetFanout(func() []FanoutSample { return []FanoutSample{{Pool: bad}} })
	require.Contains(t, lines(t, r), `lb_fanout_deliveries{pool="�\"\n{}",state="parked"}`)
	r.Forget(bad, bad)
	require.NotContains(t, lines(t, r), `lb_backend_requests_total{backend="�\"\n{}",outcome="ok�",pool="�\"\n{}"}`)
}

func TestAScrapeSurvivesABackendNamedTwice(t *testing.T) {
	r := New("dev", "")
	r.SetBackends([]string{"up"}, func() []BackendSample {
		return []BackendSample{{Pool: "p", Backend: "a", State: "up"}, {Pool: "p", Backend: "a", State: "up"}}
	})
	require.Equal(t, "1", lines(t, r)[`lb_backend_state{backend="a",pool="p",state="up"}`])
	require.NotEmpty(t, jsonFamilies(t, r))
}

func TestConcurrentUse(t *testing.T) {
	r := full(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 200 {
				r.Route("login", "users").Observe(100+n, 0.1)
				d := r.Delivery("users", "b"+strconv.Itoa(i), "d:1", []string{"ok"})
				d.Attempt(0)
				d.Succeeded()
				r.Backend("users", "b"+strconv.Itoa(i), []string{"ok"}).Count(0)
				r.Forget("users", "b"+strconv.Itoa(i))
				if n%50 == 0 {
					_, err := r.reg.Gather()
					if err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	require.Equal(t, "1601", lines(t, r)["Total_domains_success_counter_total"])
	require.Equal(t, "9", lines(t, r)[`lb_requests_total{code="200",pool="users",route="login"}`])
}

func TestNoAllocations(t *testing.T) {
	r := New("dev", "")
	o := []string{"ok", "failed"}
	route, backend, retries := r.Route("login", "users"), r.Backend("users", "a", o), r.Retries("users", o)
	delivery, fanout, settled := r.Delivery("users", "a", "a:1", o), r.FanoutDuration("register"), r.FanoutSettled("users")
	for name, f := range map[string]func(){
		"Route.Observe":       func() { route.Observe(200, 0.01) },
		"Route.Observe other": func() { route.Observe(999, 0.01) },
		"Backend.Count":       func() { backend.Count(1) },
		"Counter.Inc":         func() { retries[0].Inc() },
		"Counter.Add":         func() { retries[0].Add(1.5) },
		"Delivery.Attempt":    func() { delivery.Attempt(1) },
		"Delivery.Succeeded":  delivery.Succeeded,
		"Delivery.Failed":     delivery.Failed,
		"Histogram.Observe":   func() { fanout.Observe(90) },
		"Settled.Done":        settled.Done,
		"Settled.Cancelled":   settled.Cancelled,
		"Settled.Skipped":     settled.Skipped,
		"SetGeneration":       func() { r.SetGeneration(3) },
	} {
		require.Zero(t, testing.AllocsPerRun(1000, f), name)
	}
}

func BenchmarkRequest(b *testing.B) {
	r := New("dev", "")
	route, backend := r.Route("login", "users"), r.Backend("users", "a", []string{"ok"})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			route.Observe(200, 0.0042)
			backend.Count(0)
		}
	})
}

func BenchmarkDelivery(b *testing.B) {
	d := New("dev", "").Delivery("users", "a", "a:1", []string{"ok"})
	b.ReportAllocs()
	for b.Loop() {
		d.Attempt(0)
		d.Succeeded()
	}
}
