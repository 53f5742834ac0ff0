package pool

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/balance"
	"lb/internal/outcome"
)

// limited gives each backend some slots, and the pool a queue.
func limited(slots int, l Limits) func(*Options) {
	return func(o *Options) {
		o.Limits = l
		for _, b := range o.Backends {
			b.SetLimit(slots)
		}
	}
}

func policed(t testing.TB, name string) func(*Options) {
	t.Helper()
	policy, err := balance.New(specOf(name))
	require.NoError(t, err)
	return func(o *Options) { o.Policy = policy }
}

// specOf returns a spec of the policy that has what it needs.
func specOf(name string) balance.Spec {
	s := balance.Spec{Name: name}
	switch name {
	case "custom":
		s.Score = "inflight / weight + queue"
	case "hash":
		s.BoundedLoad = 1.25
	}
	return s
}

// request gets a lease for q as a carrier does: it waits only if it is refused.
func (f *fixture) request(ctx context.Context, q *balance.Query, w *Waiter) (Lease, *outcome.Error) {
	if l, ok := f.TryAcquire(q); ok {
		return l, nil
	}
	if e := f.Refusal(q); e.Code != outcome.MaxConcurrency {
		return Lease{}, e
	}
	deadline, _ := ctx.Deadline()
	return f.Wait(q, w, deadline, ctx.Done())
}

// call holds a slot for so long, as soon as it has one.
func (f *fixture) call(held time.Duration) (by string, e *outcome.Error) {
	l, e := f.request(context.Background(), new(balance.Query), new(Waiter))
	if e != nil {
		return "", e
	}
	by = l.Backend.ID
	time.Sleep(held)
	ends(l, outcome.Success)
	return by, nil
}

// entries are what happened, in order.
type entries struct {
	mu   sync.Mutex
	list []string
}

func (e *entries) add(entry string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, entry)
}

func (e *entries) read() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.list)
}

// calls makes n calls, one after the other, and returns how long it took until
// the last one ended, and the order in which they did.
func (f *fixture) calls(t *testing.T, n int, held time.Duration) (took time.Duration, order []int) {
	t.Helper()
	start, done := time.Now(), make(chan int, n)
	for i := range n {
		go func() {
			_, e := f.call(held)
			if e != nil {
				t.Errorf("call %d: %v", i, e)
			}
			done <- i
		}()
		synctest.Wait()
	}
	for range n {
		order = append(order, <-done)
	}
	return time.Since(start), order
}

func TestTwentyCallsOverTwoTimesFourSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 2, limited(4, Limits{Queue: 1000, Timeout: time.Minute}))
		took, order := f.calls(t, 20, 2*time.Second)
		require.Equal(t, 6*time.Second, took)
		for i, call := range order {
			require.Equal(t, i/8, call/8, "dequeued in order: %v", order)
		}
		require.Zero(t, f.Depth())
	})
}

// k workers that do one thing at a time: parallel is roundrobin, sequential is
// single.
func TestParallelAndSequentialWorkers(t *testing.T) {
	for k := 1; k <= 5; k++ {
		for policy, want := range map[string]time.Duration{
			"roundrobin": 5 * time.Second * time.Duration((4+k-1)/k), "single": 20 * time.Second,
		} {
			t.Run(fmt.Sprint(k, policy), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFixture(t, k, policed(t, policy), limited(1, Limits{Queue: 10, Timeout: time.Minute}))
					took, _ := f.calls(t, 4, 5*time.Second)
					require.Equal(t, want, took)
				})
			})
		}
	}
}

func TestTheFifthIsRefusedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 1, limited(4, Limits{Timeout: time.Second}))
		for range 4 {
			go func() { _, _ = f.call(time.Minute) }()
		}
		synctest.Wait()
		start := time.Now()
		var q balance.Query
		_, ok := f.TryAcquire(&q)
		require.False(t, ok)
		require.Equal(t, outcome.MaxConcurrency, f.Refusal(&q).Code)
		_, e := f.Wait(&q, new(Waiter), time.Time{}, nil)
		require.Equal(t, outcome.MaxConcurrency, e.Code)
		require.Contains(t, e.Detail, "limits.queue.limit")
		require.Zero(t, time.Since(start))
		require.Zero(t, f.Depth())
		pass(time.Minute)
	})
}

func TestWhyARequestGetsNoSlot(t *testing.T) {
	const none = -1
	for _, test := range []struct {
		name   string
		limits Limits
		time   time.Duration // until its deadline
		before int           // that wait already
		want   outcome.Code
		after  time.Duration
	}{
		{"nobody may wait", Limits{Timeout: time.Second}, none, 0, outcome.MaxConcurrency, 0},
		{"the queue is full", Limits{Queue: 2, Timeout: time.Hour}, none, 2, outcome.QueueFull, 0},
		{"the pool's timeout", Limits{Queue: 2, Timeout: time.Second}, none, 0, outcome.QueueTimeout, time.Second},
		{"its own deadline", Limits{Queue: 2, Timeout: time.Hour}, 2 * time.Second, 1, outcome.QueueTimeout, 2 * time.Second},
		{"its own deadline alone", Limits{Queue: 2}, 2 * time.Second, 1, outcome.QueueTimeout, 2 * time.Second},
		{"its deadline is over", Limits{Queue: 2, Timeout: time.Hour}, 0, 0, outcome.QueueTimeout, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, 1, limited(1, test.limits))
				held := f.lease(t)
				for range test.before {
					go func() { _, _ = f.call(0) }()
				}
				synctest.Wait()
				require.Equal(t, test.before, f.Depth())
				var deadline time.Time
				start := time.Now()
				if test.time != none {
					deadline = start.Add(test.time)
				}
				var q balance.Query
				_, ok := f.TryAcquire(&q)
				require.False(t, ok)
				_, e := f.Wait(&q, new(Waiter), deadline, nil)
				require.Equal(t, test.want, e.Code, e)
				require.NotEmpty(t, e.Detail)
				require.Equal(t, test.after, time.Since(start))
				ends(held, outcome.Success)
				synctest.Wait()
				require.Zero(t, f.Depth())
				require.Zero(t, f.backends[0].InFlight())
			})
		})
	}
}

func TestAClientThatLeavesLeavesTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 1, limited(1, Limits{Queue: 5, Timeout: time.Hour}))
		held := f.lease(t)
		ctx, leave := context.WithCancel(t.Context())
		var w Waiter
		result := make(chan *outcome.Error)
		go func() {
			_, e := f.request(ctx, new(balance.Query), &w)
			result <- e
		}()
		next := make(chan string)
		synctest.Wait()
		go func() {
			by, _ := f.call(0)
			next <- by
		}()
		synctest.Wait()
		require.Equal(t, 2, f.Depth())
		require.Equal(t, 2, f.Status(f.backends[0]).Queued)
		leave()
		require.Equal(t, outcome.ClientClosed, (<-result).Code)
		require.Equal(t, 1, f.Depth())
		ends(held, outcome.Success)
		require.Equal(t, "a", <-next, "the slot goes to who is still there")
		require.Zero(t, f.backends[0].InFlight())
	})
}

// Whoever leaves at the very moment at which it is granted a lease either takes
// it or lets the next one have it.
func TestNoLeaseIsLostOnAWaiterThatLeaves(t *testing.T) {
	for _, why := range []string{"timeout", "client"} {
		t.Run(why, func(t *testing.T) {
			const clients, each = 20, 300
			l := Limits{Queue: clients, Timeout: time.Hour}
			if why == "timeout" {
				l.Timeout = 20 * time.Microsecond
			}
			f := newFixture(t, 1, limited(1, l))
			done := make(chan struct{})
			for range clients {
				go func() {
					defer func() { done <- struct{}{} }()
					var q balance.Query
					var w Waiter
					for range each {
						ctx, leave := context.WithCancel(context.Background())
						if why == "client" {
							time.AfterFunc(20*time.Microsecond, leave)
						}
						if l, e := f.request(ctx, &q, &w); e == nil {
							time.Sleep(10 * time.Microsecond)
							l.End(outcome.Success, time.Now())
						}
						leave()
						q.Reset()
					}
				}()
			}
			for range clients {
				<-done
			}
			require.Zero(t, f.Depth())
			require.Zero(t, f.backends[0].InFlight())
		})
	}
}

func TestTheDoorRefusesWhoWouldWaitInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 2, limited(2, Limits{Queue: 100, Timeout: 10 * time.Second}))
		full := func() {
			for range 4 {
				go func() { _, _ = f.call(2 * time.Second) }()
			}
			synctest.Wait()
		}
		for range 4 { // 16 samples: too few
			full()
			pass(2 * time.Second)
		}
		full()
		for range 100 {
			go func() { _, _ = f.call(2 * time.Second) }()
		}
		synctest.Wait()
		require.Equal(t, 100, f.Depth(), "until enough is known, everybody may wait")
		pass(time.Minute)
		require.Zero(t, f.Depth())

		for range 8 {
			full()
			pass(2 * time.Second)
		}
		full()
		for range 100 {
			go func() { _, _ = f.call(2 * time.Second) }()
		}
		synctest.Wait()
		// Position × 2 s (as the histogram knows it) / 4 slots is over 10 s from about the 20th on.
		require.InDelta(t, 20, f.Depth(), 3)
		var q balance.Query
		start := time.Now()
		_, e := f.request(t.Context(), &q, new(Waiter))
		require.Equal(t, outcome.QueueTimeout, e.Code)
		require.Zero(t, time.Since(start), "at once")
		require.InDelta(t, 10, e.RetryAfter.Seconds(), 1.5, "when it would have found a slot")
		require.InDelta(t, 10, f.Refusal(&q).RetryAfter.Seconds(), 1.5)

		f.SetLimits(Limits{Queue: 100, Timeout: 10 * time.Second, Total: 2})
		require.InDelta(t, 20, f.Refusal(&q).RetryAfter.Seconds(), 3, "a total is a bound, too")
		f.SetLimit(f.backends[0], 0)
		require.InDelta(t, 20, f.Refusal(&q).RetryAfter.Seconds(), 3)
		f.SetLimits(Limits{Queue: 100, Timeout: 10 * time.Second})
		require.Zero(t, f.Refusal(&q).RetryAfter, "without a bound nothing is known")
		pass(time.Minute)
	})
}

func TestWhoIsThereToWaitFor(t *testing.T) {
	for name, limits := range map[string]Limits{
		"no total": {Queue: 5, Timeout: time.Second}, "a total": {Total: 50, Queue: 5, Timeout: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, 2, limited(1, limits))
				a, b := f.backends[0], f.backends[1]
				leases := []Lease{f.lease(t), f.lease(t)}
				var q balance.Query
				why := func() outcome.Code {
					_, e := f.request(t.Context(), &q, new(Waiter))
					return e.Code
				}
				require.Equal(t, outcome.QueueTimeout, why())
				q.Exclude(a)
				q.Retry = true
				require.Equal(t, outcome.QueueTimeout, why(), "there is b")
				q.Exclude(b)
				require.Equal(t, outcome.NoBackend, why(), "it has tried everybody")
				q.Reset()
				f.SetAdmin(a, backend.Maintenance, "an operator works on it")
				require.Equal(t, outcome.QueueTimeout, why(), "there is b")
				f.SetAdmin(b, backend.Maintenance, "an operator works on it")
				require.Equal(t, outcome.NoBackend, why())
				require.Equal(t, outcome.NoBackend, f.Refusal(&q).Code)
				for _, l := range leases {
					ends(l, outcome.Success)
				}
			})
		})
	}
}

// Who waits stays when the last backend goes, and is served by the first that
// comes.
func TestWaitingOutlivesTheBackends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 1, limited(1, Limits{Queue: 5, Timeout: time.Minute}))
		held := f.lease(t)
		done := make(chan string, 1)
		go func() {
			by, _ := f.call(0)
			done <- by
		}()
		synctest.Wait()
		f.Replace(nil)
		pass(30 * time.Second)
		require.Equal(t, 1, f.Depth())
		f.Replace([]*backend.Backend{{Pool: "p", ID: "n"}})
		require.Equal(t, "n", <-done)
		ends(held, outcome.Success)
	})
}

func TestARedispatchWaitsForAnEligibleBackendRatherThanTryOneThatIsKeptAway(t *testing.T) {
	f := newFixture(t, 3, limited(1, Limits{Queue: 5, Timeout: time.Hour}))
	f.failed(f.backends[0])
	held := []Lease{f.acquire(f.backends[1]), f.acquire(f.backends[2])}
	var q balance.Query
	q.Exclude(f.backends[1])
	q.Retry = true
	_, ok := f.TryAcquire(&q)
	require.False(t, ok)
	require.Equal(t, outcome.MaxConcurrency, f.Refusal(&q).Code)
	ends(held[1], outcome.Success)
	l, ok := f.TryAcquire(&q)
	require.True(t, ok)
	require.Equal(t, "c", l.Backend.ID)
	ends(l, outcome.Success)
	ends(held[0], outcome.Success)
}

func TestOneThatIsPickyDoesNotBlockAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 2, limited(1, Limits{Queue: 5, Timeout: time.Hour}))
		held := []Lease{f.acquire(f.backends[0]), f.acquire(f.backends[1])}
		got := make(chan string, 1)
		for _, tried := range f.backends {
			go func() {
				var q balance.Query
				q.Exclude(tried)
				q.Retry = true
				l, _ := f.request(t.Context(), &q, new(Waiter))
				got <- "tried " + tried.ID
				ends(l, outcome.Success)
			}()
			synctest.Wait()
		}
		ends(held[0], outcome.Success)
		require.Equal(t, "tried b", <-got)
		ends(held[1], outcome.Success)
		require.Equal(t, "tried a", <-got)
	})
}

func TestWhoCannotUseWhatIsFreeIsPassedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 2, limited(1, Limits{Queue: 5, Timeout: time.Hour}))
		a, b := f.backends[0], f.backends[1]
		onA, onB := f.acquire(a), f.acquire(b)
		var order entries
		wait := func(name string, tried *backend.Backend) {
			go func() {
				var q balance.Query
				if tried != nil {
					q.Exclude(tried)
					q.Retry = true
				}
				l, e := f.request(t.Context(), &q, new(Waiter))
				if e != nil {
					t.Error(name, e)
					return
				}
				order.add(name + "@" + l.Backend.ID)
				time.Sleep(time.Second)
				ends(l, outcome.Success)
			}()
			synctest.Wait()
		}
		wait("tried a", a)
		delivery := &Waiter{Granted: func(l Lease) {
			order.add("delivery@" + l.Backend.ID)
			ends(l, outcome.Success)
		}}
		_, ok := f.Acquire(b, delivery)
		require.False(t, ok)
		wait("fresh", nil)
		wait("fresh too", nil)
		require.Equal(t, 3, f.Depth(), "deliveries are not requests")
		require.Equal(t, 4, f.Status(b).Queued)
		require.Equal(t, 3, f.Status(a).Queued)

		ends(onA, outcome.Success)
		synctest.Wait()
		require.Equal(t, []string{"fresh@a"}, order.read())
		pass(time.Second)
		require.Equal(t, []string{"fresh@a", "fresh too@a"}, order.read())
		ends(onB, outcome.Success)
		pass(time.Second)
		require.Equal(t, []string{"fresh@a", "fresh too@a", "tried a@b", "delivery@b"}, order.read())
	})
}

func TestANewcomerDoesNotOvertake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 2, limited(1, Limits{Queue: 5, Timeout: time.Hour}))
		b := f.backends[1]
		for _, b := range f.backends {
			require.True(t, b.TryBegin())
		}
		got := make(chan Lease, 1)
		go func() {
			l, _ := f.request(t.Context(), new(balance.Query), new(Waiter))
			got <- l
		}()
		synctest.Wait()
		b.End() // free, and the queue has not been told yet
		var q balance.Query
		_, ok := f.TryAcquire(&q)
		require.False(t, ok)
		require.Same(t, b, (<-got).Backend)

		delivery := func() *Waiter { return &Waiter{Granted: func(l Lease) { got <- l }} }
		_, ok = f.Acquire(b, delivery())
		require.False(t, ok)
		b.End()
		_, ok = f.Acquire(b, delivery())
		require.False(t, ok)
		require.Same(t, b, (<-got).Backend)
		b.SetLimit(0)
		l, ok := f.TryAcquire(&q)
		require.True(t, ok, "what is left over when all who wait are served is for all")
		require.Same(t, b, l.Backend)
		require.Same(t, b, (<-got).Backend)
	})
}

func TestDeliveriesWaitForTheirBackend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 2, limited(1, Limits{})) // without a queue for requests
		a, b := f.backends[0], f.backends[1]
		f.SetHealth(a, backend.HealthDown, "its checks fail")
		held := f.acquire(a)
		var order entries
		waiters := make([]*Waiter, 4)
		for i := range waiters {
			waiters[i] = &Waiter{Granted: func(l Lease) {
				_ = f.RetryAfter() // no lock is held
				_ = f.Depth()
				order.add(fmt.Sprint(i, l.Backend.ID))
				ends(l, outcome.Success)
			}}
			_, ok := f.Acquire(a, waiters[i])
			require.False(t, ok)
		}
		ends(f.acquire(b), outcome.Success)
		require.True(t, f.Withdraw(waiters[1]))
		require.False(t, f.Withdraw(waiters[1]), "it is not there any more")
		synctest.Wait()
		require.Empty(t, order.read())
		ends(held, outcome.Success)
		synctest.Wait()
		require.Equal(t, []string{"0a", "2a", "3a"}, order.read())
		require.False(t, f.Withdraw(waiters[0]), "it was granted a lease")
		l, ok := f.Acquire(a, waiters[0])
		require.True(t, ok, "a waiter may be used again")
		_, ok = f.Acquire(a, waiters[1])
		require.False(t, ok)
		ends(l, outcome.Success)
		synctest.Wait()
		require.Equal(t, []string{"0a", "2a", "3a", "1a"}, order.read())
		require.Zero(t, a.InFlight()+b.InFlight())
	})
}

func TestTheTotalBoundsRequestsAndDeliveries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 3, func(o *Options) { o.Limits = Limits{Total: 2, Queue: 5, Timeout: time.Hour} })
		one, two := f.lease(t), f.acquire(f.backends[2])
		var order entries
		_, ok := f.Acquire(f.backends[2], &Waiter{Granted: func(l Lease) {
			order.add("delivery")
			time.Sleep(time.Second)
			ends(l, outcome.Success)
		}})
		require.False(t, ok)
		go func() {
			if _, e := f.call(time.Second); e == nil {
				order.add("request")
			}
		}()
		synctest.Wait()
		ends(one, outcome.Success)
		synctest.Wait()
		require.Equal(t, []string{"delivery"}, order.read())
		f.SetLimits(Limits{Total: 3, Queue: 5, Timeout: time.Hour})
		pass(time.Second)
		require.Equal(t, []string{"delivery", "request"}, order.read())
		f.SetLimits(Limits{})
		ends(two, outcome.Success)
		require.Zero(t, f.queue.total.Load(), "whatever the total is by then")

		before := f.lease(t)
		f.SetLimits(Limits{Total: 1})
		during := f.lease(t)
		ends(before, outcome.Success)
		_, ok = f.TryAcquire(new(balance.Query))
		require.False(t, ok, "what began under no total gives nothing back to it")
		ends(during, outcome.Success)
		require.Zero(t, f.queue.total.Load())
	})
}

// Waiters that are used again, by requests and deliveries in turn.
func TestAWaiterIsReadyAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 1, limited(1, Limits{Queue: 5, Timeout: time.Second}))
		var q balance.Query
		granted := make(chan Lease, 1)
		w := Waiter{Granted: func(l Lease) { granted <- l }}
		for range 3 {
			held := f.lease(t)
			_, e := f.request(t.Context(), &q, &w)
			require.Equal(t, outcome.QueueTimeout, e.Code)
			time.AfterFunc(time.Millisecond, func() { ends(held, outcome.Success) })
			l, e := f.request(t.Context(), &q, &w)
			require.Nil(t, e)
			_, ok := f.Acquire(f.backends[0], &w)
			require.False(t, ok)
			ends(l, outcome.Success)
			ends(<-granted, outcome.Success)
		}
		require.Zero(t, f.backends[0].InFlight())
	})
}
