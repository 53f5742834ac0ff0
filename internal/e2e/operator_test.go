package e2e

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/admin"
	"lb/internal/fanout"
)

// operate asks for a change of one backend: drain, maintenance or enable.
func (d *daemon) operate(verb, id string, fields ...string) answer {
	d.t.Helper()
	return d.do(http.MethodPost, d.Admin+"/instances/"+id+"/"+verb, nil, fields...)
}

// audit returns the audit trail, the newest record first.
func (d *daemon) audit() []admin.AuditRecord {
	d.t.Helper()
	var page admin.AuditPage
	d.get(d.Admin+"/audit").json(d.t, &page)
	return page.Records
}

// ledgers runs n backends that answer 200 to reads and 201 to writes.
func ledgers(t testing.TB, n int) (all []*ledger, addresses []string) {
	t.Helper()
	for range n {
		l := new(ledger)
		all, addresses = append(all, l), append(addresses, backend(t, readOrWrite(l)))
	}
	return all, addresses
}

// readOrWrite serves l, which answers a POST with 201 and the rest with 200.
func readOrWrite(l *ledger) http.Handler {
	l.answer = func(n int, w http.ResponseWriter) {
		if l.all()[n].Method == http.MethodPost {
			w.WriteHeader(http.StatusCreated)
		}
	}
	return l
}

// count returns how many requests with that method came.
func (l *ledger) count(method string) int {
	n := 0
	for _, a := range l.all() {
		if a.Method == method {
			n++
		}
	}
	return n
}

// requireReads sends reads, and checks that they come to the backends whose
// numbers are given, to each its share, and to no other.
func requireReads(t testing.TB, d *daemon, all []*ledger, serving ...int) {
	t.Helper()
	want := make([]int, len(all))
	for i, l := range all {
		want[i] = l.count(http.MethodGet)
	}
	for _, i := range serving {
		want[i-1] += rounds / len(serving)
	}
	for range rounds {
		require.Equal(t, http.StatusOK, d.get("/").Status)
	}
	got := make([]int, len(all))
	for i, l := range all {
		got[i] = l.count(http.MethodGet)
	}
	require.Equal(t, want, got, "reads at each backend")
}

// stored returns the part that keeps what outlives the daemon, in a new file.
func stored(t testing.TB) string {
	return fmt.Sprintf("storage: { path: %q }\n", filepath.Join(t.TempDir(), "lb.db"))
}

// Promise: what operators said holds until they say otherwise, however the
// daemon ends, and who said what and when is kept.
func TestOperatorsWordsOutliveTheDaemon(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(d *daemon){
		"SIGTERM": func(d *daemon) { require.Zero(t, d.stop()) },
		"SIGKILL": (*daemon).kill,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all, addresses := ledgers(t, 3)
			config := proxyAll("", addresses...) + stored(t)
			began := time.Now()
			d := start(t, config)
			requireReads(t, d, all, 1, 2, 3)
			requireState(t, d.operate("drain", "b1", "X-LB-Operator", "alice"), "draining")
			requireReads(t, d, all, 2, 3)
			requireState(t, d.operate("maintenance", "b2", "X-LB-Operator", "bob"), "maintenance")
			end(d)
			said := time.Now()

			d = start(t, config)
			for id, c := range map[string]struct{ state, by string }{"b1": {"draining", "alice"}, "b2": {"maintenance", "bob"}} {
				now := d.instance(id)
				require.Equal(t, c.state, now.State)
				require.False(t, now.Eligible)
				require.Len(t, now.Reasons, 1)
				require.Contains(t, now.Reasons[0], c.state+", said by "+c.by+" (127.0.0.1) at ")
			}
			requireReads(t, d, all, 3)
			requireTrail(t, d.audit(), began, said, "bob maintenance main/b2", "alice draining main/b1")

			requireState(t, d.operate("enable", "b1"), "up")
			requireReads(t, d, all, 1, 3)
			requireState(t, d.operate("enable", "b2"), "up")
			end(d)
			d = start(t, config)
			for _, id := range []string{"b1", "b2"} {
				require.Equal(t, "up", d.instance(id).State)
				require.Empty(t, d.instance(id).Reasons)
			}
			requireReads(t, d, all, 1, 2, 3)
			requireTrail(t, d.audit(), began, time.Now(),
				" enabled main/b2", " enabled main/b1", "bob maintenance main/b2", "alice draining main/b1")
		})
	}
}

// requireState checks the answer to a change: how the backend is after it.
func requireState(t testing.TB, a answer, state string) {
	t.Helper()
	require.Equal(t, http.StatusOK, a.Status, a.Body)
	var now admin.Instance
	a.json(t, &now)
	require.Equal(t, state, now.State)
}

// requireTrail checks the audit trail of a daemon with one configuration: who,
// what and to whom in each record, from the newest on, and when.
func requireTrail(t testing.TB, records []admin.AuditRecord, from, to time.Time, want ...string) {
	t.Helper()
	got := make([]string, len(records))
	for i, r := range records {
		require.Regexp(t, `^(\w+ \(127\.0\.0\.1\)|127\.0\.0\.1)$`, r.Who)
		who, _, _ := strings.Cut(strings.TrimSuffix(r.Who, "127.0.0.1"), " (")
		got[i] = who + " " + r.Action + " " + r.Target
		require.Equal(t, uint64(1), r.Generation)
		require.False(t, r.At.Before(from), "%v is before %v", r.At, from)
		require.False(t, r.At.After(to), "%v is after %v", r.At, to)
		to = r.At
		require.Equal(t, int64(len(records)-i), r.ID)
	}
	require.Equal(t, want, got)
}

// Promise: to say the same again, or what cannot be done, leaves no trace.
func TestOperatorsWordsThatChangeNothing(t *testing.T) {
	t.Parallel()
	all, addresses := ledgers(t, 2)
	d := start(t, proxyAll("", addresses...))
	require.Equal(t, http.StatusOK, d.operate("enable", "b1").Status)
	require.Empty(t, d.audit())
	for range 2 {
		require.Equal(t, http.StatusOK, d.operate("drain", "b1").Status)
	}
	requireProblem(t, d.operate("drain", "b3"), http.StatusNotFound, "instance_not_found")
	requireProblem(t, d.operate("drain?pool=other", "b2"), http.StatusNotFound, "instance_not_found")
	requireProblem(t, d.operate("drain?pol=main", "b2"), http.StatusBadRequest, "bad_request")
	require.Len(t, d.audit(), 1)
	requireReads(t, d, all, 2)
}

// Promise: what is under way ends well at a draining backend, which gets nothing
// new, not even when there is nobody else.
func TestDrainLetsReadsEnd(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	d := start(t, draining("5s", slowBackend(t, release)))
	slow := halfway(t, d)
	require.Equal(t, http.StatusOK, d.operate("drain", "b1").Status)
	require.Equal(t, int64(1), d.instance("b1").InFlight)
	requireProblem(t, d.get("/"), http.StatusServiceUnavailable, "no_backend")
	require.Equal(t, http.StatusServiceUnavailable, d.get(d.Admin+"/health").Status, "the route is required")
	close(release)
	rest, err := io.ReadAll(slow.Body)
	require.NoError(t, err)
	require.Equal(t, "second half", string(rest))
	poll(t, patience, "the lease to end", func() bool { return d.instance("b1").InFlight == 0 })
	require.Equal(t, "draining", d.instance("b1").State)
	require.Equal(t, http.StatusOK, d.operate("enable", "b1").Status)
	require.Equal(t, http.StatusOK, d.get("/").Status)
}

// Promise: writes come to a draining backend as to any other; those for one in
// maintenance wait for its end, and then come, each once.
func TestMaintenanceHoldsDeliveries(t *testing.T) {
	t.Parallel()
	all, addresses := ledgers(t, 3)
	d := start(t, fanoutAll("", addresses...))
	require.Equal(t, http.StatusOK, d.operate("maintenance", "b1").Status)
	require.Equal(t, http.StatusOK, d.operate("drain", "b2").Status)

	const writes = 5
	var locations, ids []string
	for i := range writes {
		a := d.do(http.MethodPost, "/", strings.NewReader(fmt.Sprint(i)))
		require.Equal(t, http.StatusAccepted, a.Status, a.Body)
		locations, ids = append(locations, a.Header.Get("Location")), append(ids, a.Header.Get("X-LB-Fanout-Id"))
	}
	for _, location := range locations {
		poll(t, patience, "the other two", func() bool {
			s := d.status(location)
			return s.Deliveries[1].State == fanout.DeliveryDone && s.Deliveries[2].State == fanout.DeliveryDone
		})
	}
	elapse(t, 700*time.Millisecond) // more than one look at whether the maintenance is over
	for _, location := range locations {
		s := d.status(location)
		require.Equal(t, fanout.WritePending, s.State)
		require.Equal(t, fanout.DeliveryStatus{Backend: "b1", State: fanout.DeliveryPending}, s.Deliveries[0])
	}
	require.Equal(t, float64(writes), d.metric("lb_fanout_deliveries", "state", "pending"))
	require.Empty(t, all[0].all(), "neither deliveries nor reads")
	require.Equal(t, writes, all[1].count(http.MethodPost), "a draining one gets its deliveries")
	requireReads(t, d, all, 3)

	require.Equal(t, http.StatusOK, d.operate("enable", "b1").Status)
	for _, location := range locations {
		poll(t, patience, "the write to be done", func() bool { return d.status(location).State == fanout.WriteDone })
	}
	var got []string
	for _, a := range all[0].all() {
		got = append(got, a.Header.Get("X-LB-Fanout-Id"))
	}
	require.ElementsMatch(t, ids, got)
	require.Zero(t, d.metric("lb_fanout_deliveries", "state", "pending"))
	requireReads(t, d, all, 1, 3)
}

// Promise: maintenance also holds a delivery that was being retried, and costs
// it no attempt.
func TestMaintenanceHoldsRetries(t *testing.T) {
	t.Parallel()
	all, addresses := ledgers(t, 2)
	all[0].answer = func(_ int, w http.ResponseWriter) { w.WriteHeader(http.StatusInternalServerError) }
	d := start(t, fanoutAll(", wait: 0s", addresses...))
	a := d.do(http.MethodPost, "/", strings.NewReader("x"))
	require.Equal(t, http.StatusAccepted, a.Status)
	b1 := func() fanout.DeliveryStatus { return d.status(a.Header.Get("Location")).Deliveries[0] }
	poll(t, patience, "retries", func() bool { return b1().Attempts >= 2 })
	require.Equal(t, http.StatusOK, d.operate("maintenance", "b1").Status)
	poll(t, patience, "the attempt under way to end", func() bool { return d.instance("b1").InFlight == 0 })
	sent := len(all[0].all())
	elapse(t, 700*time.Millisecond) // at least three times the backoff's cap
	require.Len(t, all[0].all(), sent)
	held := b1()
	require.Equal(t, fanout.DeliveryPending, held.State)
	require.Nil(t, held.NextAttempt)
	require.Equal(t, sent, held.Attempts)

	require.Equal(t, http.StatusOK, d.operate("enable", "b1").Status)
	poll(t, patience, "more retries", func() bool { return b1().Attempts > sent })
}
