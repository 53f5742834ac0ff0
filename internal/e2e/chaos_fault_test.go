package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// chaosFault is one way in which one of three backends can fail its requests.
type chaosFault struct {
	name   string
	strike func(p *faultProxy)
	// seen is what the client gets for each spoiled answer: empty where another
	// backend answers in its place.
	seen string
	// slow: the answer is whole, and only takes its time.
	slow bool
}

func spoil(f fault) func(*faultProxy) { return func(p *faultProxy) { p.strike(f) } }

var chaosFaults = []chaosFault{
	{name: "refused", strike: (*faultProxy).die},
	{name: "blackhole", strike: (*faultProxy).vanish},
	{name: "no answer", strike: spoil(silence)},
	{name: "reset before the answer", strike: spoil(resetBefore)},
	{name: "end before the answer", strike: spoil(finBefore)},
	{name: "head that drips", strike: spoil(dripHead(20 * time.Millisecond))}, // for longer than response_header
	{name: "late", strike: spoil(late(150 * time.Millisecond)), slow: true},
	{name: "body that drips", strike: spoil(dripBody(2 * time.Millisecond)), slow: true},
	// What lb cannot make good: the head has gone down, or, by the contract,
	// nonsense is not retried.
	{name: "reset in the answer", strike: spoil(resetMidway), seen: cut},
	{name: "end in the answer", strike: spoil(finMidway), seen: cut},
	{name: "nonsense", strike: spoil(nonsense), seen: "502 backend_invalid"},
}

// Promise: whatever one of three backends does, no request fails that could be
// tried elsewhere, a broken answer looks broken, each answer is for the request
// that it came to, and requests to the others do not notice.
func TestChaosFaults(t *testing.T) {
	t.Parallel()
	for _, f := range chaosFaults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			// A third of the requests fails at first, which is more than the
			// budget that is the default would retry for long.
			d, p := behindProxy(t, ", transport: { connect: 200ms, response_header: 500ms }, retry_budget: { ratio: 1 }")
			shots := struckLoad(d, p, f, scaled(150, chaosRate), scaled(30, chaosRate), scaled(60, 1500))
			trouble := sum(shots).Troubles
			requireUnharmed(t, shots, f.seen)
			t.Logf("%d answers spoiled; attempts at b1 that did not succeed: %v", p.Struck.Load(),
				d.metric("lb_backend_requests_total", "backend", "b1")-d.metric("lb_backend_requests_total", "backend", "b1", "outcome", "success"))
			if f.seen != "" {
				require.Equal(t, map[string]int{f.seen: int(p.Struck.Load())}, trouble, "each spoiled answer, and no other")
			}
			require.Zero(t, p.Misused.Load(), "bytes sent over a connection that had failed")
			if f.slow {
				require.Zero(t, d.metric("lb_retries_total"), "to be slow is no failure")
			}
			requireOthersUntouched(t, d, shots)
		})
	}
}

// behindProxy starts a daemon over three backends, b1 behind a proxy. pool is
// further keys of the pool.
func behindProxy(t *testing.T, pool string) (*daemon, *faultProxy) {
	processes, addresses := startProcesses(t)
	p := startFaultProxy(t, addresses[0])
	return start(t, chaosConfig(pool, "", p.Addr, processes[1].Addr, processes[2].Addr)), p
}

// struckLoad runs a load over which, after so many requests, a fault comes.
func struckLoad(d *daemon, p *faultProxy, f chaosFault, rate, before, after int) []shot {
	l := startLoad(d, rate, "pad=100")
	l.await(before)
	f.strike(p)
	l.await(after)
	return l.end()
}

// requireOthersUntouched checks that the requests which b2 or b3 got in first
// place were answered as soon as ever. It stops the daemon.
func requireOthersUntouched(t *testing.T, d *daemon, shots []shot) {
	d.stop()
	others := make(map[string]bool) // by path
	for _, line := range d.accessLog() {
		others[line["path"].(string)] = line["backend"] != "b1" && line["attempts"] == 1.0
	}
	untouched := filter(shots, func(s shot) bool { return others[fmt.Sprintf("/who/%d", s.ID)] })
	x := sum(untouched)
	t.Logf("the others: %v", x)
	require.Empty(t, x.Troubles)
	require.GreaterOrEqual(t, x.Sent, len(shots)/2, "who got a request in first place")
	require.Less(t, x.P50, 100*time.Millisecond)
	if fullChaos { // a short run has too few requests, and a busy machine under it
		require.Less(t, x.P99, 250*time.Millisecond)
	}
}

// Promise: with a breaker a backend that fails, in whatever way, fails a few
// requests and then gets none, and the budget that is the default lasts until
// then.
func TestChaosBreakerEndsFaults(t *testing.T) {
	t.Parallel()
	const consecutive = 5
	rate := scaled(200, chaosRate)
	for _, f := range chaosFaults {
		if f.slow {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			d, p := behindProxy(t, ", transport: { connect: 200ms, response_header: 300ms }, breaker: { consecutive: 5, open: 60s }")
			shots := struckLoad(d, p, f, rate, scaled(120, rate), scaled(100, 1500)) // first a budget is saved up
			requireUnharmed(t, shots, f.seen)
			// Those under way when it opened have met the fault too: no more
			// than what was sent to it in a second.
			atOnce := rate / 3
			require.LessOrEqual(t, int(p.Struck.Load()), consecutive+atOnce)
			require.LessOrEqual(t, sum(shots).Troubles[f.seen], int(p.Struck.Load()))
			require.NotEqual(t, "up", d.instance("b1").State)
			require.NotContains(t, sum(shots[len(shots)-20:]).Backends, "b1")
		})
	}
}
