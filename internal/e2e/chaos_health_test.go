package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/admin"
)

// backendHealth returns what /health says of one backend.
func (d *daemon) backendHealth(id string) admin.BackendHealth {
	d.t.Helper()
	var h admin.Health
	d.get(d.Admin+"/health").json(d.t, &h)
	for _, b := range h.Pools[0].Backends {
		if b.ID == id {
			return b
		}
	}
	require.FailNow(d.t, "no backend "+id)
	return admin.BackendHealth{}
}

// Promise: a backend that hangs, so that the kernel still accepts for it, is
// out after fall × interval + timeout. Until then no GET fails, and when it
// goes on it gets its share again, never more than twice that.
func TestChaosStopped(t *testing.T) {
	t.Parallel()
	const interval, timeout, fall = 200 * time.Millisecond, 100 * time.Millisecond, 3
	processes, addresses := startProcesses(t)
	d := start(t, chaosConfig(", health: { type: http, path: /healthz, interval: 200ms, timeout: 100ms, rise: 2, fall: 3 }"+
		", transport: { response_header: 300ms }", ", retry: { on: [reset, '503', '504'] }", addresses...))
	l := startLoad(d, scaled(200, chaosRate), "")
	l.await(scaled(200, 2*chaosRate))
	for range scaled(1, 10) {
		downs, ups := timesTold(d, "b1", "down"), timesTold(d, "b1", "up")
		stopped := time.Now()
		processes[0].stop()
		poll(t, patience, "the log to say that it is down", func() bool { return timesTold(d, "b1", "down") > downs })
		t.Logf("out after %v", time.Since(stopped).Round(time.Millisecond))
		require.Less(t, time.Since(stopped), fall*interval+timeout+scaled(700*time.Millisecond, 300*time.Millisecond))
		require.False(t, d.instance("b1").Eligible)
		l.await(30)
		processes[0].resume()
		poll(t, patience, "the log to say that it is up", func() bool { return timesTold(d, "b1", "up") > ups })
		back := time.Now()
		l.awaitAnswer("b1")
		l.await(scaled(120, chaosRate))
		requireFairShares(t, since(l.so(), back), "b1", "b2", "b3")
	}
	requireUnharmed(t, l.end())
}

// timesTold returns how often the log told that a backend came into a state.
func timesTold(d *daemon, id, state string) int {
	n := 0
	for _, e := range d.events("backend changed state") {
		if e["backend"] == id && e["to"] == state {
			n++
		}
	}
	return n
}

// Promise: no request comes to a backend before its first probe has passed,
// nor after, as long as it is down: not one.
func TestChaosNoTrafficBeforeTheFirstProbe(t *testing.T) {
	t.Parallel()
	processes, addresses := startProcesses(t)
	processes[1].set("health=503")
	hangs := rawBackend(t, waitForClose) // its probe is never answered, and delays nobody else's
	d := start(t, chaosConfig(", health: { type: http, path: /healthz, interval: 100ms, timeout: 80ms, rise: 1, fall: 2, initial: probe }", "",
		append(addresses, hangs.Addr)...))
	l := startLoad(d, scaled(100, chaosRate), "")
	l.await(scaled(60, 1000))
	require.Equal(t, "down", d.instance("b2").State)
	require.Equal(t, "down", d.instance("b4").State)
	require.Zero(t, processes[1].seen(), "requests to a backend that never passed a probe")
	for _, bytes := range hangs.received() {
		require.NotContains(t, bytes, "/who/")
	}
	processes[1].set("health=200")
	l.awaitAnswer("b2")

	processes[2].set("health=503")
	poll(t, patience, "b3 to be down", func() bool { return !d.instance("b3").Eligible })
	l.await(5) // those that were on their way
	before := processes[2].seen()
	l.await(scaled(60, 1000))
	require.Equal(t, before, processes[2].seen(), "requests to a backend that is down")
	requireUnharmed(t, l.end())
}

const chaosBreaker = ", breaker: { consecutive: 5, open: 500ms, half_open: 3, max_open_share: 0.5 }"

// Promise: a backend that fails fast attracts no traffic. Once its breaker is
// open it gets the counted trials and nothing else, everybody can see why, and
// when it has recovered it serves again.
func TestChaosBreaker(t *testing.T) {
	t.Parallel()
	processes, addresses := startProcesses(t)
	d := start(t, chaosConfig(chaosBreaker, "", addresses...))
	l := startLoad(d, scaled(200, chaosRate), "ms=100") // more than three would come while the first trial runs
	l.await(30)
	require.Zero(t, d.metric("lb_breaker_state", "backend", "b1"))
	processes[0].set("who=500")
	poll(t, patience, "the breaker to open", func() bool { return d.metric("lb_breaker_state", "backend", "b1") > 0 })
	opened, before := time.Now(), processes[0].seen()
	require.Contains(t, strings.ToLower(strings.Join(d.backendHealth("b1").Reasons, "; ")), "breaker")
	require.False(t, d.instance("b1").Eligible)
	require.Positive(t, len(d.events("backend changed state")))

	// Trials come after 0.5 s, then after 1 s, and so on; each time three at most.
	elapse(t, scaled(800*time.Millisecond, 1800*time.Millisecond))
	trials := processes[0].seen() - before
	rounds := scaled(1, 2)
	t.Logf("%d trials in %d rounds", trials, rounds)
	require.Positive(t, trials, "nobody finds out whether it has recovered")
	require.LessOrEqual(t, trials, 3*rounds)
	failed := sum(since(l.so(), opened)).Troubles["500"]
	require.LessOrEqual(t, failed, trials+1, "the client sees what the trials see, and no more")

	processes[0].set("who=200")
	poll(t, patience, "the breaker to close", func() bool { return d.metric("lb_breaker_state", "backend", "b1") == 0 })
	closed := time.Now()
	l.awaitAnswer("b1")
	l.await(scaled(120, chaosRate))
	shots := l.end()
	requireUnharmed(t, shots, "500")
	requireUnharmed(t, since(shots, closed))
	requireFairShares(t, since(shots, closed), "b1", "b2", "b3")
	require.Empty(t, d.backendHealth("b1").Reasons)
}

// Promise: breakers never cut a whole service off: with all backends failing
// at most max_open_share of them are out, and the clients see the backends'
// own answers.
func TestChaosBreakersLeaveSomeIn(t *testing.T) {
	t.Parallel()
	processes, addresses := startProcesses(t)
	d := start(t, chaosConfig(chaosBreaker, "", addresses...))
	for _, p := range processes {
		p.set("who=500")
	}
	l := startLoad(d, scaled(150, chaosRate), "")
	open, began := 0, time.Now()
	poll(t, patience, "breakers to open", func() bool {
		var all []admin.Instance
		d.get(d.Admin+"/instances").json(t, &all)
		now := 0
		for _, i := range all {
			if !i.Eligible {
				now++
			}
		}
		open = max(open, now)
		return time.Since(began) > scaled(1200*time.Millisecond, 10*time.Second)
	})
	require.Equal(t, 1, open, "of three, at a share of 0.5")
	for _, p := range processes {
		p.set("who=200")
	}
	for _, p := range processes {
		l.awaitAnswer(p.Name)
	}
	shots := l.end()
	requireUnharmed(t, shots, fmt.Sprint(http.StatusInternalServerError))
}
