package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"lb/internal/admin"
	"lb/internal/outcome"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a daemon behind a real admin handler: what it holds, and what it was
// asked for.
type world struct {
	writes
	mu        sync.Mutex
	instances []admin.Instance
	changes   []admin.Change
	ready     error
	health    admin.Health
	looked    func(w *world) // after each look at the instances
}

func (w *world) Ready() error            { return w.ready }
func (w *world) Health() admin.Health    { return w.health }
func (w *world) Config() ([]byte, error) { return nil, nil }

func (w *world) Instances() []admin.Instance {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.looked != nil {
		w.looked(w)
	}
	return append([]admin.Instance(nil), w.instances...)
}

func (w *world) Audit(context.Context, int64, int) ([]admin.AuditRecord, error) { return nil, nil }

func (w *world) SetAdmin(_ context.Context, change admin.Change) (admin.Instance, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.changes = append(w.changes, change)
	var found []*admin.Instance
	for i := range w.instances {
		if at := &w.instances[i]; at.ID == change.ID && (change.Pool == "" || change.Pool == at.Pool) {
			found = append(found, at)
		}
	}
	switch len(found) {
	case 0:
		return admin.Instance{}, &outcome.Error{Code: outcome.InstanceNotFound, Detail: fmt.Sprintf("no backend has the id %q", change.ID)}
	case 1:
		found[0].State = map[admin.Word]string{admin.Enabled: "up"}[change.To]
		if found[0].State == "" {
			found[0].State = string(change.To)
		}
		return *found[0], nil
	}
	return admin.Instance{}, &outcome.Error{Code: outcome.AmbiguousInstance, Detail: fmt.Sprintf("%q is in the pools users, api; say which", change.ID)}
}

func newWorld() *world {
	return &world{health: admin.Health{Status: admin.StatusOK}, instances: []admin.Instance{
		{ID: "server2", Pool: "users", Address: "server2:8080", Source: "config", Weight: 1, State: "down",
			Reasons: []string{"probe: status 500", "breaker open"}},
		{ID: "server1", Pool: "users", Address: "server1:8080", Source: "config", Weight: 2, InFlight: 3, State: "up", Eligible: true},
		{ID: "a", Pool: "users", Address: "10.0.0.1:80", Source: "config", Weight: 1, State: "up", Eligible: true},
		{ID: "a", Pool: "api", Address: "10.0.0.2:80", Source: "config", Weight: 1, State: "up", Eligible: true},
		{ID: "[fd00::1]:80", Pool: "api", Address: "[fd00::1]:80", Source: "config", Weight: 1, State: "up", Eligible: true},
	}}
}

// secret is the token of daemons that want one.
const secret = "canary-9d2e"

// serveWorld serves the world's admin listener over TCP and returns its address.
func serveWorld(t *testing.T, w *world, token string) string {
	t.Helper()
	return serveAs(t, admin.New(admin.Options{Token: token}, w, w, http.NotFoundHandler()))
}

func serveAs(t *testing.T, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// lb runs a command in this process, where nothing of the machine's configures
// it, and returns what it printed and the line that main would print.
func lb(t *testing.T, args ...string) (stdout, failure string) {
	t.Helper()
	var out, errs bytes.Buffer
	root := rootCommand()
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&errs)
	if err := root.ExecuteContext(t.Context()); err != nil {
		failure = err.Error()
	}
	require.Empty(t, errs.String())
	require.NotContains(t, out.String()+failure, secret)
	return out.String(), failure
}

// clean makes an empty directory the working one, and clears the environment.
func clean(t *testing.T) {
	t.Helper()
	t.Chdir(t.TempDir())
	t.Setenv(adminEnv, "")
	t.Setenv(tokenEnv, "")
	t.Setenv("BACKEND_POOL", "")
}

func TestInstances(t *testing.T) {
	clean(t)
	at := serveWorld(t, newWorld(), "")
	stdout, failure := lb(t, "instances", "--admin", at)
	require.Empty(t, failure)
	require.Equal(t, `
INSTANCE      POOL   ADDRESS       STATE  IN-FLIGHT  WEIGHT  SOURCE  REASON
a             api    10.0.0.2:80   up     0          1       config  -
[fd00::1]:80  api    [fd00::1]:80  up     0          1       config  -
server2       users  server2:8080  down   0          1       config  probe: status 500; breaker open
server1       users  server1:8080  up     3          2       config  -
a             users  10.0.0.1:80   up     0          1       config  -
`, "\n"+stdout)

	stdout, _ = lb(t, "instances", "--admin", at, "--pool", "api")
	require.Equal(t, 3, strings.Count(stdout, "\n"), stdout)
	stdout, _ = lb(t, "instances", "--admin", at, "-o", "json")
	var all []admin.Instance
	require.NoError(t, json.Unmarshal([]byte(stdout), &all))
	require.Len(t, all, 5)
	require.Equal(t, []string{"probe: status 500", "breaker open"}, []string(all[2].Reasons))

	at = serveWorld(t, new(world), "")
	stdout, _ = lb(t, "instances", "--admin", at, "-o", "json")
	require.Equal(t, "[]\n", stdout)
	stdout, _ = lb(t, "instances", "--admin", at)
	require.Equal(t, "INSTANCE  POOL  ADDRESS  STATE  IN-FLIGHT  WEIGHT  SOURCE  REASON\n", stdout)
}

func TestInstancesOfAPoolThatHasNone(t *testing.T) {
	clean(t)
	w := newWorld()
	w.health.Pools = []admin.PoolHealth{{Name: "users"}, {Name: "api"}, {Name: "workers"}}
	at := serveWorld(t, w, "")
	ask := func(pool string, more ...string) (stdout, failure string) {
		t.Helper()
		return lb(t, append([]string{"instances", "--admin", at, "--pool", pool}, more...)...)
	}
	for _, status := range []string{admin.StatusOK, admin.StatusUnavailable} { // the latter with 503
		w.health.Status = status
		stdout, failure := ask("workers")
		require.Empty(t, failure, "there is such a pool")
		require.Equal(t, 1, strings.Count(stdout, "\n"), stdout)
		stdout, failure = ask("workers", "-o", "json")
		require.Empty(t, failure)
		require.Equal(t, "[]\n", stdout)
		for _, output := range []string{"table", "json"} {
			stdout, failure = ask("billing", "-o", output)
			require.Empty(t, stdout)
			require.Equal(t, `there is no pool "billing"; there are users, api, workers`, failure)
		}
	}
	_, failure := ask("user")
	require.Equal(t, `there is no pool "user"; did you mean "users"?`, failure)
	w.health.Pools = []admin.PoolHealth{{Name: "a\x1b[2J"}}
	_, failure = ask("b")
	require.Equal(t, `there is no pool "b"; there is a\u001b[2J`, failure)
	w.health.Pools = nil
	_, failure = ask("b")
	require.Equal(t, `there is no pool "b"`, failure)

	at = serveAs(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/instances" {
			w.WriteHeader(http.StatusNotFound)
		}
		_, _ = io.WriteString(w, "[]")
	}))
	_, failure = ask("b")
	require.Contains(t, failure, "answered 404 Not Found, but not as an admin listener")
}

func TestChanges(t *testing.T) {
	clean(t)
	w := newWorld()
	at := serveWorld(t, w, "")
	for _, c := range []struct {
		args             string
		change           admin.Change
		stdout, failure  string
		withoutAnAttempt bool
	}{
		{args: "drain server1", change: admin.Change{ID: "server1", To: admin.Draining}, stdout: "server1 (users): draining, 3 in flight\n"},
		{args: "drain server2 --wait 1h", change: admin.Change{ID: "server2", To: admin.Draining}, stdout: "server2 (users): draining, 0 in flight\n"},
		{args: "maintenance a --pool api", change: admin.Change{ID: "a", Pool: "api", To: admin.Maintenance}, stdout: "a (api): maintenance, 0 in flight\n"},
		{args: "enable [fd00::1]:80", change: admin.Change{ID: "[fd00::1]:80", To: admin.Enabled}, stdout: "[fd00::1]:80 (api): up, 0 in flight\n"},
		{args: "drain a", change: admin.Change{ID: "a", To: admin.Draining},
			failure: `409 ambiguous_instance: "a" is in the pools users, api; say which with --pool`},
		{args: "drain b?pool=x&%41;/", failure: "400 bad_request: the path has an empty or a dot segment, a backslash, a NUL or an encoded slash", withoutAnAttempt: true},
		{args: "drain b?pool=x&%41; --pool p&q", change: admin.Change{ID: "b?pool=x&%41;", Pool: "p&q", To: admin.Draining},
			failure: `404 instance_not_found: no backend has the id "b?pool=x&%41;"`},
		{args: "drain", failure: "lb drain takes the id of one backend; lb instances shows them", withoutAnAttempt: true},
		{args: "drain a b", failure: "lb drain takes the id of one backend; lb instances shows them", withoutAnAttempt: true},
		{args: "drain a --wait -1s", failure: "--wait must not be negative", withoutAnAttempt: true},
		{args: "enable a -o yaml", failure: `-o takes table or json, not "yaml"`, withoutAnAttempt: true},
		{args: "enable a --wait 1s", failure: "unknown flag: --wait", withoutAnAttempt: true},
	} {
		w.changes = nil
		stdout, failure := lb(t, append(strings.Fields(c.args), "--admin", at)...)
		require.Equal(t, c.stdout, stdout, c.args)
		require.Equal(t, c.failure, failure, c.args)
		if c.withoutAnAttempt {
			require.Empty(t, w.changes, c.args)
			continue
		}
		c.change.By = localUser() + " (127.0.0.1)"
		require.Equal(t, []admin.Change{c.change}, w.changes, c.args)
	}
	stdout, failure := lb(t, "drain", "server1", "-o", "json", "--admin", at)
	require.Empty(t, failure)
	require.JSONEq(t, `{"instanceId":"server1","pool":"users","address":"server1:8080","source":"config","weight":2,"in_flight":3,
		"limit":0,"queued":0,"state":"draining","eligible":true,"reasons":[],"ewma_ms":0}`, stdout)
}

func TestDrainWaits(t *testing.T) {
	clean(t)
	for name, c := range map[string]struct {
		looked           func(w *world)
		args             []string
		stdout, failures string
	}{
		"until idle": {
			looked: func(w *world) { w.instances[1].InFlight = max(0, w.instances[1].InFlight-2) }, args: []string{"--wait", "1m"},
			stdout: "server1 (users): draining, 3 in flight\nserver1 (users): draining, 0 in flight\n",
		},
		"in JSON, for the last state": {
			looked: func(w *world) { w.instances[1].InFlight = 0 }, args: []string{"--wait", "1m", "-o", "json"},
			stdout: `{
  "instanceId": "server1",
  "pool": "users",
  "address": "server1:8080",
  "source": "config",
  "weight": 2,
  "in_flight": 0,
  "limit": 0,
  "queued": 0,
  "state": "draining",
  "eligible": true,
  "reasons": [],
  "ewma_ms": 0
}
`,
		},
		"as long as it is told": {
			args:   []string{"--wait", "1ms"},
			stdout: "server1 (users): draining, 3 in flight\n", failures: "not idle within 1ms: server1 (users): draining, 3 in flight",
		},
		"until another enables it": {
			looked: func(w *world) { w.instances[1].State = "up" }, args: []string{"--wait", "1m"},
			stdout: "server1 (users): draining, 3 in flight\n", failures: "server1 (users) is not draining any more, it is up",
		},
		"also in maintenance": {
			looked: func(w *world) { w.instances[1].State, w.instances[1].InFlight = "maintenance", 0 }, args: []string{"--wait", "1m"},
			stdout: "server1 (users): draining, 3 in flight\nserver1 (users): maintenance, 0 in flight\n",
		},
		"for the one in its pool": {
			looked: func(w *world) {
				w.instances[0].ID, w.instances[0].Pool, w.instances[1].InFlight = "server1", "api", 0
			}, args: []string{"--wait", "1m"},
			stdout: "server1 (users): draining, 3 in flight\nserver1 (users): draining, 0 in flight\n",
		},
		"until it is gone": {
			looked: func(w *world) { w.instances = w.instances[:1] }, args: []string{"--wait", "1m"},
			stdout: "server1 (users): draining, 3 in flight\n", failures: "server1 (users) is no longer there",
		},
	} {
		w := newWorld()
		w.looked = c.looked
		at := serveWorld(t, w, "")
		stdout, failure := lb(t, append([]string{"drain", "server1", "--admin", at}, c.args...)...)
		require.Equal(t, c.stdout, stdout, name)
		require.Equal(t, c.failures, failure, name)
		require.Len(t, w.changes, 1, "it looks, and does not say it again: %s", name)
	}
}

func TestToken(t *testing.T) {
	clean(t)
	w := newWorld()
	at := serveWorld(t, w, secret)
	_, failure := lb(t, "drain", "server1", "--admin", at)
	require.Equal(t, "401 unauthorized: the daemon wants its admin token: put it into LB_ADMIN_TOKEN", failure)
	t.Setenv(tokenEnv, secret+"x")
	_, failure = lb(t, "drain", "server1", "--admin", at)
	require.Equal(t, "401 unauthorized: what LB_ADMIN_TOKEN holds is not the daemon's admin token", failure)
	t.Setenv(tokenEnv, secret+"\nx") // cannot be sent
	_, failure = lb(t, "drain", "server1", "--admin", at)
	require.Contains(t, failure, "Authorization")
	require.Empty(t, w.changes)

	t.Setenv(tokenEnv, " "+secret+"\n")
	_, failure = lb(t, "drain", "server1", "--admin", at)
	require.Empty(t, failure)
	require.Equal(t, localUser()+" (token, 127.0.0.1)", w.changes[0].By)
}

// The address is the flag's, else the variable's, else the configuration's,
// else the default; each of these wins over those behind it.
func TestAdminAddress(t *testing.T) {
	clean(t)
	write := func(name, address string) string {
		text := fmt.Sprintf("admin: { address: %q }\nlisteners: [{ name: public }]\npools: []\nroutes: []\n", address)
		require.NoError(t, os.WriteFile(name, []byte(text), 0o600))
		return name
	}
	requireAddress := func(want, flag, file string) {
		t.Helper()
		address, err := adminAddress(flag, file)
		require.NoError(t, err)
		require.Equal(t, want, address)
	}
	requireAddress("127.0.0.1:9901", "", "")
	write("lb.yaml", "127.0.0.1:1")
	requireAddress("127.0.0.1:1", "", "")
	other := write("other.yaml", "unix:/run/lb.sock")
	requireAddress("unix:/run/lb.sock", "", other)
	t.Setenv(adminEnv, "127.0.0.1:2")
	requireAddress("127.0.0.1:2", "", other)
	requireAddress("127.0.0.1:3", "127.0.0.1:3", other)

	t.Setenv(adminEnv, "")
	_, failure := lb(t, "instances", "-c", write("off.yaml", ""))
	require.Equal(t, "the configuration has no admin listener: admin.address is empty\n"+
		"(with --admin or LB_ADMIN no configuration is needed)", failure)
	_, failure = lb(t, "instances", "-c", "missing.yaml")
	require.Contains(t, failure, "missing.yaml")
	_, failure = lb(t, "instances", "-c", write("lb.yaml", "nonsense"))
	require.Contains(t, failure, "the configuration has 1 problem:\nadmin.address")
}

func TestNobodyAnswers(t *testing.T) {
	clean(t)
	s := httptest.NewServer(http.NotFoundHandler())
	at := s.Listener.Addr().String()
	s.Close()
	_, failure := lb(t, "instances", "--admin", at)
	require.Equal(t, "cannot connect to the admin listener at "+at+": connect: connection refused; "+
		"is lb running, and is admin.address in its configuration "+at+"?", failure)
	_, failure = lb(t, "instances", "--admin", "unix:missing.sock")
	require.Contains(t, failure, "unix:missing.sock: connect: no such file or directory; is lb running")
	for _, address := range []string{"127.0.0.1", "http://127.0.0.1:9901", ":"} {
		_, failure = lb(t, "instances", "--admin", address)
		require.NotEmpty(t, failure, address)
	}
	_, failure = lb(t, "healthcheck", "--admin", at)
	require.Contains(t, failure, "not ready: cannot connect")
}

func TestAnswersThatTakeTooLong(t *testing.T) {
	c, err := newAdminClient("127.0.0.1:9901", "")
	require.NoError(t, err)
	err = c.unreached(&url.Error{Op: "Get", URL: "http://localhost/", Err: context.DeadlineExceeded})
	require.EqualError(t, err, "127.0.0.1:9901 has not answered within 5s")
}

func TestOverAUnixSocketAndEveryAddress(t *testing.T) {
	clean(t)
	w := newWorld()
	l, err := net.Listen("unix", "lb.sock")
	require.NoError(t, err)
	s := httptest.NewUnstartedServer(admin.New(admin.Options{}, w, w, http.NotFoundHandler()))
	require.NoError(t, s.Listener.Close())
	s.Listener = l
	s.Start()
	defer s.Close()
	path, err := filepath.Abs("lb.sock")
	require.NoError(t, err)
	stdout, failure := lb(t, "drain", "server1", "--admin", "unix:"+path)
	require.Empty(t, failure)
	require.Equal(t, "server1 (users): draining, 3 in flight\n", stdout)
	require.Equal(t, localUser()+" (unix socket)", w.changes[0].By)

	_, port, err := net.SplitHostPort(serveWorld(t, newWorld(), ""))
	require.NoError(t, err)
	for _, address := range []string{":" + port, "0.0.0.0:" + port, "[::]:" + port} {
		_, failure = lb(t, "instances", "--admin", address)
		require.Empty(t, failure, address)
	}
}

func TestAnswersOfStrangers(t *testing.T) {
	clean(t)
	t.Setenv(tokenEnv, secret)
	for name, c := range map[string]struct {
		status int
		body   string
		say    string
	}{
		"a page":          {200, "<html>", "not as an admin listener of this version does"},
		"other JSON":      {200, `{"instances":1}`, "not as an admin listener of this version does"},
		"an error page":   {404, "404 page not found", "answered 404 Not Found, but not as"},
		"a redirect":      {302, "", "answered 302 Found"},
		"nothing":         {200, "", "not as an admin listener"},
		"a control code":  {400, "{\"code\":\"x\\u001b[2J\",\"detail\":\"\\u009b\\n\\r\xff\"}", `400 x\u001b[2J: \u009b\u000a\u000d` + "\ufffd"},
		"too much":        {200, "[" + strings.Repeat(" ", maxAdminAnswer) + "]", "longer than 16MiB"},
		"too much to say": {500, strings.Repeat(" ", maxAdminAnswer+1), "longer than 16MiB"},
	} {
		at := serveAs(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(c.status)
			_, _ = io.WriteString(w, c.body)
		}))
		stdout, failure := lb(t, "instances", "--admin", at)
		require.Empty(t, stdout, name)
		require.Contains(t, failure, c.say, name)
		require.Less(t, len(failure), 1000, name)
	}
	at := serveAs(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	_, failure := lb(t, "instances", "--admin", at)
	require.Equal(t, "no whole answer from "+at+": EOF", failure)
}

// What a backend is called must not move a terminal's cursor.
func TestControlCharactersAreVisible(t *testing.T) {
	clean(t)
	w := &world{instances: []admin.Instance{{
		ID: "a\x1b[2J\nb", Pool: "p\t\u009b", Address: "\u202e", State: "up\r", Source: "\U000e0001", Reasons: []string{"é", "\x7f"},
	}}}
	at := serveWorld(t, w, "")
	stdout, _ := lb(t, "instances", "--admin", at)
	require.Equal(t, `a\u001b[2J\u000ab  p\u0009\u009b  \u202e   up\u000d  0          0       \udb40\udc01  é; \u007f`,
		strings.Split(stdout, "\n")[1])
	require.Equal(t, 2, strings.Count(stdout, "\n"))

	stdout, _ = lb(t, "instances", "--admin", at, "-o", "json")
	for _, r := range strings.ReplaceAll(stdout, "\n", "") {
		require.False(t, r < ' ' || r > '~' && r != 'é', "%q", r)
	}
	var all []admin.Instance
	require.NoError(t, json.Unmarshal([]byte(stdout), &all))
	w.instances[0].Reasons = admin.List[string]{"é", "\x7f"}
	require.Equal(t, w.instances, all)
}

func TestHealthcheck(t *testing.T) {
	clean(t)
	t.Setenv(tokenEnv, secret)
	w := newWorld()
	at := serveWorld(t, w, secret)
	stdout, failure := lb(t, "healthcheck", "--admin", at)
	require.Empty(t, stdout+failure)
	w.ready = errors.New("stopping")
	_, failure = lb(t, "healthcheck", "--admin", at)
	require.Equal(t, "not ready: "+at+" answered 503 Service Unavailable", failure)

	sent := make(chan http.Header, 1)
	at = serveAs(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { sent <- r.Header }))
	_, failure = lb(t, "healthcheck", "--admin", at)
	require.Empty(t, failure)
	require.NotContains(t, <-sent, "Authorization", "who needs no token is not given it")
}

func TestDrainIsInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c, err := newAdminClient("127.0.0.1:1", "")
	require.NoError(t, err)
	_, err = c.waitIdle(ctx, admin.Instance{ID: "a", Pool: "p", InFlight: 1, State: "draining"}, time.Hour)
	require.EqualError(t, err, "interrupted: a (p): draining, 1 in flight")
}
