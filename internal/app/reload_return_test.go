package app

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/fanout"
	"lb/internal/outcome"
)

// returning is a configuration with a pool that may come and go, into which
// backends register.
const returning = `
admin: { address: "127.0.0.1:0" }
storage: { path: "" }
log: { level: error }
shutdown: { drain: 1s }
registration: { enabled: true, allow: [loopback] }
listeners: [ { name: a, address: "127.0.0.1:0" } ]
pools:
  - { name: other, backends: [ { id: one, address: "127.0.0.1:1" } ] }
  - { name: p, registration: true, health: { type: tcp, interval: 24h, timeout: 5s }, backends: [ { id: fixed, address: "127.0.0.2:PORT" } ] }
routes:
  - { name: other, match: { path: /o }, proxy: { pool: other } }
  - { name: p, match: { path: /p }, proxy: { pool: p } }
`

func returningAt(t *testing.T) string {
	t.Helper()
	return strings.ReplaceAll(returning, "PORT", fmt.Sprint(everywhere(t)))
}

// without returns text without the lines that have any of these in them.
func without(text string, parts ...string) string {
	var left strings.Builder
lines:
	for line := range strings.Lines(text) {
		for _, part := range parts {
			if strings.Contains(line, part) {
				continue lines
			}
		}
		left.WriteString(line)
	}
	return left.String()
}

// Who left a pool before it was removed comes back into the pool of that name as
// it is then: the one before hears nothing any more.
func TestRegistersAgainAfterItsPoolWasAway(t *testing.T) {
	text := returningAt(t)
	at := fmt.Sprintf("127.0.0.3:%s", strings.Split(strings.Split(text, "127.0.0.2:")[1], `"`)[0])
	l := run(t, text)
	require.NoError(t, enroll(t, l.App, "p", "guest", at, ""))
	require.NoError(t, dismiss(t, l.App, "p", "guest", false))
	require.True(t, l.registry.away("p", "guest") != nil)
	l.to(t, without(text, "name: p,"))
	l.to(t, text)
	require.NoError(t, enroll(t, l.App, "p", "guest", at, ""))
	b := l.registry.pool("p").member("guest")
	require.Eventually(t, func() bool { return b.State().Health == backend.HealthUp }, 5*time.Second, time.Millisecond)
	l.passTime(t)
	require.Len(t, series(l.App, "lb_backend_requests_total", `backend="guest"`, `"success"`), 1)
}

// Nothing is left of a pool that is removed while somebody is away from it.
func TestNothingStaysOfWhoWasAwayFromAPoolThatIsGone(t *testing.T) {
	text := returningAt(t)
	l := run(t, text)
	require.NoError(t, enroll(t, l.App, "p", "guest", "127.0.0.1:2", ""))
	require.NoError(t, dismiss(t, l.App, "p", "guest", false))
	l.to(t, without(text, "name: p,"))
	require.True(t, l.registry.away("p", "guest") == nil)
	l.passTime(t)
	require.Empty(t, series(l.App, `pool="p"`))
	require.Len(t, l.registry.fixtures, 1)
}

// An id that moves from a registration into the configuration keeps its series
// when the registration is forgotten.
func TestTheConfigurationTakesAnID(t *testing.T) {
	for _, left := range []bool{false, true} {
		t.Run(fmt.Sprint("it had left ", left), func(t *testing.T) {
			text := returningAt(t)
			l := run(t, text)
			require.NoError(t, enroll(t, l.App, "p", "guest", "127.0.0.1:2", ""))
			if left {
				require.NoError(t, dismiss(t, l.App, "p", "guest", false))
			}
			l.to(t, strings.Replace(text, "backends: [ { id: fixed,", `backends: [ { id: guest, address: "127.0.0.4:1" }, { id: fixed,`, 1))
			require.True(t, l.registry.away("p", "guest") == nil)
			b := l.registry.pool("p").member("guest")
			require.Equal(t, sourceConfig, b.Source)
			i, known := l.registered.book.Get("p", "guest")
			require.True(t, known)
			l.drop(i)
			l.forget(i)
			l.passTime(t)
			b.Outcomes.Count(int(outcome.Success))
			require.Len(t, series(l.App, "lb_backend_requests_total", `backend="guest"`, `"success"`, " 1\n"), 1)
			require.Same(t, b, l.registry.pool("p").member("guest"))
			require.NotNil(t, l.registry.fixture(b))
		})
	}
}

// The route of a pool that registration made goes when the configuration has the
// pool, and its series with it, unless it is back by then.
func TestSeriesOfTheRouteOfAMadePool(t *testing.T) {
	for _, back := range []bool{false, true} {
		t.Run(fmt.Sprint("it comes back ", back), func(t *testing.T) {
			text := returningAt(t)
			l := run(t, without(text, "name: p,"))
			require.NoError(t, enroll(t, l.App, "p", "guest", "127.0.0.1:2", ""))
			require.NotEmpty(t, series(l.App, `route="/call/p"`))
			l.to(t, text)
			if back {
				l.to(t, without(text, "name: p,"))
				require.NoError(t, enroll(t, l.App, "p", "guest", "127.0.0.1:2", ""))
			}
			l.passTime(t)
			if back {
				require.NotEmpty(t, series(l.App, `route="/call/p"`))
			} else {
				require.Empty(t, series(l.App, `route="/call/p"`))
			}
		})
	}
}

// Who is new serves as its first probe said, whatever it was before that.
func TestNewBackendsServeAsTheirFirstProbeSaid(t *testing.T) {
	for name, c := range map[string]struct {
		initial, address string
		health           backend.Health
	}{
		"down, and well":  {"down", "127.0.0.4:PORT", backend.HealthUp},
		"probe, and well": {"probe", "127.0.0.4:PORT", backend.HealthUp},
		"up, and dead":    {"up", "127.0.0.4:1", backend.HealthDown},
		"probe, and dead": {"probe", "127.0.0.4:1", backend.HealthDown},
	} {
		t.Run(name, func(t *testing.T) {
			port := fmt.Sprint(everywhere(t))
			text := strings.Replace(strings.ReplaceAll(returning, "PORT", port), "timeout: 5s", "timeout: 5s, rise: 1, fall: 1, initial: "+c.initial, 1)
			l := run(t, text)
			l.to(t, strings.Replace(text, "backends: [ { id: fixed,",
				fmt.Sprintf(`backends: [ { id: new, address: %q }, { id: fixed,`, strings.ReplaceAll(c.address, "PORT", port)), 1))
			s := l.registry.pool("p")
			b := s.member("new")
			require.Eventually(t, func() bool { return b.State().Health == c.health }, 5*time.Second, time.Millisecond)
			if c.health == backend.HealthDown {
				require.Contains(t, fmt.Sprint(s.Status(b).Reasons), "checks fail")
			}
		})
	}
}

// Who comes back into a pool that changed meanwhile is as all others in it.
func TestComesBackIntoAPoolThatHasChanged(t *testing.T) {
	slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(300 * time.Millisecond) }))
	t.Cleanup(slow.Close)
	text := without(returning, "name: p,") + "  - { name: w, match: { path: /w, methods: [POST] }, METHOD: { pool: p } }\n"
	text = strings.Replace(text, "routes:", "  - { name: p, registration: true, transport: { response_header: HEAD }, backends: [] }\nroutes:", 1) +
		"  - { name: p, match: { path: /p }, proxy: { pool: p, timeout: 30s } }\n"
	now := func(method, head string) string {
		return strings.NewReplacer("METHOD", method, "HEAD", head).Replace(text)
	}
	l := run(t, now("proxy", "20s"))
	require.NoError(t, enroll(t, l.App, "p", "guest", slow.Listener.Addr().String(), ""))
	require.NoError(t, dismiss(t, l.App, "p", "guest", false))
	l.to(t, now("fanout", "20ms"))
	require.NoError(t, enroll(t, l.App, "p", "guest", slow.Listener.Addr().String(), ""))
	require.True(t, l.registry.fixture(l.registry.pool("p").member("guest")).delivery.Load() != nil)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get("http://" + l.Addr("a") + "/p")
	require.NoError(t, err)
	_ = res.Body.Close()
	require.Equal(t, http.StatusGatewayTimeout, res.StatusCode)
}

// Who asks for a reload over the admin listener gets its answer, also if that
// listener is another one by then, and nothing else may take any time to end.
func TestAnswerOfAReloadOfTheAdminListener(t *testing.T) {
	text := strings.Replace(returningAt(t), "drain: 1s", "drain: 0s", 1)
	l := run(t, text)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for n := range 20 {
		l.mu.Lock()
		l.text = strings.Replace(text, `"127.0.0.1:0" }`, fmt.Sprintf(`"127.0.0.1:0", hosts: [ h%d ] }`, n), 1)
		l.mu.Unlock()
		res, err := client.Post("http://"+l.Addr("admin")+"/reload", "", nil)
		require.NoError(t, err)
		_ = res.Body.Close()
		require.Equal(t, http.StatusOK, res.StatusCode)
	}
}

// stale is a pool as a write found it that was admitted a moment ago.
type stale struct {
	fanout.Pool
	was []*backend.Backend
}

func (s stale) Members() []*backend.Backend { return s.was }

// A write that was being stored while its backend got another address goes to
// that one, and nothing to what is forgotten.
func TestWriteThatIsAdmittedWhileAnAddressChanges(t *testing.T) {
	var hits [2]atomic.Int32
	var at [2]string
	for i := range hits {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			hits[i].Add(1)
			w.WriteHeader(http.StatusCreated)
		}))
		t.Cleanup(s.Close)
		at[i] = s.Listener.Addr().String()
	}
	text := strings.Replace(without(returning, "name: p,"), "127.0.0.1:1", at[0], 1)
	l := run(t, text)
	plan := l.keptPlan("write", "other")
	plan.Pool, plan.Wait = stale{plan.Pool, plan.Pool.Members()}, 0
	l.to(t, strings.Replace(text, at[0], at[1], 1))
	for range 2 {
		_, err := l.fanout.Submit(t.Context(), plan, fanout.Write{Method: "POST", Target: "/"})
		require.NoError(t, err)
		l.passTime(t)
	}
	require.Eventually(t, func() bool { return hits[1].Load() == 2 }, 5*time.Second, time.Millisecond)
	require.Zero(t, hits[0].Load())
}
