package app

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"lb/internal/admin"
	"lb/internal/backend"
	"lb/internal/config"
	"lb/internal/fanout"
	"lb/internal/outcome"
)

// tryOpen returns an App with one pool, p, into which backends may register, and
// its store at path; change, unless it is nil, has the last word. Nothing runs.
func tryOpen(t *testing.T, path string, change func(*config.Config)) (*App, error) {
	t.Helper()
	c := withPolicy("roundrobin")
	c.Pools[0].Backends[0].Address, c.Pools[0].Backends[0].ID = "127.0.0.1:1", "fixed"
	c.Pools[0].Registration = true
	c.Registration.Enabled, c.Storage.Path = true, path
	if change != nil {
		change(c)
	}
	c.Complete()
	a, err := New(t.Context(), Options{Loaded: Loaded{Config: c}, Logs: &Logs{Main: zap.NewNop()}})
	if err == nil {
		t.Cleanup(a.Close)
	}
	return a, err
}

func open(t *testing.T, path string, change func(*config.Config)) *App {
	t.Helper()
	a, err := tryOpen(t, path, change)
	require.NoError(t, err)
	return a
}

func enroll(t *testing.T, a *App, pool, id, address, more string) error {
	t.Helper()
	_, _, err := a.RegisterInstance(t.Context(), fmt.Appendf(nil, `{"pool":%q,"id":%q,"address":%q%s}`, pool, id, address, more), "a worker")
	return err
}

func dismiss(t *testing.T, a *App, pool, id string, force bool) error {
	t.Helper()
	return a.UnregisterInstance(t.Context(), admin.Unregistration{ID: id, Pool: pool, Force: force, By: "a worker"})
}

// membersOf returns the ids of a pool's members, in order.
func membersOf(a *App, pool string) (ids []string) {
	for _, b := range a.registry.pool(pool).Members().All {
		ids = append(ids, b.ID)
	}
	return ids
}

// series returns the lines of /metrics that have all of these in them.
func series(a *App, parts ...string) (found []string) {
	w := httptest.NewRecorder()
	a.metrics.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
lines:
	for line := range strings.Lines(w.Body.String()) {
		for _, part := range parts {
			if !strings.Contains(line, part) {
				continue lines
			}
		}
		found = append(found, line)
	}
	return found
}

// deliver has the fan-out engine of a run until the test ends.
func deliver(t *testing.T, a *App) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = a.fanout.Run(ctx)
	}()
	t.Cleanup(func() {
		a.fanout.Stop(ctx)
		cancel()
		<-ended
	})
}

// write hands the engine a write to a pool, and does not wait for its end.
func write(t *testing.T, a *App, pool string) {
	t.Helper()
	p := a.keptPlan("write", pool)
	p.Wait = 0
	_, err := a.fanout.Submit(t.Context(), p, fanout.Write{Method: "POST", Target: "/"})
	require.NoError(t, err)
}

// The configuration may lose a pool, whose backends then make it anew; lb starts
// also where its policy cannot do without the configuration.
func TestBackendsOfAPoolThatIsConfiguredNoMore(t *testing.T) {
	for policy, stays := range map[config.Policy]bool{
		{Name: "least_conn"}: true, {Name: "ip_hash"}: true, {Name: "hash", Key: "path"}: false, {Name: "custom", Score: "inflight"}: false,
	} {
		t.Run(policy.Name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "lb.db")
			a := open(t, path, func(c *config.Config) { c.Pools[0].Policy = policy })
			require.NoError(t, enroll(t, a, "p", "w", "127.0.0.1:2", ""))
			a.Close()
			a, err := tryOpen(t, path, func(c *config.Config) { c.Pools[0].Name, c.Routes[0].Proxy.Pool = "q", "q" })
			require.NoError(t, err)
			require.Equal(t, stays, a.registry.pool("p") != nil)
			require.NoError(t, enroll(t, a, "p", "w", "127.0.0.1:2", ""))
			require.Equal(t, []string{"w"}, membersOf(a, "p"))
		})
	}
}

// Who comes back after its series were dropped has new ones, and an operator's
// word about it holds.
func TestBackAfterItWasDropped(t *testing.T) {
	for _, pool := range []string{"p", "made"} {
		for _, expires := range []bool{true, false} {
			t.Run(fmt.Sprint(pool, " expired ", expires), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a := open(t, "", nil)
					require.NoError(t, enroll(t, a, pool, "w", "127.0.0.1:2", ""))
					_, err := a.SetAdmin(t.Context(), admin.Change{ID: "w", To: admin.Maintenance, By: "ada"})
					require.NoError(t, err)
					first := a.registry.pool(pool).member("w")
					if !expires {
						require.NoError(t, dismiss(t, a, pool, "w", false))
					}
					for range 3 {
						time.Sleep(8 * time.Minute)
						a.review(t.Context())
					}
					require.Empty(t, series(a, `backend="w"`))
					require.NoError(t, enroll(t, a, pool, "w", "127.0.0.1:2", ""))
					b := a.registry.pool(pool).member("w")
					require.NotSame(t, first, b)
					require.Equal(t, backend.Maintenance, b.State().Admin)
					b.Outcomes.Count(int(outcome.Success))
					require.Len(t, series(a, "lb_backend_requests_total", `backend="w"`, `"success"`, " 1\n"), 1)
					time.Sleep(time.Minute)
					a.review(t.Context())
					require.Empty(t, a.departures.retired)
				})
			})
		}
	}
}

// What was said of a backend that had left before the start holds when it is
// back; until then it has no series, and in the end nothing is left of it.
func TestGoneBeforeTheStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lb.db")
	a := open(t, path, nil)
	for _, id := range []string{"v", "w"} {
		require.NoError(t, enroll(t, a, "p", id, "127.0.0.1:2", ""))
		_, err := a.SetAdmin(t.Context(), admin.Change{ID: id, To: admin.Maintenance, By: "ada"})
		require.NoError(t, err)
		require.NoError(t, dismiss(t, a, "p", id, false))
	}
	a.Close()

	a = open(t, path, nil)
	require.Equal(t, []string{"fixed"}, membersOf(a, "p"))
	require.NotNil(t, a.registry.away("p", "w"), "deliveries may be pending for it")
	require.Empty(t, series(a, `backend="w"`))
	require.NoError(t, enroll(t, a, "p", "w", "127.0.0.1:2", ""))
	require.Equal(t, backend.Maintenance, a.registry.pool("p").member("w").State().Admin)
	require.NotEmpty(t, series(a, "lb_backend_requests_total", `backend="w"`))
	require.NoError(t, dismiss(t, a, "p", "w", false))
	a.Close()

	synctest.Test(t, func(t *testing.T) { // whose clock begins in the year 2000
		time.Sleep(time.Until(time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)))
		a := open(t, path, nil)
		for range 2 {
			a.review(t.Context())
			time.Sleep(time.Minute)
		}
		require.Len(t, a.registry.fixtures, 1)
		require.Empty(t, a.registry.absent)
		require.Empty(t, series(a, `backend="w"`))
		kept, err := a.store.Registrations(t.Context())
		require.NoError(t, err)
		require.Empty(t, kept)
	})
}

// What is pending for one that was evicted is held for a day, as for any other
// that has left, and then cancelled.
func TestWritesForWhoWasEvicted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := open(t, "", func(c *config.Config) {
			c.Pools[0].Backends, c.Pools[0].Policy.Name = nil, "single"
			var f config.Fanout
			f.SetDefaults()
			f.Pool = "p"
			c.Routes = append(c.Routes, config.Route{Name: "write", Match: config.Match{Methods: []string{"POST"}, PathPrefix: "/"}, Fanout: &f})
		})
		deliver(t, a)
		require.NoError(t, enroll(t, a, "p", "old", "127.0.0.1:1", `,"ttl":"24h"`))
		write(t, a, "p")
		time.Sleep(time.Second)
		attempts := series(a, "lb_fanout_attempts_total", `backend="old"`)
		require.NotEmpty(t, attempts)
		require.NoError(t, enroll(t, a, "p", "new", "127.0.0.1:1", `,"ttl":"24h","force":true`))
		require.Equal(t, []string{"new"}, membersOf(a, "p"))
		for range 5 {
			time.Sleep(time.Minute)
			a.review(t.Context())
		}
		require.Equal(t, attempts, series(a, "lb_fanout_attempts_total", `backend="old"`), "nobody goes there")
		require.Equal(t, 1, a.fanout.Counts()[0].Pending)
		for range 26 {
			require.NoError(t, enroll(t, a, "p", "new", "127.0.0.1:1", ""))
			time.Sleep(time.Hour)
			a.review(t.Context())
		}
		require.Zero(t, a.fanout.Counts()[0].Pending)
		time.Sleep(time.Minute)
		a.review(t.Context())
		require.Len(t, a.registry.fixtures, 1)
		require.Empty(t, a.registry.absent)
	})
}

// What could not be cancelled because the storage failed is so later, but not if
// somebody has come back for it.
func TestWritesAreCancelledLater(t *testing.T) {
	for name, back := range map[string]bool{"gone": false, "back": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := open(t, "", nil)
				deliver(t, a)
				require.NoError(t, enroll(t, a, "p", "w", "127.0.0.1:1", `,"ttl":"1m"`))
				write(t, a, "p")
				time.Sleep(2 * time.Minute)
				a.review(t.Context())
				i, _ := a.registered.book.Get("p", "w")
				a.drop(i)
				a.forget(i)
				failing, fail := context.WithCancel(t.Context())
				fail()
				a.cancelRest(failing)
				pending := func() int { return a.fanout.Counts()[0].Pending }
				require.Equal(t, 2, pending(), "for the configured one, too")
				if back {
					require.NoError(t, enroll(t, a, "p", "w", "127.0.0.1:1", ""))
				}
				require.LessOrEqual(t, a.review(t.Context()), stillHeld)
				require.Equal(t, back, pending() == 2)
				require.Empty(t, a.departures.uncancelled)
			})
		})
	}
}

// A pool may be forgotten while writes are pending for those who were in it.
func TestWritesForAForgottenPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := open(t, "", nil)
		deliver(t, a)
		require.NoError(t, enroll(t, a, "made", "w", "127.0.0.1:1", `,"ttl":"1m"`))
		write(t, a, "made")
		time.Sleep(10 * time.Second)
		for range 3 {
			time.Sleep(11 * time.Minute)
			a.review(t.Context())
		}
		require.Nil(t, a.registry.pool("made"))
		require.Equal(t, 1, a.fanout.Counts()[0].Pending)
		time.Sleep(24 * time.Hour)
		a.review(t.Context())
		synctest.Wait()
		require.Zero(t, a.fanout.Counts()[0].Pending)
	})
}

// Who takes the place of another does so without a moment in which there is
// nobody.
func TestPlacesAreTakenWithoutAGap(t *testing.T) {
	a := open(t, "", nil)
	require.NoError(t, enroll(t, a, "made", "w0", "127.0.0.1:1", ""))
	s := a.registry.pool("made")
	done, gaps := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-done:
				gaps <- n
				return
			default:
				if len(s.Members().Eligible) == 0 {
					n++
				}
			}
		}
	}()
	for i := range 100 {
		require.NoError(t, enroll(t, a, "made", fmt.Sprint("w", i/2), fmt.Sprintf("127.0.0.1:%d", 1+i%2), `,"force":true`))
	}
	close(done)
	require.Zero(t, <-gaps)
	require.Equal(t, []string{"w49"}, membersOf(a, "made"))
}

// The order of the members is that of a restart, whoever came back how.
func TestOrderOfMembers(t *testing.T) {
	for name, back := range map[string]func(*testing.T, *App){
		"left and idle": func(t *testing.T, a *App) {
			require.NoError(t, dismiss(t, a, "p", "u", false))
			require.NoError(t, enroll(t, a, "p", "u", "127.0.0.1:2", ""))
		},
		"left and at work": func(t *testing.T, a *App) {
			require.True(t, a.registry.pool("p").member("u").TryBegin())
			require.NoError(t, dismiss(t, a, "p", "u", false))
			require.NoError(t, enroll(t, a, "p", "u", "127.0.0.1:2", ""))
		},
		"expired": func(t *testing.T, a *App) {
			time.Sleep(time.Minute)
			a.review(t.Context())
			require.NoError(t, enroll(t, a, "p", "u", "127.0.0.1:2", ""))
		},
		"expired, at another address": func(t *testing.T, a *App) {
			time.Sleep(time.Minute)
			a.review(t.Context())
			require.NoError(t, enroll(t, a, "p", "u", "127.0.0.1:9", ""))
		},
		"expired and dropped": func(t *testing.T, a *App) {
			for range 2 {
				time.Sleep(11 * time.Minute)
				a.review(t.Context())
			}
			require.NoError(t, enroll(t, a, "p", "u", "127.0.0.1:2", ""))
		},
		"evicted by itself": func(t *testing.T, a *App) {
			require.NoError(t, enroll(t, a, "p", "u", "127.0.0.1:9", `,"force":true`))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "lb.db")
				a := open(t, path, nil)
				for i, ttl := range []string{"1s", "24h", "24h"} {
					id := string("uvw"[i])
					require.NoError(t, enroll(t, a, "p", id, fmt.Sprintf("127.0.0.1:%d", i+2), fmt.Sprintf(`,"ttl":%q`, ttl)))
				}
				back(t, a)
				order := membersOf(a, "p")
				require.Len(t, order, 4)
				a.Close()
				require.Equal(t, order, membersOf(open(t, path, nil), "p"))
			})
		})
	}
}

// One that comes and goes is probed by one loop at a time.
func TestProbesOfWhoComesAndGoes(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	a := open(t, "", nil)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	a.startProbes(ctx, &running)
	const check = `,"health":{"type":"tcp","interval":"100ms","timeout":"100ms"}`
	for range 100 {
		require.NoError(t, enroll(t, a, "p", "w", l.Addr().String(), check))
		time.Sleep(rand.N(600 * time.Microsecond)) // in the middle of a probe, or not
		require.NoError(t, dismiss(t, a, "p", "w", false))
	}
	require.NoError(t, enroll(t, a, "p", "w", l.Addr().String(), check))
	b := a.registry.pool("p").member("w")
	require.Eventually(t, func() bool { return b.State().Health == backend.HealthUp }, 5*time.Second, time.Millisecond)
	cancel()
	running.Wait()
}

// Who registers says how long its probes take; clients do not wait for that at
// the start.
func TestTheStartDoesNotWaitForRegisteredBackends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "lb.db")
		a := open(t, path, nil)
		require.NoError(t, enroll(t, a, "p", "w", "127.0.0.1:2", `,"health":{"type":"tcp","interval":"24h","timeout":"24h"}`))
		a.Close()
		a = open(t, path, nil)
		began := time.Now()
		a.firstRound(t.Context()) // the probe does not even begin
		require.Equal(t, registeredAtStart, time.Since(began))
	})
}

// By force, later: that is told in the audit trail, too, once.
func TestCutAfterItHasLeft(t *testing.T) {
	a := open(t, "", nil)
	require.NoError(t, enroll(t, a, "p", "w", "127.0.0.1:2", ""))
	b := a.registry.pool("p").member("w")
	require.True(t, b.TryBegin())
	for _, force := range []bool{false, false, true, true} {
		require.NoError(t, dismiss(t, a, "p", "w", force))
	}
	require.True(t, a.registry.transports.For(b).IsCut())
	records, err := a.Audit(t.Context(), 0, 10)
	require.NoError(t, err)
	var trail []string
	for _, r := range records {
		trail = append(trail, r.Action+" "+r.Detail)
	}
	require.Equal(t, []string{"unregister by force", "unregister drained", "register at 127.0.0.1:2"}, trail)
}

// While nothing can be stored nothing is changed: whoever is there stays and may
// say so, and nobody else comes or goes. Time goes on all the same.
func TestRegistrationsWithoutADisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := open(t, filepath.Join(t.TempDir(), "lb.db"), nil)
		require.NoError(t, enroll(t, a, "made", "u", "127.0.0.1:2", `,"invoke":"roundrobin","ttl":"1m"`))
		require.NoError(t, enroll(t, a, "made", "v", "127.0.0.1:3", `,"invoke":"roundrobin","ttl":"1h"`))
		s, generation := a.registry.pool("made"), a.decider.Snapshot().Generation
		require.NoError(t, a.store.Close())

		unchanged := func(err error) {
			t.Helper()
			var e *outcome.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, outcome.StorageUnavailable, e.Code)
			require.Equal(t, generation, a.decider.Snapshot().Generation)
			require.Equal(t, []string{"u", "v"}, membersOf(a, "made"))
			require.Len(t, s.Members().Eligible, 2)
		}
		unchanged(enroll(t, a, "made", "w", "127.0.0.1:4", `,"invoke":"roundrobin"`))
		unchanged(enroll(t, a, "made", "w", "127.0.0.1:4", `,"invoke":"single","force":true`))
		unchanged(enroll(t, a, "made", "u", "127.0.0.1:4", `,"invoke":"roundrobin","force":true`))
		unchanged(enroll(t, a, "made", "u", "127.0.0.1:2", `,"concurrency":3`))
		unchanged(enroll(t, a, "other", "u", "127.0.0.1:2", ""))
		require.Nil(t, a.registry.pool("other"))
		unchanged(dismiss(t, a, "made", "u", false))
		unchanged(dismiss(t, a, "made", "u", true))
		require.False(t, a.registry.transports.For(s.member("u")).IsCut())
		require.Zero(t, s.member("u").Limit())

		time.Sleep(50 * time.Second)
		require.NoError(t, enroll(t, a, "made", "u", "127.0.0.1:2", ""), "a sign of life")
		time.Sleep(50 * time.Second)
		a.review(t.Context())
		require.Len(t, s.Members().Eligible, 2)
		time.Sleep(time.Minute)
		a.review(t.Context())
		require.Equal(t, backend.Expired, s.member("u").State().Presence)
		require.Len(t, s.Members().Eligible, 1)
	})
}

// A document that a later version has stored, or that a careless hand has
// changed, keeps lb from nothing.
func TestStoredRegistrationsThatDoNotFit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lb.db")
	a := open(t, path, nil)
	for _, id := range []string{"health", "policy", "nonsense", "well", "fixed2"} {
		require.NoError(t, enroll(t, a, "pool-of-"+id, id, "127.0.0.1:2", `,"health":{"type":"http"}`))
	}
	rows, err := a.store.Registrations(t.Context())
	require.NoError(t, err)
	for i := range rows {
		document := string(rows[i].Document)
		switch rows[i].Instance {
		case "health":
			document = strings.Replace(document, `"GET"`, `"NO GOOD"`, 1)
		case "policy":
			document = strings.Replace(document, `"single"`, `"of_tomorrow"`, 1)
		case "nonsense":
			document = "{"
		}
		rows[i].Document = []byte(document)
	}
	require.NoError(t, a.store.SaveRegistrations(t.Context(), rows, nil))
	a.Close()
	a, err = tryOpen(t, path, nil)
	require.NoError(t, err)
	require.NotNil(t, a.registry.pool("pool-of-well"))
	for _, id := range []string{"health", "policy", "nonsense"} {
		require.Nil(t, a.registry.pool("pool-of-"+id), id)
		require.NoError(t, enroll(t, a, "pool-of-"+id, id, "127.0.0.1:2", ""))
	}
}

// What comes while lb stops starts nothing that nobody ends.
func TestChangesWhileLBStops(t *testing.T) {
	for range 10 {
		a := open(t, "", func(c *config.Config) {
			c.Listeners, c.Routes, c.Admin.Address = nil, nil, ""
		})
		ctx, cancel := context.WithCancel(t.Context())
		asking, hangUp := context.WithCancel(t.Context())
		entered := make(chan struct{})
		var workers sync.WaitGroup
		for w := range 4 {
			workers.Go(func() {
				for i := 0; ; i++ {
					body := fmt.Appendf(nil, `{"pool":"p","id":"%d-%d","address":"127.0.0.1:1","health":{"type":"tcp"}}`, w, i)
					if _, _, err := a.RegisterInstance(asking, body, "a worker"); err != nil {
						return
					}
					if w == 0 && i == 2 {
						close(entered)
					}
				}
			})
		}
		go func() {
			<-entered
			cancel()
		}()
		require.NoError(t, a.Run(ctx))
		hangUp()
		workers.Wait()
	}
}
