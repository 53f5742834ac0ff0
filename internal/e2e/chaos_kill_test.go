package e2e

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Promise: no GET fails while one backend is well. Under constant load one of
// three backends after the other is killed and started again.
func TestChaosKills(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		kills int
		route string
		again func(l *load, p *process) // waits until the next may be killed
	}{
		"each serves again before the next": {scaled(3, 100), "", func(l *load, p *process) { l.awaitAnswer(p.Name) }},
		// Those that were killed before may still be ejected then, and one
		// request may meet two kills.
		"each runs again before the next": {scaled(10, 100), ", retry: { attempts: 2 }", func(l *load, _ *process) { l.await(5) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			processes, addresses := startProcesses(t)
			d := start(t, chaosConfig("", c.route, addresses...))
			l := startLoad(d, chaosRate, "pad=100&ms=10") // some requests are always under way
			l.await(chaosRate / 3)
			for i := range c.kills {
				p := processes[i%len(processes)]
				p.kill()
				l.await(30)
				p.start()
				c.again(l, p)
			}
			shots := l.end()
			t.Logf("%d kills, %v redispatched, %v retried", c.kills,
				d.metric("lb_retries_total", "outcome", "redispatched"), d.metric("lb_retries_total", "outcome", "retried"))
			requireUnharmed(t, shots, cut) // whose head had gone down
			require.Positive(t, d.metric("lb_retries_total", "outcome", "redispatched"))
		})
	}
}

// Promise: when all backends went down together and come back, each within
// moments of the other, all soon serve: nobody waits for the end of an ejection
// that has grown meanwhile.
func TestChaosTotalOutage(t *testing.T) {
	t.Parallel()
	processes, addresses := startProcesses(t)
	d := start(t, chaosConfig("", "", addresses...))
	l := startLoad(d, chaosRate, "")
	l.await(100)
	for _, p := range processes {
		p.kill()
	}
	down := time.Now()
	// Ejections last 1, 2, 4, … seconds. By then those of 2, or of 16, have
	// begun, and would go on for longer than what is allowed below.
	elapse(t, scaled(1300*time.Millisecond, 18*time.Second))
	for _, p := range processes {
		p.start()
	}
	back := time.Now()
	elapse(t, scaled(1500*time.Millisecond, 2*time.Second))
	well := time.Now()
	l.await(scaled(120, 900))
	shots := l.end()
	t.Log(sum(filter(shots, func(s shot) bool { return s.At.After(down) && s.At.Before(back) })))
	for i, s := range filter(shots, func(s shot) bool { return s.At.After(down) && s.At.Before(back) && s.Trouble != "" }) {
		require.Contains(t, []string{"503 no_backend", "502 backend_reset"}, s.Trouble, "%d: %v", i, s.Err)
	}
	requireUnharmed(t, since(shots, back))
	requireFairShares(t, since(shots, well), "b1", "b2", "b3")
}

// Promise: a GET whose last eligible backend fails it goes to one that is merely
// ejected: that one may be well again, and here it is.
func TestChaosEjectedServeWhenTheLastOneFails(t *testing.T) {
	t.Parallel()
	var proxies []*faultProxy
	var addresses []string
	_, backends := startProcesses(t)
	for _, b := range backends {
		p := startFaultProxy(t, b)
		proxies, addresses = append(proxies, p), append(addresses, p.Addr)
	}
	d := start(t, chaosConfig("", "", addresses...))
	get := func() answer { return d.get("/who/1") }
	for range rounds {
		require.Equal(t, http.StatusOK, get().Status)
	}
	proxies[0].die()
	proxies[1].die()
	for d.instance("b1").Eligible || d.instance("b2").Eligible {
		require.Equal(t, http.StatusOK, get().Status)
	}
	proxies[0].listen()
	proxies[1].listen()
	proxies[2].strike(resetBefore)
	a := get()
	require.Equal(t, http.StatusOK, a.Status, a.Body)
	require.NotContains(t, a.Body, "b3")
	require.Positive(t, proxies[2].Struck.Load(), "it was tried first")
}

// Promise: a dead backend is out after one failed dial: none follows while the
// ejection lasts, and the second when it is over.
func TestChaosOneFailedDial(t *testing.T) {
	t.Parallel()
	processes, addresses := startProcesses(t)
	p := startFaultProxy(t, addresses[0])
	d := start(t, chaosConfig("", "", p.Addr, processes[1].Addr, processes[2].Addr))
	failed := func() float64 { return d.metric("lb_backend_requests_total", "backend", "b1", "outcome", "unsent") }
	for range rounds {
		require.Equal(t, http.StatusOK, d.get("/who/1").Status)
	}
	p.die()
	for failed() == 0 {
		require.Equal(t, http.StatusOK, d.get("/who/1").Status)
	}
	requests, out := 0, time.Now()
	for ; time.Since(out) < 600*time.Millisecond; requests++ { // of the second that it is out
		require.Equal(t, http.StatusOK, d.get("/who/1").Status)
	}
	require.Equal(t, 1.0, failed(), "dials in 0.6 s and %d requests", requests)
	requireTold(t, d, "b1", "up", "ejected", 1)
	poll(t, patience, "a second dial", func() bool {
		return d.get("/who/1").Status == http.StatusOK && failed() == 2
	})
	require.Greater(t, time.Since(out), 900*time.Millisecond)
}
