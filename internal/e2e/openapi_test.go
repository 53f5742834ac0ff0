package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/stretchr/testify/require"

	"lb/internal/admin"
)

// The tokens of the daemons here.
const (
	apiToken         = "canary-51ab07"
	apiRegisterToken = "canary-9e33d2"
)

// api is docs/openapi.yaml, held beside what daemons do.
type api struct {
	t      testing.TB
	doc    *openapi3.T
	router routers.Router
	seen   map[string]bool // "operation status code"
}

// visit is a request to a documented operation, and what comes of it.
type visit struct {
	method, path, body string
	fields             []string
	want               int
	code               string // of the problem document
	// beyond says that the request is wrong in a way that no schema can tell.
	beyond bool
}

// newAPI loads the document. What it says of answers is taken at its word: a key
// that it does not name is a failure. (Users are free to overlook new ones.)
func newAPI(t testing.TB) *api {
	doc, err := openapi3.NewLoader().LoadFromFile("../../docs/openapi.yaml")
	require.NoError(t, err)
	require.NoError(t, doc.Validate(t.Context(), openapi3.EnableExamplesValidation()))
	for _, s := range doc.Components.Schemas {
		if len(s.Value.Properties) > 0 {
			s.Value.AdditionalProperties = openapi3.BoolSchema{Has: new(false)}
		}
	}
	doc.Servers = nil // wherever the daemon is
	router, err := gorillamux.NewRouter(doc)
	require.NoError(t, err)
	return &api{t: t, doc: doc, router: router, seen: make(map[string]bool)}
}

// authenticate says what the document wants of a token.
func authenticate(admin, register string) openapi3filter.AuthenticationFunc {
	wanted := map[string]string{"admin": admin, "registration": register}
	return func(_ context.Context, in *openapi3filter.AuthenticationInput) error {
		if want := wanted[in.SecuritySchemeName]; want != "" && in.RequestValidationInput.Request.Header.Get("Authorization") != "Bearer "+want {
			return errors.New("not this token")
		}
		return nil
	}
}

// visit asks a daemon, and holds request and answer against the document: it
// must find fault with a request exactly if the daemon does, and must have the
// answer.
func (a *api) visit(d *daemon, v visit) answer {
	a.t.Helper()
	at := fmt.Sprintf("%s %s %q", v.method, v.path, v.fields)
	req, err := http.NewRequestWithContext(a.t.Context(), v.method, d.Admin+v.path, strings.NewReader(v.body))
	require.NoError(a.t, err, at)
	for i := 0; i < len(v.fields); i += 2 {
		req.Header.Add(v.fields[i], v.fields[i+1])
	}
	route, params, err := a.router.FindRoute(req)
	require.NoError(a.t, err, at)
	in := &openapi3filter.RequestValidationInput{
		Request: req, PathParams: params, Route: route,
		Options: &openapi3filter.Options{
			IncludeResponseStatus: true, RejectWhenRequestBodyNotSpecified: true, SkipSettingDefaults: true,
			AuthenticationFunc: authenticate(apiToken, apiRegisterToken),
		},
	}
	fault := openapi3filter.ValidateRequest(a.t.Context(), in)

	got := d.do(v.method, d.Admin+v.path, strings.NewReader(v.body), v.fields...)
	require.Equal(a.t, v.want, got.Status, "%s: %s", at, got.Body)
	switch v.want {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		require.True(a.t, v.beyond || fault != nil, "the document finds no fault with %s", at)
	default:
		require.NoError(a.t, fault, at)
	}
	require.NoError(a.t, openapi3filter.ValidateResponse(a.t.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: in, Status: got.Status, Header: got.Header, Options: in.Options,
		Body: io.NopCloser(strings.NewReader(got.Body)),
	}), "%s: %s", at, got.Body)
	if v.code != "" {
		var problem struct{ Code, Detail string }
		got.json(a.t, &problem)
		require.Equal(a.t, v.code, problem.Code, got.Body)
		require.Equal(a.t, v.code, got.Header.Get("X-LB-Error"))
		require.NotEmpty(a.t, problem.Detail)
	}
	a.seen[fmt.Sprintf("%s %d %s", route.Operation.OperationID, got.Status, v.code)] = true
	return got
}

// elsewhere are the codes that are not seen in the tests of an operation: those
// that keep strangers out are in TestDocumentedPathsAreServed, and no test can
// ask for the last.
var elsewhere = []any{"unauthorized", "forbidden", "misdirected_host", "internal_error"}

// requireSeen checks that every answer and every code that the document has for
// some operations was seen.
func (a *api) requireSeen(some func(*openapi3.Operation) bool, but ...string) {
	a.t.Helper()
	for _, o := range a.operations() {
		if !some(o.op) {
			continue
		}
		for status, response := range o.op.Responses.Map() {
			wanted := []any{""}
			if problem := response.Value.Content["application/problem+json"]; problem != nil {
				wanted = problem.Schema.Value.AllOf[1].Value.Properties["code"].Value.Enum
			}
			for _, code := range wanted {
				if key := fmt.Sprintf("%s %s %s", o.op.OperationID, status, code); !slices.Contains(elsewhere, code) && !slices.Contains(but, key) {
					require.True(a.t, a.seen[key], "never answered: %s", key)
				}
			}
		}
	}
}

// operation is one of the document's.
type operation struct {
	path, method string
	op           *openapi3.Operation
}

func (a *api) operations() []operation {
	var all []operation
	for path, item := range a.doc.Paths.Map() {
		for method, op := range item.Operations() {
			all = append(all, operation{path, method, op})
		}
	}
	return all
}

// filled is a path with ids in it.
func filled(path string) string {
	return strings.NewReplacer("{id}", "b2", "{backend}", "b2", "{instanceId}", "b2", "{version}", "1").Replace(path)
}

// right is the fields of who has the admin token.
func right(more ...string) []string {
	return append([]string{"Authorization", "Bearer " + apiToken}, more...)
}

// apiConfig is a configuration with two pools that both have a b1, and a fan-out
// whose deliveries to the second address of main park when it refuses.
func apiConfig(more, other string, main ...string) string {
	return strings.Replace(listeners, `address: "127.0.0.1:0" }`+"\n", `address: "127.0.0.1:0", token_env: ADMIN_TOKEN }`+"\n", 1) +
		strings.TrimSuffix(pools("", main...), "]\n") + fmt.Sprintf(", { name: other, backends: [{ id: b1, address: %q }] }]\n", other) + `routes:
  - { name: write, match: { methods: [POST], path_prefix: / }, fanout: { pool: main, wait: 0s, backoff: { base: 5ms, cap: 10ms, jitter: 1ms } } }
  - { name: read, match: { path_prefix: / }, required: true, proxy: { pool: main } }
` + more
}

var apiEnv = []string{"ADMIN_TOKEN=" + apiToken, "REGISTER_TOKEN=" + apiRegisterToken}

// Promise: docs/openapi.yaml has every method of every path, and none that is
// not served; and what keeps strangers out is the same everywhere.
func TestDocumentedPathsAreServed(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	d := start(t, apiConfig("registration: { enabled: true, token_env: REGISTER_TOKEN }\n", backend(t, always(200)), backend(t, always(200)), backend(t, always(200))), apiEnv...)
	problem := a.doc.Components.Schemas["Problem"].Value
	for path, item := range a.doc.Paths.Map() {
		var methods []string
		for method := range item.Operations() {
			methods = append(methods, method)
			if method == http.MethodGet {
				methods = append(methods, http.MethodHead)
			}
		}
		slices.Sort(methods)
		refused := d.do("PROPFIND", d.Admin+filled(path), nil, right()...)
		require.Equal(t, http.StatusMethodNotAllowed, refused.Status, path)
		require.Equal(t, strings.Join(methods, ", "), refused.Header.Get("Allow"), path)
		var doc any
		refused.json(t, &doc)
		require.NoError(t, problem.VisitJSON(doc))
	}
	for _, path := range []string{"/", "/nothing", "/instances/b1", "/register/b1", "/unregister", "/unregister/"} {
		missing := d.do(http.MethodGet, d.Admin+path, nil, right()...)
		require.Equal(t, http.StatusNotFound, missing.Status, path)
		var doc any
		missing.json(t, &doc)
		require.NoError(t, problem.VisitJSON(doc))
	}

	json := []string{"Content-Type", "application/json"}
	for _, o := range a.operations() {
		v := visit{method: o.method, path: filled(o.path)}
		if o.op.RequestBody != nil {
			v.body, v.fields = `{"pool":"main","address":"127.0.0.1:1"}`, json
		}
		with := func(want int, code string, fields ...string) visit {
			v := v
			v.want, v.code, v.fields = want, code, slices.Concat(v.fields, fields)
			return v
		}
		a.visit(d, with(403, "forbidden", right("Origin", "https://evil.example")...))
		a.visit(d, with(421, "misdirected_host", right("Host", "evil.example")...))
		if o.op.Security != nil && len(*o.op.Security) == 0 {
			require.NotEqual(t, http.StatusUnauthorized, d.do(o.method, d.Admin+o.path, nil).Status)
			continue
		}
		a.visit(d, with(401, "unauthorized"))
		a.visit(d, with(401, "unauthorized", "Authorization", "Bearer canary"))
		a.visit(d, with(401, "unauthorized", "Authorization", "Basic "+apiToken))
		if o.op.Security == nil { // not one that the registration token is good for
			a.visit(d, with(401, "unauthorized", "Authorization", "Bearer "+apiRegisterToken))
			continue
		}
		want, code := 404, "instance_not_found"
		if o.op.RequestBody != nil {
			want, code = 403, "registration_disabled" // into this pool
		}
		a.visit(d, with(want, code, "Authorization", "Bearer "+apiRegisterToken))
		a.visit(d, with(want, code, right()...))
	}
	require.Empty(t, trail(d))
}

// trail is the audit trail of a daemon with a token.
func trail(d *daemon) []admin.AuditRecord {
	d.t.Helper()
	var page admin.AuditPage
	d.do(http.MethodGet, d.Admin+"/audit", nil, right()...).json(d.t, &page)
	return page.Records
}

// Promise: what operators ask for and get is what docs/openapi.yaml says.
func TestOperatorsPathsAreAsDocumented(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	refuses := &ledger{}
	refuses.answer = func(n int, w http.ResponseWriter) {
		if refuses.all()[n].Method == http.MethodPost {
			w.WriteHeader(http.StatusConflict)
		}
	}
	yes, _ := ledgers(t, 1)
	d := start(t, apiConfig("shutdown: { readiness: 1s }\n",
		backend(t, always(200)), backend(t, yes[0]), backend(t, refuses)), apiEnv...)
	get := func(path string, want int, code string) answer {
		return a.visit(d, visit{method: "GET", path: path, fields: right(), want: want, code: code})
	}
	post := func(path string, want int, code string, fields ...string) answer {
		return a.visit(d, visit{method: "POST", path: path, fields: right(fields...), want: want, code: code})
	}
	unsaid := func(method, path string, fields ...string) {
		a.visit(d, visit{method: method, path: path, fields: right(fields...), want: 400, code: "bad_request", beyond: true})
	}
	a.visit(d, visit{method: "GET", path: "/livez", want: 200})
	a.visit(d, visit{method: "GET", path: "/readyz", want: 200})
	get("/health", 200, "")
	get("/instances", 200, "")
	get("/config", 200, "")
	require.Contains(t, get("/metrics", 200, "").Header.Get("Content-Type"), "text/plain")
	statistics := a.visit(d, visit{method: "GET", path: "/metrics", fields: right("Accept", "application/json"), want: 200})
	require.Equal(t, "application/json", statistics.Header.Get("Content-Type"))

	for _, verb := range []string{"drain", "maintenance", "enable"} {
		post("/instances/b2/"+verb, 200, "", "X-LB-Operator", "alice")
		post("/instances/b1/"+verb+"?pool=other", 200, "")
		post("/instances/b1/"+verb, 409, "ambiguous_instance")
		post("/instances/b3/"+verb, 404, "instance_not_found")
		post("/instances/%5Bfd00::1%5D:80/"+verb, 404, "instance_not_found")
		post("/instances/b2/"+verb+"?pool=nobody", 404, "instance_not_found")
		post("/instances/b2/"+verb+"?pool=", 400, "bad_request")
		post("/instances/b2/"+verb, 400, "bad_request", "X-LB-Operator", strings.Repeat("x", 65))
		unsaid("POST", "/instances/b2/"+verb+"?pol=main")
		unsaid("POST", "/instances/b2/"+verb+"?pool=main&pool=main")
	}
	a.visit(d, visit{method: "POST", path: "/instances/b2/drain", body: "{}", fields: right(), want: 400, code: "bad_request"})

	first := get("/audit?limit=1", 200, "")
	require.Contains(t, first.Body, `"next":`)
	require.NotContains(t, first.Body, `"next":null`)
	get("/audit?before=2&limit=1000", 200, "")
	get("/audit", 200, "")
	for _, query := range []string{"limit=0", "limit=1001", "limit=x", "before=0", "before=x", "limit="} {
		get("/audit?"+query, 400, "bad_request")
	}
	unsaid("GET", "/audit?after=1")

	get("/fanout", 200, "")
	var ids []string
	for range 2 {
		write := d.do(http.MethodPost, "/x", strings.NewReader("x"))
		require.Equal(t, http.StatusAccepted, write.Status, write.Body)
		ids = append(ids, write.Header.Get("X-LB-Fanout-Id"))
	}
	for _, id := range ids {
		poll(t, patience, "the delivery to be parked", func() bool {
			return strings.Contains(d.do(http.MethodGet, d.Admin+"/fanout/"+id, nil, right()...).Body, `"state":"parked","reason":"diverged"`)
		})
		get("/fanout/"+id, 200, "")
	}
	require.NotContains(t, get("/fanout?limit=1", 200, "").Body, `"next":null`)
	get("/fanout?state=parked&pool=main&after=1&limit=500", 200, "")
	for _, query := range []string{"state=PARKED", "state=", "pool=", "after=0", "after=x", "limit=0", "limit=501"} {
		get("/fanout?"+query, 400, "bad_request")
	}
	unsaid("GET", "/fanout?before=1")
	get("/fanout/nobody", 404, "fanout_not_found")
	unsaid("GET", "/fanout/"+ids[0]+"?pool=main")
	for n, verb := range []string{"retry", "skip"} {
		to := "/fanout/" + ids[n] + "/deliveries/"
		post(to+"b2/"+verb, 200, "", "X-LB-Operator", "alice")
		post(to+"b1/"+verb, 409, "delivery_settled")
		post(to+"b3/"+verb, 404, "fanout_not_found")
		post("/fanout/nobody/deliveries/b1/"+verb, 404, "fanout_not_found")
		post(to+"b2/"+verb, 400, "bad_request", "X-LB-Operator", "zoë")
		unsaid("POST", to+"b2/"+verb+"?force=true")
	}
	require.NotEmpty(t, trail(d))

	d.terminate()
	poll(t, patience, "the stop to begin", func() bool { return d.do(http.MethodGet, d.Admin+"/readyz", nil).Status == 503 })
	a.visit(d, visit{method: "GET", path: "/readyz", want: 503})
	d.stop()

	// No storage, and no backend.
	d = start(t, apiConfig("storage: { path: \""+configFile(t, "no database")+"\" }\n", backend(t, always(200)), deadAddress(t)), apiEnv...)
	for _, verb := range []string{"drain", "maintenance", "enable"} {
		post("/instances/b1/"+verb+"?pool=main", 503, "storage_unavailable")
	}
	post("/fanout/x/deliveries/b1/retry", 503, "storage_unavailable")
	post("/fanout/x/deliveries/b1/skip", 503, "storage_unavailable")
	require.NotEqual(t, http.StatusOK, d.get("/").Status) // and so b1 is ejected
	get("/health", 503, "")

	// What is read where the storage is damaged is as in an empty one. Only a disk
	// that fails later makes it 503.
	a.requireSeen(func(o *openapi3.Operation) bool { return !registers(o) && !configures(o) },
		"audit 503 storage_unavailable", "listFanouts 503 storage_unavailable", "showFanout 503 storage_unavailable")
}

func registers(o *openapi3.Operation) bool { return slices.Contains(o.Tags, "registration") }

func configures(o *openapi3.Operation) bool { return slices.Contains(o.Tags, "configuration") }

// Promise: how another configuration comes to serve, and what is kept of it, is
// as docs/openapi.yaml says.
func TestReloadsAreAsDocumented(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	first := apiConfig("reload: { watch: false }\n", backend(t, always(200)), backend(t, always(200)))
	socket := filepath.Join(t.TempDir(), "lb.sock")
	second := strings.Replace(first, "listeners: [", fmt.Sprintf("listeners: [{ name: local, address: %q }, ", "unix:"+socket), 1)
	third := first + "shutdown: { drain: 1s }\n"
	file := configFile(t, first)
	write := func(text string) { require.NoError(t, os.WriteFile(file, []byte(text), 0o600)) }
	d := startCommand(t, apiEnv, "serve", "-c", file)
	ask := func(method, path string, want int, code string, fields ...string) answer {
		t.Helper()
		return a.visit(d, visit{method: method, path: path, fields: right(fields...), want: want, code: code})
	}
	unsaid := func(method, path string) {
		a.visit(d, visit{method: method, path: path, fields: right(), want: 400, code: "bad_request", beyond: true})
	}
	refused := func(path, say string) {
		t.Helper()
		got := a.visit(d, visit{method: "POST", path: path, fields: right(), want: 422, code: "config_invalid", beyond: true})
		require.Contains(t, got.Body, say)
	}

	require.Contains(t, ask("POST", "/reload", 200, "", "X-LB-Operator", "alice").Body, `"result":"unchanged"`)
	write(second)
	require.Contains(t, ask("POST", "/reload", 200, "").Body, `"added":["listener local"]`)
	write(third)
	got := ask("POST", "/reload", 200, "").Body
	require.Contains(t, got, `"removed":["listener local"]`)
	require.Contains(t, got, `"path":"shutdown.drain"`)
	write("pools: 7")
	refused("/reload", `"errors":[{"field":"pools"`)
	require.Contains(t, ask("GET", "/health", 200, "").Body, `"error":{`)

	require.NotContains(t, ask("GET", "/config/versions?limit=1", 200, "").Body, `"next":null`)
	ask("GET", "/config/versions?before=2&limit=1000", 200, "")
	require.Equal(t, 3, strings.Count(ask("GET", "/config/versions", 200, "").Body, `"id":`))
	ask("GET", "/config/versions/1", 200, "")
	require.Equal(t, first, ask("GET", "/config/versions/1", 200, "", "Accept", "application/yaml").Body)
	ask("GET", "/config/versions/1/diff", 200, "")
	require.Contains(t, ask("GET", "/config/versions/1/diff?to=2", 200, "").Body, `"added":["listener local"]`)
	ask("GET", "/config/versions/1/diff?to=9", 404, "config_version_not_found")

	require.Contains(t, ask("POST", "/config/versions/1/rollback", 200, "", "X-LB-Operator", "alice").Body, `"result":"applied"`)
	require.NotContains(t, ask("GET", "/health", 200, "").Body, `"error":{`)
	now, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, first, string(now))
	require.NoError(t, os.MkdirAll(filepath.Join(socket, "in the way"), 0o700))
	refused("/config/versions/2/rollback", socket)

	for _, c := range []struct{ method, path string }{
		{"GET", ""}, {"GET", "/diff"}, {"POST", "/rollback"},
	} {
		ask(c.method, "/config/versions/9"+c.path, 404, "config_version_not_found")
		for _, id := range []string{"0", "-1", "x", "1.5"} {
			ask(c.method, "/config/versions/"+id+c.path, 400, "bad_request")
		}
		unsaid(c.method, "/config/versions/1"+c.path+"?pool=main")
	}
	for _, query := range []string{"limit=0", "limit=1001", "limit=x", "before=0", "before=x"} {
		ask("GET", "/config/versions?"+query, 400, "bad_request")
	}
	for _, query := range []string{"to=0", "to=x", "to="} {
		ask("GET", "/config/versions/1/diff?"+query, 400, "bad_request")
	}
	for _, path := range []string{"/reload", "/config/versions/1/rollback"} {
		ask("POST", path, 400, "bad_request", "X-LB-Operator", "zoë")
		a.visit(d, visit{method: "POST", path: path, body: "{}", fields: right(), want: 400, code: "bad_request"})
		unsaid("POST", path+"?force=true")
	}
	require.NoError(t, os.Remove(file))
	ask("POST", "/config/versions/3/rollback", 409, "config_not_writable")

	// What is read where the storage is damaged is as in an empty one, and a reload
	// does not need it. What can be read once can be read again.
	a.requireSeen(configures, "diffConfig 422 config_invalid",
		"reload 503 storage_unavailable", "configVersions 503 storage_unavailable", "configVersion 503 storage_unavailable",
		"diffConfig 503 storage_unavailable", "rollback 503 storage_unavailable")
}

// Promise: what backends say that register themselves, and what they are told,
// is what docs/openapi.yaml says. What the document allows is taken, and what it
// does not allow is not.
func TestRegistrationIsAsDocumented(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	const settings = "registration: { enabled: true, token_env: REGISTER_TOKEN, max_instances: 4 }\n"
	d := start(t, apiConfig(settings, backend(t, always(200)), backend(t, always(200))), apiEnv...)
	one, two := backend(t, always(200)), backend(t, always(200))
	worker := []string{"Authorization", "Bearer " + apiRegisterToken}
	register := func(body string, want int, code string, more ...string) visit {
		return visit{method: "POST", path: "/register", body: strings.NewReplacer("$1", one, "$2", two).Replace(body),
			fields: slices.Concat(worker, []string{"Content-Type", "application/json"}, more), want: want, code: code}
	}
	beyond := func(v visit) visit {
		v.beyond = true
		return v
	}
	unregister := func(path string, want int, code string, more ...string) visit {
		return visit{method: "DELETE", path: "/unregister/" + path, fields: append(more, worker...), want: want, code: code}
	}

	a.visit(d, register(`{"pool":"parallel","address":"$1","id":"w1","invoke":"roundrobin"}`, 201, ""))
	a.visit(d, register(`{"pool":"parallel","address":"$1","id":"w1","weight":2,"concurrency":4,"ttl":"1m30s","labels":{"zone":"a"},
		"health":{"type":"tcp","interval":"1s","timeout":"500ms","rise":1,"fall":2,"initial":"up"},"force":false}`, 200, "", "X-LB-Operator", "w1"))
	a.visit(d, register(`{"pool":"parallel","address":"$2","invoke":"rr"}`, 201, ""))
	a.visit(d, register(`{"pool":"sequential","address":"$1","id":"w1"}`, 201, ""))
	a.visit(d, visit{method: "GET", path: "/instances", fields: right(), want: 200}) // labels, expires_at
	a.visit(d, register(`{"pool":"sequential","address":"$2","id":"w2"}`, 409, "procedure_already_exists"))
	a.visit(d, register(`{"pool":"parallel","address":"$2","id":"w2","invoke":"random"}`, 409, "procedure_exists_with_different_invocation_policy"))
	a.visit(d, register(`{"pool":"parallel","address":"$2","id":"w1"}`, 409, "instance_exists"))
	a.visit(d, register(`{"pool":"parallel","address":"169.254.169.254:80"}`, 403, "address_not_allowed"))
	a.visit(d, register(`{"pool":"main","address":"$1"}`, 403, "registration_disabled"))
	a.visit(d, register(`{"pool":"parallel","address":"$2","id":"w4","invoke":"round-robin"}`, 201, ""))
	a.visit(d, register(`{"pool":"parallel","address":"$2","id":"w5","invoke":"roundrobin"}`, 503, "overloaded"))

	before := d.do(http.MethodGet, d.Admin+"/instances", nil, right()...).Body
	for _, body := range []string{
		`{`, `[]`, `null`, `""`, `{}`, `{"pool":"p"}`, `{"address":"$1"}`,
		`{"pool":1,"address":"$1"}`, `{"pool":"","address":"$1"}`, `{"pool":"p","address":""}`, `{"pool":"p","address":["$1"]}`,
		`{"pool":"p","address":"$1","colour":"red"}`, `{"pool":"p","address":"$1","id":7}`, `{"pool":"p","address":"$1","id":""}`,
		`{"pool":"p","address":"$1","weight":0}`, `{"pool":"p","address":"$1","weight":1001}`, `{"pool":"p","address":"$1","weight":1.5}`,
		`{"pool":"p","address":"$1","weight":"1"}`, `{"pool":"p","address":"$1","concurrency":-1}`, `{"pool":"p","address":"$1","invoke":7}`,
		`{"pool":"p","address":"$1","ttl":90}`, `{"pool":"p","address":"$1","ttl":"soon"}`, `{"pool":"p","address":"$1","force":"yes"}`,
		`{"pool":"p","address":"$1","labels":{"zone":1}}`, `{"pool":"p","address":"$1","labels":["zone"]}`,
		`{"pool":"p","address":"$1","health":{"type":"exec"}}`, `{"pool":"p","address":"$1","health":{"command":["true"]}}`,
		`{"pool":"p","address":"$1","health":{"rise":0}}`, `{"pool":"p","address":"$1","health":{"interval":2}}`, `{"pool":"p","address":"$1","health":"tcp"}`,
	} {
		got := a.visit(d, register(body, 422, "invalid_registration"))
		require.Contains(t, got.Body, `"errors":[`, body)
	}
	for _, body := range []string{
		`{"pool":"p","address":"nowhere"}`, `{"pool":"p","address":"$1","ttl":"1ms"}`, `{"pool":"p","address":"$1","invoke":"fastest"}`,
		`{"pool":"p","address":"$1","invoke":"hash"}`, `{"pool":"p","address":"$1","health":{"interval":"1ms"}}`, `{"pool":"p","address":"$1"} x`,
		`{"pool":"p","pool":"q","address":"$1"}`, `{"Pool":"p","pool":"p","address":"$1"}`,
	} {
		a.visit(d, beyond(register(body, 422, "invalid_registration")))
	}
	a.visit(d, beyond(register(strings.Repeat(" ", 64<<10)+"{}", 413, "body_too_large")))
	a.visit(d, register(`{"pool":"p","address":"$1"}`, 400, "bad_request", "X-LB-Operator", "zoë"))
	text := register(`{"pool":"p","address":"$1"}`, 400, "bad_request")
	text.fields = slices.Concat(worker, []string{"Content-Type", "text/plain"})
	a.visit(d, text)

	a.visit(d, unregister("w1", 409, "ambiguous_instance"))
	a.visit(d, unregister("w1?pool=sequential&force=maybe", 400, "bad_request"))
	a.visit(d, unregister("w1?pool=", 400, "bad_request"))
	a.visit(d, unregister("w9", 404, "instance_not_found"))
	a.visit(d, unregister("w1?pool=nobody", 404, "instance_not_found"))
	a.visit(d, unregister("b2", 404, "instance_not_found")) // it did not register itself
	require.Equal(t, before, d.do(http.MethodGet, d.Admin+"/instances", nil, right()...).Body, "what was refused has changed something")
	a.visit(d, unregister("w1?pool=sequential&force=true", 204, ""))
	a.visit(d, unregister("w1?pool=sequential", 204, ""))
	a.visit(d, unregister("w4?force=false", 204, "", "X-LB-Operator", "w4"))
	a.visit(d, unregister(two, 204, ""))
	require.Equal(t, "w4 (registration token, 127.0.0.1)", trail(d)[1].Who)

	d = start(t, apiConfig(settings+"storage: { path: \""+configFile(t, "no database")+"\" }\n", one, two), apiEnv...)
	a.visit(d, register(`{"pool":"parallel","address":"$1"}`, 503, "storage_unavailable"))
	d = start(t, apiConfig("", one, two), apiEnv...)
	a.visit(d, visit{method: "DELETE", path: "/unregister/w1", fields: right(), want: 403, code: "registration_disabled"})
	// Who is in the book was stored, so a storage that does not work has nobody.
	a.requireSeen(registers, "unregister 503 storage_unavailable")
}
