package e2e

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// fullChaos asks for the figures of the promises themselves, which take
// minutes; else about a tenth is run.
var fullChaos = os.Getenv("LB_CHAOS") == "full"

// scaled returns how much of something a test does.
func scaled[T any](some, all T) T {
	if fullChaos {
		return all
	}
	return some
}

// chaosRate is the load of the promises, in requests a second. Without a
// reason it is the same in short runs: rarer requests meet fewer faults.
const chaosRate = 300

// shotPatience bounds one request of a load: who gets nothing for so long has
// got no answer.
const shotPatience = 10 * time.Second

// What can become of a shot, beside an error of lb's own or of a backend,
// which are named by status and code.
const (
	cut    = "cut"    // the head came, the body broke off
	lost   = "lost"   // no head came
	resent = "resent" // the test's client had to send it twice: lb broke a connection off
	wrong  = "wrong"  // a whole answer, but to something else
)

// shot is one request of a load and what became of it.
type shot struct {
	// ID is its number, from 0, in the order in which they were sent.
	ID int
	// At is when it was to be sent, Took how long from then to the last byte.
	At   time.Time
	Took time.Duration
	// Backend is who answered, by what the body says.
	Backend string
	// Trouble is empty for a whole answer with status 200 to this very request.
	Trouble string
	// Err is what the client saw, nil unless the exchange broke off.
	Err error
}

// load sends requests at a constant rate, each on time, however long the
// answers take: a slow answer makes no request come later.
type load struct {
	d      *daemon
	query  string // of each request
	tail   string // of each answer
	client *http.Client

	quit, over chan struct{}
	mu         sync.Mutex
	shots      []shot // those that are over
}

// startLoad begins a load of rate GETs a second. query goes to the backends,
// which know ?pad= and ?ms=. It ends with the test at the latest.
func startLoad(d *daemon, rate int, query string) *load {
	values, err := url.ParseQuery(query)
	require.NoError(d.t, err)
	padding, _ := strconv.Atoi(values.Get("pad")) // 0 without
	l := &load{
		d: d, query: query, tail: strings.Repeat("x", padding) + "\n",
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1000, DisableCompression: true}},
		quit:   make(chan struct{}), over: make(chan struct{}),
	}
	go l.run(time.Second / time.Duration(rate))
	d.t.Cleanup(func() { l.end() })
	return l
}

func (l *load) run(every time.Duration) {
	defer close(l.over)
	var running sync.WaitGroup
	defer running.Wait()
	for id, at := 0, time.Now(); ; id, at = id+1, at.Add(every) {
		select {
		case <-time.After(time.Until(at)): // at once, if it is late
		case <-l.quit:
			return
		}
		running.Go(func() {
			s := l.shoot(id, at)
			l.mu.Lock()
			defer l.mu.Unlock()
			l.shots = append(l.shots, s)
		})
	}
}

// end stops the load, waits for what is under way, and returns all shots in
// the order in which they were sent.
func (l *load) end() []shot {
	select {
	case <-l.quit:
	default:
		close(l.quit)
	}
	<-l.over
	l.client.CloseIdleConnections()
	return l.so()
}

// so returns the shots that are over, in the order in which they were sent.
func (l *load) so() []shot {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.SortedFunc(slices.Values(l.shots), func(a, b shot) int { return a.ID - b.ID })
}

// elapse lets a load go on for a while.
func elapse(t testing.TB, d time.Duration) {
	t.Helper()
	from := time.Now()
	poll(t, d+patience, "time to pass", func() bool { return time.Since(from) >= d })
}

// count returns how many shots are over.
func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.shots)
}

// await waits until so many more shots are over.
func (l *load) await(more int) {
	l.d.t.Helper()
	from := l.count()
	poll(l.d.t, 2*patience, "more answers", func() bool { return l.count() >= from+more })
}

// awaitAnswer waits until a backend has answered a shot that was sent from now on.
func (l *load) awaitAnswer(backend string) {
	l.d.t.Helper()
	since := time.Now()
	poll(l.d.t, 2*patience, backend+" to answer", func() bool {
		return slices.ContainsFunc(l.so(), func(s shot) bool { return s.At.After(since) && s.Backend == backend })
	})
}

func (l *load) shoot(id int, at time.Time) shot {
	s := shot{ID: id, At: at}
	ctx, cancel := context.WithTimeout(context.Background(), shotPatience)
	defer cancel()
	conns := 0 // the transport repeats a GET by itself, which would hide that it failed
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { conns++ }})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/who/%d?%s", l.d.URL, id, l.query), http.NoBody)
	if err != nil {
		panic(err)
	}
	var body []byte
	res, err := l.client.Do(req)
	if err == nil {
		body, err = io.ReadAll(res.Body)
		_ = res.Body.Close()
	}
	s.Took, s.Err = time.Since(at), err
	if conns > 1 {
		s.Trouble = resent
		return s
	}
	s.judge(res, string(body), l.tail)
	return s
}

// judge says what became of the shot, by its answer, whose body ends with tail;
// res is nil without one.
func (s *shot) judge(res *http.Response, body, tail string) {
	words := strings.SplitN(body, " ", 3)
	switch {
	case res == nil:
		s.Trouble = lost
	case s.Err != nil:
		s.Trouble = cut
	case res.StatusCode != http.StatusOK:
		s.Trouble = strings.TrimSpace(fmt.Sprintf("%d %s", res.StatusCode, res.Header.Get("X-LB-Error")))
	case len(words) != 3 || words[1] != fmt.Sprint(s.ID) || words[2] != tail:
		s.Trouble, s.Err = wrong, fmt.Errorf("the answer %.80q", body)
	}
	if res != nil && res.Header.Get("X-LB-Error") == "" && len(words) == 3 {
		s.Backend = words[0]
	}
}

// summary is what a load found.
type summary struct {
	Sent          int
	Troubles      map[string]int
	Backends      map[string]int // who answered how many
	P50, P99, Max time.Duration
}

func sum(shots []shot) summary {
	x := summary{Sent: len(shots), Troubles: make(map[string]int), Backends: make(map[string]int)}
	var took []time.Duration
	for _, s := range shots {
		if took = append(took, s.Took); s.Trouble != "" {
			x.Troubles[s.Trouble]++
		}
		if s.Backend != "" {
			x.Backends[s.Backend]++
		}
	}
	if slices.Sort(took); len(took) > 0 {
		x.P50, x.P99, x.Max = took[len(took)/2], took[len(took)*99/100], took[len(took)-1]
	}
	return x
}

func (x summary) String() string {
	return fmt.Sprintf("%d requests, failed %v, answered by %v, p50 %v, p99 %v, longest %v",
		x.Sent, x.Troubles, x.Backends, x.P50.Round(10*time.Microsecond), x.P99.Round(10*time.Microsecond), x.Max.Round(10*time.Microsecond))
}

// since returns the shots that were sent from then on.
func since(shots []shot, from time.Time) []shot {
	return filter(shots, func(s shot) bool { return !s.At.Before(from) })
}

func filter(shots []shot, keep func(shot) bool) []shot {
	var kept []shot
	for _, s := range shots {
		if keep(s) {
			kept = append(kept, s)
		}
	}
	return kept
}

// requireUnharmed checks that no shot failed, but for the kinds of trouble that
// are expected, and tells the figures.
func requireUnharmed(t testing.TB, shots []shot, expected ...string) {
	t.Helper()
	x := sum(shots)
	t.Log(x)
	for i, bad := range filter(shots, func(s shot) bool { return s.Trouble != "" && !slices.Contains(expected, s.Trouble) }) {
		if i == 0 {
			t.Errorf("failed: %v", x.Troubles)
		}
		if i < 5 {
			t.Errorf("request %d at %s: %s after %v: %v", bad.ID, bad.At.UTC().Format(time.RFC3339Nano), bad.Trouble, bad.Took, bad.Err)
		}
	}
}

// requireFairShares checks that in no stretch of 30 requests a backend answered
// more than twice its share, and that over all each had half of its share.
func requireFairShares(t testing.TB, shots []shot, backends ...string) {
	t.Helper()
	const stretch = 30
	for from := 0; from+stretch <= len(shots); from += stretch {
		for name, n := range sum(shots[from : from+stretch]).Backends {
			require.LessOrEqual(t, n, 2*stretch/len(backends), "%s, from request %d on", name, shots[from].ID)
		}
	}
	shares := sum(shots).Backends
	require.Subset(t, backends, slices.Collect(maps.Keys(shares)))
	for _, name := range backends {
		require.GreaterOrEqual(t, shares[name], len(shots)/len(backends)/2, "%s of %v", name, shares)
	}
}
