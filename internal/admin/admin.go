// Package admin is the admin listener: it shows what lb does and takes what
// operators want of it and backends say of themselves, over the small interfaces
// Control, Operator, Registrar and Reloader, from whoever is allowed to.
package admin

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"lb/internal/outcome"
	"lb/internal/problem"
)

// Control is what the admin listener needs to know of the running daemon. Its
// methods are called from any goroutine and must not block.
type Control interface {
	// Ready returns nil when the configuration is applied and every socket is
	// bound, else why not. The reason is shown without a token.
	Ready() error
	// Health returns the state of every pool and its backends.
	Health() Health
	// Instances returns all backends.
	Instances() []Instance
	// Config returns the effective configuration as YAML, without secrets.
	Config() ([]byte, error)
}

// Options says who may use the admin listener.
type Options struct {
	// Token is the bearer token, without outer blanks, that every path but
	// /livez and /readyz asks for. Empty: none is asked for, so the listener
	// must be bound to loopback or to a unix socket.
	Token string
	// RegistrationToken is another one that is good for /register and
	// /unregister and for nothing else; Token is good for them, too. If it is
	// set they ask for a token even where Token is empty. Empty: they are like
	// the other paths.
	RegistrationToken string
	// Registrar takes registrations; nil: they are refused.
	Registrar Registrar
	// Reloader has another configuration served; nil: there are no such paths.
	Reloader Reloader
	// Hosts are the names or addresses, beside those of loopback, that a
	// request's Host may say. A port is ignored, and so is case.
	Hosts []string
	// Logger, if not nil, is told of refused requests and of failures, with
	// pairs of a key and a value. It is never given a credential.
	Logger func(msg string, kv ...any)
}

// Handler answers the admin listener's requests.
type Handler struct {
	guard  guard
	log    func(msg string, kv ...any)
	routes map[string]route // by pattern
}

// route is one path of the admin listener.
type route struct {
	segments []string // of its pattern
	access   access
	methods  map[string]http.HandlerFunc
}

// New returns the handler over c and o; metrics serves /metrics.
func New(opts Options, c Control, o Operator, metrics http.Handler) *Handler {
	h := &Handler{guard: newGuard(opts), log: opts.Logger, routes: make(map[string]route)}
	if h.log == nil {
		h.log = func(string, ...any) {}
	}
	h.add("/livez", everybody, get(live))
	h.add("/readyz", everybody, get(ready(c)))
	h.add("/health", operators, get(h.health(c)))
	h.add("/instances", operators, get(h.instances(c)))
	h.add("/config", operators, get(h.config(c)))
	h.add("/metrics", operators, get(metrics.ServeHTTP))
	h.add("/audit", operators, get(h.audit(o)))
	for verb, to := range verbs {
		h.add("/instances/{id}/"+verb, operators, post(h.change(o, to)))
	}
	h.add("/fanout", operators, get(h.listFanouts(o)))
	h.add("/fanout/{id}", operators, get(h.showFanout(o)))
	h.add("/fanout/{id}/deliveries/{backend}/retry", operators, post(h.changeDelivery(o.RetryDelivery)))
	h.add("/fanout/{id}/deliveries/{backend}/skip", operators, post(h.changeDelivery(o.SkipDelivery)))
	h.add("/register", registrants, post(h.register(opts.Registrar)))
	h.add("/unregister/{instanceId}", registrants, map[string]http.HandlerFunc{http.MethodDelete: h.unregister(opts.Registrar)})
	if opts.Reloader != nil {
		h.addReloader(opts.Reloader)
	}
	return h
}

// add adds a path. What stands in braces is any one segment, which has that name
// for the handlers. No request may match two patterns.
func (h *Handler) add(pattern string, some access, methods map[string]http.HandlerFunc) {
	h.routes[pattern] = route{segments: strings.Split(pattern, "/"), access: some, methods: methods}
}

// find returns the route of a request's path. The path is decoded already; an
// encoded slash, which could stand in an id, does not pass the guard.
func (h *Handler) find(path []string) (to route, known bool) {
	for _, to := range h.routes {
		if slices.EqualFunc(to.segments, path, func(pattern, segment string) bool {
			return pattern == segment || braced(pattern) != "" && segment != ""
		}) {
			return to, true
		}
	}
	return route{}, false
}

// braced returns what stands in the braces of a pattern's segment, "" if it has
// none.
func braced(segment string) string {
	if name, ok := strings.CutPrefix(segment, "{"); ok {
		return strings.TrimSuffix(name, "}")
	}
	return ""
}

// get is the method table of a path that is only read. HEAD is answered as
// GET; net/http leaves the body out.
func get(f http.HandlerFunc) map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{http.MethodGet: f, http.MethodHead: f}
}

// post is the method table of a path that only changes something.
func post(f http.HandlerFunc) map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{http.MethodPost: f}
}

// ServeHTTP answers one request. The checks run in the same order for every
// path and method, before anything tells whether the path exists.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")

	path := strings.Split(r.URL.Path, "/")
	to, known := h.find(path)
	if e := h.guard.check(r, to.access); e != nil {
		if e.Code == outcome.Unauthorized {
			w.Header().Set("WWW-Authenticate", `Bearer realm="lb"`)
		}
		h.refuse(w, r, e)
		return
	}
	if !known {
		h.refuse(w, r, &outcome.Error{Code: outcome.NotFound, Detail: "the admin listener has no such path"})
		return
	}
	serve, ok := to.methods[r.Method]
	if !ok {
		allow := strings.Join(allowed(to), ", ")
		w.Header().Set("Allow", allow)
		h.refuse(w, r, &outcome.Error{Code: outcome.MethodNotAllowed, Detail: "allowed here: " + allow})
		return
	}
	for i, segment := range to.segments {
		if name := braced(segment); name != "" {
			r.SetPathValue(name, path[i])
		}
	}
	serve(w, r)
}

func allowed(to route) []string {
	var methods []string
	for m := range to.methods {
		methods = append(methods, m)
	}
	slices.Sort(methods)
	return methods
}

func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, e *outcome.Error) {
	h.log("admin request refused", "code", string(e.Code), "status", e.Code.Status(),
		"method", clip(r.Method), "path", clip(r.URL.Path), "host", clip(r.Host), "remote", r.RemoteAddr)
	problem.Write(w, e, "")
}

// clip bounds what a client makes the log hold.
func clip(s string) string {
	const most = 128
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

func live(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, "application/json", []byte(`{"status":"ok"}`))
}

func ready(c Control) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if err := c.Ready(); err != nil {
			body, _ := json.Marshal(map[string]string{"status": "not_ready", "reason": err.Error()}) // strings always marshal
			answer(w, http.StatusServiceUnavailable, "application/json", body)
			return
		}
		answer(w, http.StatusOK, "application/json", []byte(`{"status":"ok"}`))
	}
}

func (h *Handler) health(c Control) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		health, status := c.Health(), http.StatusOK
		if health.Status != StatusOK {
			status = http.StatusServiceUnavailable
		}
		h.answerJSON(w, r, status, health)
	}
}

func (h *Handler) instances(c Control) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		h.answerJSON(w, r, http.StatusOK, List[Instance](c.Instances()))
	}
}

func (h *Handler) config(c Control) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := c.Config()
		if err != nil {
			h.fail(w, r, err)
			return
		}
		answer(w, http.StatusOK, "application/yaml", body)
	}
}

func (h *Handler) answerJSON(w http.ResponseWriter, r *http.Request, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	answer(w, status, "application/json", append(body, '\n'))
}

// answer writes a whole answer. A 503 says when to come back, as everywhere.
func answer(w http.ResponseWriter, status int, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that left changes nothing
}

// fail answers 500. The cause goes to the log only: it may hold what /config
// hides.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	h.log("admin request failed", "path", clip(r.URL.Path), "error", err)
	problem.Write(w, &outcome.Error{Code: internal, Detail: "the log tells more", Err: err}, "")
}

// internal is the code of a failure of lb itself; its status is 500.
const internal = outcome.Internal
