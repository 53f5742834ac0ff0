package exchange

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/outcome"
	"lb/internal/pool"
)

// first begins a request for /app and takes its first step.
func (w *world) first() (*Exchange, Kind) {
	x, _ := w.begin(ask("GET /app"))
	return x, w.Next(x, outcome.Outcome{})
}

// trying begins a request that gets a backend at once.
func (w *world) trying(t *testing.T) *Exchange {
	t.Helper()
	x, kind := w.first()
	require.Equal(t, Try, kind)
	return x
}

// waiting is a request that waits on a goroutine of its own.
type waiting struct {
	*Exchange
	leave func()
	kind  chan Kind
}

// wait lets x, which is to wait, wait until it gets on or is left.
func (w *world) wait(x *Exchange) *waiting {
	gone := make(chan struct{})
	p := &waiting{Exchange: x, leave: func() { close(gone) }, kind: make(chan Kind, 1)}
	go func() { p.kind <- w.Wait(x, gone) }()
	synctest.Wait()
	return p
}

// queued begins a request that has to wait.
func (w *world) queued(t *testing.T) *waiting {
	t.Helper()
	x, kind := w.first()
	require.Equal(t, Wait, kind)
	p := w.wait(x)
	require.Empty(t, p.kind)
	return p
}

// waits returns the count and the sum of lb_queue_wait_seconds.
func (w *world) waits(t *testing.T, count string, sum string) {
	t.Helper()
	rec := httptest.NewRecorder()
	w.metrics.Handler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	require.Contains(t, rec.Body.String(), `lb_queue_wait_seconds_count{pool="p"} `+count+"\n")
	require.Contains(t, rec.Body.String(), `lb_queue_wait_seconds_sum{pool="p"} `+sum+"\n")
}

func TestTheFifthIsRefusedAtOnce(t *testing.T) {
	for name, o := range map[string]options{
		"four slots of one":  {backends: 1, slots: 4},
		"two slots of two":   {backends: 2, slots: 2},
		"four slots overall": {backends: 3, limits: pool.Limits{Total: 4}},
	} {
		w := newWorld(t, o)
		var busy []*Exchange
		for range 4 {
			busy = append(busy, w.trying(t))
		}
		fifth, kind := w.first()
		require.Equal(t, Fail, kind, name)
		require.Equal(t, outcome.MaxConcurrency, fifth.Failure.Code)
		require.Contains(t, fifth.Failure.Detail, "limits.per_backend")
		require.Equal(t, outcome.Refused, fifth.Outcome.Class)
		w.Finish(fifth)
		require.Equal(t, map[outcome.Code]int{outcome.MaxConcurrency: 1}, w.refused())
		require.Zero(t, w.counts, "no backend is to blame")

		w.Finish(busy[2])
		w.Finish(w.trying(t))
		w.waits(t, "0", "0")
	}
}

func TestThoseWhoWaitAreServedInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, options{backends: 2, slots: 1, limits: pool.Limits{Queue: 3, Timeout: time.Hour}})
		busy := []*Exchange{w.trying(t), w.trying(t)}
		var line []*waiting
		for range 3 {
			line = append(line, w.queued(t))
		}
		late, kind := w.first()
		require.Equal(t, Wait, kind)
		require.Equal(t, Fail, w.Wait(late, nil))
		require.Equal(t, outcome.QueueFull, late.Failure.Code)
		require.Contains(t, late.Failure.Detail, "limits.queue.limit")
		require.Equal(t, outcome.Refused, late.Outcome.Class)
		w.Finish(late)

		for i, p := range line {
			time.Sleep(time.Second)
			w.Finish(append(busy, line[0].Exchange)[i])
			require.Equal(t, Try, <-p.kind)
			synctest.Wait()
			for _, behind := range line[i+1:] {
				require.Empty(t, behind.kind)
			}
			require.Equal(t, time.Duration(i+1)*time.Second, p.Queued)
			require.Equal(t, Pass, w.Next(p.Exchange, outcome.FromStatus(200)))
		}
		for _, p := range line[1:] {
			w.Finish(p.Exchange)
		}
		require.Zero(t, w.inFlight())
		require.Equal(t, map[outcome.Code]int{outcome.QueueFull: 1}, w.refused())
		w.waits(t, "3", "6")
	})
}

func TestTheWaitIsBounded(t *testing.T) {
	for name, c := range map[string]struct{ queue, route, want time.Duration }{
		"by the queue's timeout": {time.Second, time.Minute, time.Second},
		"by the route's timeout": {time.Minute, time.Second, time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, options{backends: 1, slots: 1, limits: pool.Limits{Queue: 9, Timeout: c.queue}})
			w.app().Timeout = c.route
			busy := w.trying(t)
			p := w.queued(t)
			require.Equal(t, Fail, <-p.kind)
			require.Equal(t, c.want, time.Since(p.Start), name)
			require.Equal(t, outcome.QueueTimeout, p.Failure.Code)
			require.Contains(t, p.Failure.Detail, "limits.queue.timeout")
			require.Equal(t, outcome.Refused, p.Outcome.Class)
			w.Finish(p.Exchange)
			w.Finish(busy)
			require.Equal(t, map[outcome.Code]int{outcome.QueueTimeout: 1}, w.refused())
			w.waits(t, "1", "1")
		})
	}
}

func TestAClientThatLeavesTheQueueFreesItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, options{backends: 1, slots: 1, limits: pool.Limits{Queue: 1, Timeout: time.Hour}})
		busy := w.trying(t)
		left := w.queued(t)
		time.Sleep(time.Second)
		left.leave()
		require.Equal(t, Fail, <-left.kind)
		require.Equal(t, outcome.ClientClosed, left.Failure.Code)
		require.Equal(t, outcome.ClientGone, left.Outcome.Class)
		w.Finish(left.Exchange)

		next := w.queued(t)
		w.Finish(busy)
		require.Equal(t, Try, <-next.kind)
		w.Finish(next.Exchange)
		require.Zero(t, w.inFlight())
		require.Empty(t, w.refused(), "nobody was refused")
		w.waits(t, "2", "1")
	})
}

// However an attempt ends, its slot is the next one's.
func TestEveryEndFreesTheSlot(t *testing.T) {
	for _, end := range []outcome.Class{
		outcome.Success, outcome.Failure, outcome.Unsent, outcome.Starved, outcome.Reset, outcome.Invalid, outcome.Timeout,
		outcome.Cut, outcome.ClientGone, outcome.ClientFault, outcome.Withdrawn, outcome.Undecided,
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, options{backends: 1, slots: 1, limits: pool.Limits{Queue: 1, Timeout: time.Hour}})
			busy := w.trying(t)
			p := w.queued(t)
			switch end {
			case outcome.Undecided: // the carrier panicked
			case outcome.Cut:
				require.Equal(t, Pass, w.Next(busy, outcome.FromStatus(200)))
				busy.Outcome.Class = end
			default:
				w.Next(busy, class(end))
			}
			w.Finish(busy)
			require.Equal(t, Try, <-p.kind, "%s", end)
			w.Finish(p.Exchange)
			require.Zero(t, w.inFlight())
		})
	}
}

func TestARedispatchWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, options{backends: 2, slots: 1, limits: pool.Limits{Queue: 1, Timeout: time.Hour}})
		x, busy := w.trying(t), w.trying(t)
		require.Equal(t, w.backends[0], x.Backend)
		require.Equal(t, Wait, w.Next(x, class(outcome.Unsent)))
		require.Zero(t, w.backends[0].InFlight(), "it holds no slot while it waits for another")
		p := w.wait(x)
		time.Sleep(time.Second)
		w.Finish(busy)
		require.Equal(t, Try, <-p.kind)
		require.Equal(t, w.backends[1], x.Backend)
		require.Equal(t, time.Second, x.Queued)
		require.Equal(t, 2, x.Attempts)
		require.Equal(t, Pass, w.Next(x, outcome.FromStatus(200)))
		w.Finish(x)
		require.Zero(t, w.inFlight())
		require.Equal(t, map[string]int{"redispatched": 1}, x.retriesTotal())
		require.Equal(t, 1, w.counts[outcome.Unsent])
		require.Equal(t, 1, w.counts[outcome.Success])
	})
}

func TestARedispatchThatMayNotWait(t *testing.T) {
	w := newWorld(t, options{backends: 2, slots: 1})
	x, busy := w.trying(t), w.trying(t)
	require.Equal(t, Fail, w.Next(x, class(outcome.Unsent)))
	require.Equal(t, outcome.MaxConcurrency, x.Failure.Code)
	require.Equal(t, outcome.Unsent, x.Outcome.Class)
	require.Equal(t, map[string]int{"no_backend": 1}, x.retriesTotal())
	w.Finish(x)
	w.Finish(busy)
	require.Zero(t, w.inFlight())
}

// Else a request whose dial failed would stand in its own way.
func TestTheLastSlotOverallIsForTheNextAttemptToo(t *testing.T) {
	for _, failed := range []outcome.Class{outcome.Unsent, outcome.Reset} {
		w := newWorld(t, options{backends: 2, perSecond: 9, retry: RetryPolicy{Attempts: 1, Reset: true}, limits: pool.Limits{Total: 1}})
		x := w.trying(t)
		require.Equal(t, Try, w.Next(x, class(failed)), "%s", failed)
		w.Finish(x)
		require.Zero(t, w.inFlight())
	}
}

func TestARetryDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		retry := RetryPolicy{Attempts: 1, Reset: true, Statuses: map[int]bool{503: true}}
		w := newWorld(t, options{backends: 2, perSecond: 9, retry: retry, slots: 1, limits: pool.Limits{Queue: 9, Timeout: time.Hour}})
		answered, busy := w.trying(t), w.trying(t)
		require.Equal(t, Pass, w.Next(answered, outcome.FromStatus(503)), "a bad answer is better than a wait")
		require.EqualValues(t, 2, w.inFlight(), "its body is still to come")
		w.Finish(answered)
		reset := w.trying(t)
		require.Equal(t, Fail, w.Next(reset, class(outcome.Reset)))
		require.Equal(t, outcome.BackendReset, reset.Failure.Code)
		w.Finish(reset)
		w.Finish(busy)
		require.Zero(t, w.inFlight())
		w.waits(t, "0", "0")
	})
}

// What the carrier finds out about the body before the wait is the end of it.
func TestWhatEndsBeforeTheWait(t *testing.T) {
	for end, code := range map[outcome.Class]outcome.Code{
		outcome.ClientFault: outcome.BadRequest, outcome.ClientGone: outcome.ClientClosed, outcome.Timeout: outcome.BackendTimeout,
	} {
		w := newWorld(t, options{backends: 1, slots: 1, limits: pool.Limits{Queue: 9}})
		busy := w.trying(t)
		x, kind := w.first()
		require.Equal(t, Wait, kind)
		require.Equal(t, Fail, w.Next(x, class(end)))
		require.Equal(t, code, x.Failure.Code)
		w.Finish(x)
		require.EqualValues(t, 1, w.inFlight())
		require.Zero(t, w.counts)
		w.Finish(busy)
	}
}
