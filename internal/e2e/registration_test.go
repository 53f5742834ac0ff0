package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/admin"
)

// registering is a configuration without pools into which backends register.
func registering(more string) string {
	return fmt.Sprintf(`
listeners: [ { name: public, address: "127.0.0.1:0" } ]
admin: { address: "127.0.0.1:0" }
storage: { path: "" }
registration: { enabled: true %s }
routes: []
`, more)
}

// enroll registers a backend; more are further fields of the document.
func (d *daemon) enroll(pool, address, more string, fields ...string) answer {
	d.t.Helper()
	document := fmt.Sprintf(`{"pool":%q,"address":%q%s}`, pool, address, more)
	return d.do(http.MethodPost, d.Admin+"/register", strings.NewReader(document),
		append(fields, "Content-Type", "application/json")...)
}

// dismiss unregisters it; query may be empty.
func (d *daemon) dismiss(id, query string) answer {
	d.t.Helper()
	return d.do(http.MethodDelete, d.Admin+"/unregister/"+url.PathEscape(id)+query, nil)
}

// listed returns what /instances says of a backend, nil if it is not there.
func (d *daemon) listed(id string) *admin.Instance {
	d.t.Helper()
	var all []admin.Instance
	d.get(d.Admin+"/instances").json(d.t, &all)
	for _, i := range all {
		if i.ID == id {
			return &i
		}
	}
	return nil
}

// named answers with its name and what it was asked for.
func named(t testing.TB, name string) string {
	return backend(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s prefix %s", name, r.Method, r.RequestURI, r.Header.Get("X-Forwarded-Prefix"))
	}))
}

// Promise: backends that register make a pool, which is served at the route
// prefix and its name at once, with the policy that the first of them named.
func TestBackendsRegisterThemselves(t *testing.T) {
	t.Parallel()
	d := start(t, registering(""))
	require.Equal(t, 404, d.get("/call/sum").Status, "nobody knows of it")

	first, second := named(t, "one"), named(t, "two")
	a := d.enroll("sum", first, `,"id":"one","invoke":"rr","concurrency":4,"ttl":"30s","labels":{"zone":"a"}`)
	require.Equal(t, 201, a.Status, a.Body)
	var registered admin.Registered
	a.json(t, &registered)
	require.Equal(t, admin.Registered{InstanceID: "one", Pool: "sum", TTL: "30s", Heartbeat: "10s", Generation: 2}, registered)
	a = d.enroll("sum", second, `,"invoke":"roundrobin"`)
	require.Equal(t, 201, a.Status, a.Body)
	a.json(t, &registered)
	require.Equal(t, admin.Registered{InstanceID: second, Pool: "sum", TTL: "1m30s", Heartbeat: "30s", Generation: 2}, registered)

	for i := range 6 {
		name := []string{"one", "two"}[i%2]
		require.Equal(t, name+" GET /add?x=1 prefix /call/sum", d.get("/call/sum/add?x=1").Body)
	}
	require.Equal(t, "one POST / prefix /call/sum", d.do("POST", "/call/sum", nil).Body)
	require.Equal(t, "two DELETE /a%2Fb//c prefix /call/sum", d.do("DELETE", "/call/sum/a%2Fb//c", nil).Body, "byte for byte")
	require.Equal(t, 404, d.get("/call/summary").Status, "whole segments")
	require.Equal(t, 404, d.get("/call/").Status)

	a = d.enroll("sum", first, `,"id":"one","concurrency":5`)
	require.Equal(t, 200, a.Status, "a sign of life, and a change")
	i := d.listed("one")
	require.NotNil(t, i)
	require.Equal(t, 5, i.Limit)
	require.Equal(t, "registration", i.Source)
	require.Equal(t, "up", i.State)
	require.Equal(t, first, i.Address)
	require.Equal(t, 2.0, d.metric("lb_registrations", "pool", "sum"))
	require.Equal(t, 5.0, d.metric("lb_backend_limit", "pool", "sum", "backend", "one"))
	require.Equal(t, 2.0, d.metric("lb_config_generation"))

	trail := d.audit()
	var actions []string
	for _, r := range trail {
		actions = append(actions, r.Action+" "+r.Target+" by "+r.Who)
	}
	require.Equal(t, []string{
		"update registration sum/one by 127.0.0.1", "register sum/" + second + " by 127.0.0.1", "register sum/one by 127.0.0.1",
	}, actions)
	require.Equal(t, 0, d.stop())
	require.Len(t, d.events("backend registered"), 2)
	require.Len(t, d.events("pool made by registration"), 1)
}

// requireDetail checks the answer to a registration that changes nothing.
func requireDetail(t *testing.T, a answer, status int, code, detail string) {
	t.Helper()
	var problem struct{ Code, Detail string }
	a.json(t, &problem)
	require.Equal(t, status, a.Status, a.Body)
	require.Equal(t, code, problem.Code)
	require.Contains(t, problem.Detail, detail)
}

// Promise: the first of a procedure fixes its policy, a second on `single` is
// refused, an id belongs to one address, and force takes the place of who
// stands in the way.
func TestProcedureConflicts(t *testing.T) {
	t.Parallel()
	d := start(t, registering(""))
	one, two := named(t, "one"), named(t, "two")
	require.Equal(t, 201, d.enroll("sequential", one, `,"id":"one"`).Status)
	requireDetail(t, d.enroll("sequential", two, `,"id":"two"`), 409, "procedure_already_exists", "force")
	requireDetail(t, d.enroll("sequential", two, `,"id":"two","invoke":"roundrobin"`), 409,
		"procedure_exists_with_different_invocation_policy", "single")
	requireDetail(t, d.enroll("sequential", two, `,"id":"one"`), 409, "instance_exists", one)
	require.Contains(t, d.get("/call/sequential").Body, "one GET")

	require.Equal(t, 201, d.enroll("sequential", two, `,"id":"two","force":true`).Status)
	require.Contains(t, d.get("/call/sequential").Body, "two GET")
	require.Nil(t, d.listed("one"), "it was evicted")
	require.Equal(t, 201, d.enroll("sequential", one, `,"id":"one","invoke":"random","force":true`).Status)
	require.Contains(t, d.get("/call/sequential").Body, "one GET", "another policy, by force")
	require.Equal(t, 201, d.enroll("sequential", two, `,"id":"two","invoke":"random"`).Status)
	require.Contains(t, d.audit()[2].Action+d.audit()[1].Action, "evict")
}

// Promise: what registers is judged by where it is, and floods are bounded.
func TestRegistrationsThatAreRefused(t *testing.T) {
	t.Parallel()
	d := start(t, registering(`, max_instances: 2, max_pools: 1, allow: [loopback]`))
	adminAddress := strings.TrimPrefix(d.Admin, "http://")
	for _, address := range []string{"169.254.169.254:80", "[::ffff:a9fe:a9fe]:80", "10.0.0.1:80", "0.0.0.0:80", adminAddress, d.Addr} {
		requireDetail(t, d.enroll("p", address, ""), 403, "address_not_allowed", "registration.allow")
	}
	for document, field := range map[string]string{
		`{"pool":"p","address":"127.0.0.1:1","wieght":1}`:                               "wieght",
		`{"pool":"p","address":"127.0.0.1:1","concurrency":"4"}`:                        "concurrency",
		`{"pool":"p","address":"127.0.0.1:1","health":{"type":"exec","command":["x"]}}`: "health.type",
		`{"pool":"p","address":"127.0.0.1:1","labels":{"zone":1}}`:                      "labels.zone",
		`{"pool":"p","address":"http://127.0.0.1:1/"}`:                                  "address",
		`{"pool":"p","address":"2130706433:1"}`:                                         "address",
		`{"pool":"p","address":"127.0.0.1:1","invoke":"hash"}`:                          "invoke",
		`{"address":"127.0.0.1:1"}`:                                                     "pool",
	} {
		a := d.do("POST", d.Admin+"/register", strings.NewReader(document), "Content-Type", "application/json")
		require.Equal(t, 422, a.Status, "%s: %s", document, a.Body)
		var problem struct {
			Code   string
			Errors []struct{ Field, Detail string }
		}
		a.json(t, &problem)
		require.Equal(t, "invalid_registration", problem.Code)
		require.Len(t, problem.Errors, 1, a.Body)
		require.Equal(t, field, problem.Errors[0].Field, a.Body)
	}
	require.Equal(t, "[]\n", d.get(d.Admin+"/instances").Body, "nothing has changed")
	require.Empty(t, d.audit())

	require.Equal(t, 201, d.enroll("p", "127.0.0.1:1", `,"invoke":"random"`).Status)
	requireDetail(t, d.enroll("q", "127.0.0.1:2", ""), 503, "overloaded", "registration.max_pools")
	require.Equal(t, 201, d.enroll("p", "127.0.0.1:2", `,"invoke":"random"`).Status)
	a := d.enroll("p", "127.0.0.1:3", `,"invoke":"random"`)
	requireDetail(t, a, 503, "overloaded", "registration.max_instances")
	require.NotEmpty(t, a.Header.Get("Retry-After"))
	require.Equal(t, 200, d.enroll("p", "127.0.0.1:1", "").Status, "who is there goes on")
}

// Promise: a worker that goes silent is out after its ttl, but not in the middle
// of a call, and comes back with its counters.
func TestSilentWorkersExpire(t *testing.T) {
	t.Parallel()
	d := start(t, registering(""))
	called, release := make(chan struct{}, 1), make(chan struct{})
	busy := backend(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/long") {
			called <- struct{}{}
			<-release
		}
		_, _ = io.WriteString(w, "done")
	}))
	const ttl = `,"id":"w","ttl":"1s"`
	require.Equal(t, 201, d.enroll("jobs", busy, ttl).Status)
	require.Equal(t, 200, d.get("/call/jobs").Status)

	answered := make(chan answer, 1)
	go func() { answered <- d.do("GET", "/call/jobs/long", nil) }()
	<-called
	seen := time.Now()
	poll(t, patience, "two ttls to pass", func() bool {
		require.Equal(t, "up", d.listed("w").State, "it works on a call")
		return time.Since(seen) > 2*time.Second
	})
	close(release)
	require.Equal(t, 200, (<-answered).Status)
	poll(t, patience, "the silent worker to expire", func() bool { return d.listed("w").State == "expired" })
	require.Equal(t, []string{"not heard of for its ttl of 1s"}, []string(d.listed("w").Reasons))
	requireDetail(t, d.get("/call/jobs"), 503, "no_such_procedure", "jobs")
	require.Equal(t, 1.0, d.metric("lb_refused_total", "pool", "jobs", "code", "no_such_procedure"))
	require.Equal(t, 0.0, d.metric("lb_registrations", "pool", "jobs"))

	require.Equal(t, 200, d.enroll("jobs", busy, ttl).Status, "it was never gone")
	require.Equal(t, 200, d.get("/call/jobs").Status)
	require.Equal(t, 3.0, d.metric("lb_backend_requests_total", "pool", "jobs", "backend", "w", "outcome", "success"))
}

// Promise: who unregisters gets nothing new and ends what it has; by force, that
// is cut.
func TestUnregister(t *testing.T) {
	t.Parallel()
	d := start(t, registering(""))
	called := make(chan struct{}, 4)
	slow := func(release <-chan struct{}) string {
		return backend(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			called <- struct{}{}
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}))
	}
	call := func() <-chan answer {
		answered := make(chan answer, 1)
		go func() { answered <- d.do("POST", "/call/jobs", nil) }()
		<-called
		return answered
	}
	let := make(chan struct{})
	first := slow(let)
	require.Equal(t, 201, d.enroll("jobs", first, `,"id":"w"`).Status)
	answered := call()
	require.Equal(t, 204, d.dismiss("w", "").Status)
	require.Equal(t, "draining", d.listed("w").State)
	require.Equal(t, 204, d.dismiss("w", "?pool=jobs").Status, "to say it twice is no error")
	requireDetail(t, d.do("POST", "/call/jobs", nil), 503, "no_such_procedure", "jobs")
	close(let)
	require.Equal(t, 200, (<-answered).Status, "what it had, it ends")
	poll(t, patience, "it to leave", func() bool { return d.listed("w") == nil })
	require.Equal(t, 204, d.dismiss("w", "").Status)
	requireDetail(t, d.dismiss("x", ""), 404, "instance_not_found", "x")

	require.Equal(t, 201, d.enroll("jobs", first, `,"id":"w"`).Status)
	let = make(chan struct{})
	second := slow(let)
	require.Equal(t, 200, d.do("POST", "/call/jobs", nil).Status)
	<-called
	require.Equal(t, 204, d.dismiss("w", "").Status)
	poll(t, patience, "it to leave", func() bool { return d.listed("w") == nil })

	require.Equal(t, 201, d.enroll("jobs", second, `,"id":"w"`).Status, "the same id at another address, now that it is free")
	answered = call()
	require.Equal(t, 204, d.dismiss("w", "?force=true").Status)
	requireDetail(t, <-answered, 502, "canceled", "force")
	poll(t, patience, "it to leave", func() bool { return d.listed("w") == nil })
	require.Equal(t, 201, d.enroll("jobs", second, `,"id":"w"`).Status)
	answered = call()
	close(let)
	require.Equal(t, 200, (<-answered).Status, "and works again")
}

// Promise: registrations survive kill -9.
func TestRegistrationsOutliveTheDaemon(t *testing.T) {
	t.Parallel()
	config := configFile(t, strings.Replace(registering(""), `path: ""`, fmt.Sprintf("path: %q", filepath.Join(t.TempDir(), "lb.db")), 1))
	one, two := named(t, "one"), named(t, "two")
	d := startCommand(t, nil, "serve", "-c", config)
	require.Equal(t, 201, d.enroll("sum", one, `,"id":"one","invoke":"roundrobin","concurrency":3,"weight":2`).Status)
	require.Equal(t, 201, d.enroll("sum", two, `,"id":"two","invoke":"roundrobin","ttl":"1s"`).Status)
	require.Equal(t, 201, d.enroll("gone", one, `,"id":"one"`).Status)
	require.Equal(t, 204, d.dismiss("one", "?pool=gone").Status)
	require.Equal(t, 200, d.operate("drain", "two").Status)
	d.kill()

	d = startCommand(t, nil, "serve", "-c", config)
	require.Contains(t, d.get("/call/sum").Body, "one GET")
	i := d.listed("one")
	require.Equal(t, 3, i.Limit)
	require.Equal(t, 2, i.Weight)
	require.Equal(t, "draining", d.listed("two").State, "the operator's word, too")
	require.Equal(t, 204, d.dismiss("one", "?pool=gone").Status, "it is known that it left")
	require.Equal(t, 409, d.enroll("sum", two, `,"id":"one"`).Status)
	poll(t, patience, "the other to expire", func() bool {
		var h admin.Health
		d.get(d.Admin+"/health").json(t, &h)
		for _, p := range h.Pools {
			for _, b := range p.Backends {
				if b.ID == "two" && strings.Contains(fmt.Sprint(b.Reasons), "not heard of") {
					return true
				}
			}
		}
		return false
	})
	require.Equal(t, 0, d.stop())
}

// Promise: whoever registers into a configured pool reads with it and gets its
// writes; one that goes silent gets what it missed when it is back.
func TestRegisteringIntoAConfiguredPool(t *testing.T) {
	t.Parallel()
	all, addresses := ledgers(t, 3)
	d := start(t, fmt.Sprintf(`
listeners: [ { name: public, address: "127.0.0.1:0" } ]
admin: { address: "127.0.0.1:0" }
storage: { path: "" }
registration: { enabled: true }
pools:
  - { name: users, registration: true, backends: [ { address: %q, id: fixed } ] }
  - { name: closed, backends: [ { address: %q, id: fixed } ] }
routes:
  - { name: read, match: { methods: [GET], path: / }, proxy: { pool: users } }
  - { name: write, match: { methods: [POST], path: / }, fanout: { pool: users, wait: 100ms, backoff: { base: 50ms, cap: 50ms } } }
`, addresses[0], addresses[0]))
	requireDetail(t, d.enroll("closed", addresses[1], ""), 403, "registration_disabled", "registration: true")
	requireDetail(t, d.enroll("users", addresses[1], `,"id":"fixed"`), 409, "instance_exists", addresses[0])
	requireDetail(t, d.enroll("users", addresses[1], `,"id":"fixed","force":true`), 409, "instance_exists", addresses[0])
	requireDetail(t, d.enroll("users", addresses[1], `,"invoke":"random"`), 409,
		"procedure_exists_with_different_invocation_policy", "roundrobin")
	require.Equal(t, 201, d.enroll("users", addresses[1], `,"id":"w","ttl":"1s"`).Status)
	require.Equal(t, 404, d.get("/call/users").Status, "it has its own routes")

	requireReads(t, d, all, 1, 2)
	require.Equal(t, 201, d.do("POST", "/", strings.NewReader("first")).Status)
	require.Equal(t, 1, all[1].count(http.MethodPost))

	// A write while nobody takes it there, and then the worker is silent.
	require.Equal(t, 200, d.operate("maintenance", "w").Status)
	require.Equal(t, 202, d.do("POST", "/", strings.NewReader("second")).Status)
	poll(t, patience, "it to expire", func() bool { return strings.Contains(fmt.Sprint(d.listed("w").Reasons), "not heard of") })
	require.Equal(t, 200, d.operate("enable", "w").Status)
	require.Equal(t, 201, d.do("POST", "/", strings.NewReader("third")).Status, "it is no member now")
	require.Equal(t, 1, all[1].count(http.MethodPost), "held")
	require.Equal(t, 1.0, d.metric("lb_fanout_deliveries", "pool", "users", "state", "pending"))

	// It is back, at another address: its id is what counts.
	require.Equal(t, 204, d.dismiss("w", "").Status)
	poll(t, patience, "it to leave", func() bool { return d.listed("w") == nil })
	require.Equal(t, 201, d.enroll("users", addresses[2], `,"id":"w"`).Status)
	poll(t, patience, "what it missed to arrive", func() bool { return all[2].count(http.MethodPost) == 1 })
	require.Equal(t, "second", all[2].all()[0].Body)

	// By force, nothing more is kept for it.
	require.Equal(t, 200, d.operate("maintenance", "w").Status)
	require.Equal(t, 202, d.do("POST", "/", strings.NewReader("fourth")).Status)
	require.Equal(t, 204, d.dismiss("w", "?force=true").Status)
	poll(t, patience, "its delivery to be cancelled", func() bool {
		return d.metric("lb_fanout_settled_total", "pool", "users", "state", "cancelled") == 1
	})
	require.Equal(t, 0.0, d.metric("lb_fanout_deliveries", "pool", "users", "state", "pending"))
}

// Promise: the token for registering opens those two paths and no other.
func TestRegistrationToken(t *testing.T) {
	t.Parallel()
	config := strings.Replace(registering(", token_env: WORKER_TOKEN"), `admin: { address: "127.0.0.1:0" }`,
		`admin: { address: "127.0.0.1:0", token_env: ADMIN_TOKEN }`, 1)
	d := start(t, config, "ADMIN_TOKEN=admins-own", "WORKER_TOKEN=workers-own")
	address := named(t, "w")
	for _, token := range []string{"", "Bearer ", "Bearer nonsense", "Basic workers-own"} {
		a := d.enroll("p", address, "", "Authorization", token)
		require.Equal(t, 401, a.Status, token)
		require.Equal(t, 401, d.do("DELETE", d.Admin+"/unregister/w", nil, "Authorization", token).Status)
	}
	worker, operator := []string{"Authorization", "Bearer workers-own"}, []string{"Authorization", "Bearer admins-own"}
	require.Equal(t, 201, d.enroll("p", address, `,"id":"w"`, worker...).Status)
	require.Equal(t, 200, d.enroll("p", address, `,"id":"w"`, operator...).Status)
	for _, path := range []string{"/instances", "/health", "/metrics", "/config", "/audit", "/register", "/unregister/w"} {
		want := 401
		if strings.HasPrefix(path, "/register") || strings.HasPrefix(path, "/unregister") {
			want = 405 // it may know what there is
		}
		require.Equal(t, want, d.do("GET", d.Admin+path, nil, worker...).Status, path)
	}
	require.Equal(t, 401, d.do("POST", d.Admin+"/instances/w/drain", nil, worker...).Status)
	var all []json.RawMessage
	d.do("GET", d.Admin+"/instances", nil, operator...).json(t, &all)
	require.Len(t, all, 1)
	require.NotContains(t, d.do("GET", d.Admin+"/config", nil, operator...).Body+d.log(), "workers-own")
	require.Equal(t, 204, d.do("DELETE", d.Admin+"/unregister/w", nil, worker...).Status)
}
