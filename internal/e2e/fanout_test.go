package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/demo"
	"lb/internal/fanout"
)

const form = "application/x-www-form-urlencoded"

// register sends one write to the demo backends.
func (d *daemon) register(username string) answer {
	d.t.Helper()
	return d.do(http.MethodPost, "/register", strings.NewReader("username="+username+"&password=x"), "Content-Type", form)
}

// status returns where a write stands.
func (d *daemon) status(location string) fanout.Status {
	d.t.Helper()
	a := d.get(location)
	require.Equal(d.t, http.StatusOK, a.Status, a.Body)
	require.Equal(d.t, "application/json", a.Header.Get("Content-Type"))
	var s fanout.Status
	a.json(d.t, &s)
	return s
}

// requireSameState checks that all demo backends hold the same users.
func requireSameState(t testing.TB, users int, addresses ...string) {
	t.Helper()
	client := newClient(t)
	hashes := make(map[string]bool)
	for _, address := range addresses {
		a, err := try(client, http.MethodGet, "http://"+address+"/state", nil)
		require.NoError(t, err)
		var s demo.State
		a.json(t, &s)
		require.Len(t, s.Users, users, address)
		hashes[s.Hash] = true
	}
	require.Len(t, hashes, 1, "the hashes differ")
}

// Promise: the seed's sentence. Every write is everywhere, whatever the flaky
// backend drops, and the counters tell how it went.
func TestWritesReachEveryBackend(t *testing.T) {
	t.Parallel()
	_, addresses := demoBackends(t, true)
	d := start(t, fanoutAll("", addresses...))
	const writes = 15
	for i := range writes {
		a := d.register(fmt.Sprintf("user%d", i))
		require.Equal(t, http.StatusCreated, a.Status)
		require.Equal(t, "registered on server1\n", a.Body, "the first in config order")
		require.Equal(t, "3/3", a.Header.Get("X-LB-Acked"))
		require.NotEmpty(t, a.Header.Get("X-LB-Fanout-Id"))
		require.Empty(t, a.Header.Get("Location"))
		require.Equal(t, fanout.WriteDone, d.status("/.lb/fanout/"+a.Header.Get("X-LB-Fanout-Id")).State)
	}
	var failed float64
	for i, address := range addresses {
		require.Equal(t, float64(writes), d.metric("target_domain_success_counter_total", "domain", address))
		n := d.metric("target_domain_failed_counter_total", "domain", address)
		require.Equal(t, i == 2, n > 0, "only the flaky one fails")
		failed += n
	}
	require.Equal(t, 3.0, failed, "of 15 writes and 3 retries every fifth was dropped")
	require.Equal(t, float64(3*writes), d.metric("Total_domains_success_counter_total"))
	require.Equal(t, failed, d.metric("Total_domains_failed_counter_total"))
	require.Equal(t, float64(3*writes), d.metric("lb_fanout_settled_total", "state", "done"))
	require.Equal(t, float64(3*writes), d.metric("lb_fanout_attempts_total", "outcome", "success"))
	require.Equal(t, failed, d.metric("lb_fanout_attempts_total", "outcome", "failure"))
	require.Zero(t, d.metric("lb_fanout_deliveries", "state", "pending"))
	require.Equal(t, float64(writes), d.metric("lb_fanout_duration_seconds_count", "route", "write"))
	require.Zero(t, d.metric("lb_backend_in_flight"))
	requireSameState(t, writes, addresses...)
}

// Promise: with one backend stopped the first write is answered 202 after
// `wait` at the latest, the next at once; both are done when it is back.
func TestWriteWhileOneBackendIsStopped(t *testing.T) {
	t.Parallel()
	servers, addresses := demoBackends(t, false)
	const wait = time.Second
	d := start(t, fanoutAll(", wait: 1s", addresses...))
	require.Equal(t, http.StatusCreated, d.register("before").Status)
	servers[1].stop()

	began := time.Now()
	first := d.register("first")
	require.Less(t, time.Since(began), wait+time.Second)
	require202(t, first)
	began = time.Now()
	second := d.register("second")
	require.Less(t, time.Since(began), wait/2, "what is missing was out already")
	require202(t, second)

	for _, a := range []answer{first, second} {
		location := a.Header.Get("Location")
		poll(t, patience, "the other two", func() bool {
			s := d.status(location)
			return s.Deliveries[0].State == fanout.DeliveryDone && s.Deliveries[2].State == fanout.DeliveryDone
		})
		poll(t, patience, "the next attempt to be known", func() bool { return d.status(location).Deliveries[1].NextAttempt != nil })
		s := d.status(location)
		require.Equal(t, fanout.WritePending, s.State)
		require.Equal(t, fanout.DeliveryPending, s.Deliveries[1].State)
		require.Nil(t, s.Deliveries[1].LastStatus)
		require.WithinDuration(t, time.Now(), s.Created, patience)
	}
	poll(t, patience, "further attempts", func() bool { return d.status(first.Header.Get("Location")).Deliveries[1].Attempts >= 2 })
	require.Equal(t, 2.0, d.metric("lb_fanout_deliveries", "state", "pending"))
	require.Equal(t, http.StatusOK, d.get("/login").Status, "reads go on")

	servers[1].restart()
	for _, a := range []answer{first, second} {
		poll(t, patience, "the write to be done", func() bool { return d.status(a.Header.Get("Location")).State == fanout.WriteDone })
	}
	requireSameState(t, 3, addresses...)
	require.Zero(t, d.metric("lb_fanout_deliveries", "state", "pending"))
}

// require202 checks the answer to a write that is admitted but not everywhere.
func require202(t testing.TB, a answer) {
	t.Helper()
	require.Equal(t, http.StatusAccepted, a.Status, a.Body)
	require.Equal(t, "2/3", a.Header.Get("X-LB-Acked"))
	id := a.Header.Get("X-LB-Fanout-Id")
	require.GreaterOrEqual(t, len(id), 22, "unguessable")
	require.Equal(t, "/.lb/fanout/"+id, a.Header.Get("Location"))
	var s fanout.Status
	a.json(t, &s)
	require.Equal(t, id, s.ID)
	require.Equal(t, fanout.WritePending, s.State)
}

// Promise: the client hears when as many backends as `ack` says have the
// write; it is everywhere all the same.
func TestAck(t *testing.T) {
	t.Parallel()
	for ack, acked := range map[string]string{"first": "1/3", "quorum": "2/3"} {
		t.Run(ack, func(t *testing.T) {
			t.Parallel()
			release := make(chan struct{})
			slow := &ledger{answer: func(_ int, w http.ResponseWriter) {
				<-release
				w.WriteHeader(http.StatusCreated)
			}}
			ready := backend(t, always(http.StatusCreated))
			others := []string{backend(t, slow), ready, backend(t, slow)}
			if ack == "quorum" {
				others[0] = backend(t, always(http.StatusCreated))
			}
			d := start(t, fanoutAll(", ack: "+ack, others...))
			a := d.do(http.MethodPost, "/x", strings.NewReader("x"))
			close(release)
			require.Equal(t, http.StatusCreated, a.Status)
			require.Equal(t, acked, a.Header.Get("X-LB-Acked"))
			poll(t, patience, "the others", func() bool {
				return d.status("/.lb/fanout/"+a.Header.Get("X-LB-Fanout-Id")).State == fanout.WriteDone
			})
		})
	}
}

// Promise: the answer is the first success in config order: status, fields and
// body; not those of its connection.
func TestAnswerIsTheFirstSuccessInConfigOrder(t *testing.T) {
	t.Parallel()
	saying := func(who string, status int) string {
		return backend(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Who", who)
			w.Header().Set("Keep-Alive", "timeout=5")
			w.Header().Add("Set-Cookie", "a=1")
			w.Header().Add("Set-Cookie", "b=2")
			w.WriteHeader(status)
			_, _ = w.Write([]byte(who))
		}))
	}
	d := start(t, fanoutAll(", success: [200, 201]", saying("one", 200), saying("two", 201)))
	a := d.do(http.MethodPost, "/x", strings.NewReader("x"))
	require.Equal(t, http.StatusOK, a.Status)
	require.Equal(t, "one", a.Body)
	require.Equal(t, "one", a.Header.Get("X-Who"))
	require.Equal(t, []string{"a=1", "b=2"}, a.Header.Values("Set-Cookie"))
	require.Empty(t, a.Header.Get("Keep-Alive"))
}

// Promise: a write that every backend refuses is refused: the client gets the
// first refusal in config order, and nothing more is sent.
func TestRejectedWrite(t *testing.T) {
	t.Parallel()
	var ledgers []*ledger
	var addresses []string
	for _, text := range []string{"one", "two", "three"} {
		l := &ledger{answer: func(_ int, w http.ResponseWriter) {
			w.WriteHeader(http.StatusConflict)
			_, _ = w.Write([]byte(text))
		}}
		ledgers, addresses = append(ledgers, l), append(addresses, backend(t, l))
	}
	d := start(t, fanoutAll("", addresses...))
	a := d.do(http.MethodPost, "/x", strings.NewReader("x"))
	require.Equal(t, http.StatusConflict, a.Status)
	require.Equal(t, "one", a.Body)
	require.Equal(t, "0/3", a.Header.Get("X-LB-Acked"))
	require.Empty(t, a.Header.Get("X-LB-Error"), "it is a backend's answer")
	s := d.status("/.lb/fanout/" + a.Header.Get("X-LB-Fanout-Id"))
	require.Equal(t, fanout.WriteRejected, s.State)
	for _, delivery := range s.Deliveries {
		require.Equal(t, fanout.DeliveryHeld, delivery.State)
		require.Equal(t, 1, delivery.Attempts)
		require.Equal(t, http.StatusConflict, *delivery.LastStatus)
		require.Nil(t, delivery.NextAttempt)
	}
	// What would be sent once more would come before what is written now.
	require.Equal(t, http.StatusConflict, d.do(http.MethodPost, "/y", strings.NewReader("y")).Status)
	for _, l := range ledgers {
		require.Len(t, l.all(), 2)
	}
	require.Zero(t, d.metric("lb_fanout_deliveries", "state", "pending"))
}

// Promise: a refusal does not stop a write that somebody accepted: it is tried
// three times more, then parked as diverged, and the log says so.
func TestDivergedDeliveryIsParked(t *testing.T) {
	t.Parallel()
	refused := make(chan struct{})
	yes := &ledger{answer: func(_ int, w http.ResponseWriter) {
		<-refused
		w.WriteHeader(http.StatusCreated)
	}}
	no := always(http.StatusConflict)
	d := start(t, fanoutAll("", backend(t, yes), backend(t, no)))
	answers := make(chan answer, 1)
	go func() { answers <- d.do(http.MethodPost, "/x?token=secret", strings.NewReader("x")) }()
	poll(t, patience, "the refusal, which comes first", func() bool {
		return d.metric("lb_fanout_attempts_total", "backend", "b2", "outcome", "failure") == 1
	})
	close(refused)
	a := <-answers
	require.Equal(t, http.StatusAccepted, a.Status)
	location := a.Header.Get("Location")
	poll(t, patience, "the end", func() bool { return d.status(location).State == fanout.WriteParked })
	require.Equal(t, fanout.DeliveryParked, d.status(location).Deliveries[1].State)
	require.Len(t, no.all(), 4)
	require.Equal(t, 1.0, d.metric("lb_fanout_deliveries", "state", "parked"))
	parked := d.events("delivery parked: it will not be tried again")
	require.Len(t, parked, 1)
	require.Equal(t, "diverged", parked[0]["reason"])
	require.Equal(t, "b2", parked[0]["backend"])
	require.NotContains(t, d.log(), "secret")
}
