package pool

import (
	"fmt"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"

	"lb/internal/balance"
	"lb/internal/outcome"
)

// waiting is a pool that is full, where n requests wait; leave ends that.
func waiting(b *testing.B, policy string, n int) (f *fixture, leave func()) {
	b.Helper()
	f = newFixture(b, 3, policed(b, policy), limited(1, Limits{Queue: n + 1}))
	for _, x := range f.backends {
		require.True(b, x.TryBegin())
	}
	gone, done := make(chan struct{}), make(chan struct{})
	for range n {
		go func() {
			var q balance.Query
			_, _ = f.TryAcquire(&q)
			_, _ = f.Wait(&q, new(Waiter), time.Time{}, gone)
			done <- struct{}{}
		}()
	}
	for f.Depth() < n {
		runtime.Gosched()
	}
	return f, func() {
		close(gone)
		for range n {
			<-done
		}
	}
}

// BenchmarkAcquireAndEnd is what limits and a queue cost a request that need not
// wait.
func BenchmarkAcquireAndEnd(b *testing.B) {
	for _, test := range []struct {
		name string
		with []func(*Options)
	}{
		{"no limits", nil},
		{"limits", []func(*Options){limited(100, Limits{})}},
		{"limits and a queue", []func(*Options){limited(100, Limits{Queue: 100, Timeout: time.Second})}},
		{"limits, a queue and a total", []func(*Options){limited(100, Limits{Total: 200, Queue: 100, Timeout: time.Second})}},
	} {
		b.Run(test.name, func(b *testing.B) {
			f := newFixture(b, 3, test.with...)
			var q balance.Query
			now := time.Now()
			b.ReportAllocs()
			for b.Loop() {
				q.Reset()
				l, _ := f.TryAcquire(&q)
				l.End(outcome.ClientGone, now)
			}
		})
	}
}

// BenchmarkEndBesideWaiters is what it costs to find out, where a thousand wait,
// that none of them can use what has come free.
func BenchmarkEndBesideWaiters(b *testing.B) {
	for _, policy := range balance.Names() {
		b.Run(policy, func(b *testing.B) {
			f, leave := waiting(b, policy, 1000)
			defer leave()
			b.ReportAllocs()
			for b.Loop() {
				f.wake(f.backends[0])
			}
		})
	}
}

// BenchmarkRefused is what it costs to refuse one at the door, where a thousand
// wait.
func BenchmarkRefused(b *testing.B) {
	for _, n := range []int{0, 1000} {
		b.Run(fmt.Sprint(n, " wait"), func(b *testing.B) {
			f, leave := waiting(b, "roundrobin", n)
			defer leave()
			f.SetLimits(Limits{Queue: n})
			var q balance.Query
			var w Waiter
			b.ReportAllocs()
			for b.Loop() {
				q.Reset()
				_, _ = f.TryAcquire(&q)
				_, _ = f.Wait(&q, &w, time.Time{}, nil)
			}
		})
	}
}

// BenchmarkWaiting reports the memory of a request that waits, beside its
// goroutine and its record: the waiter in the record, and what lies on the heap.
func BenchmarkWaiting(b *testing.B) {
	const n = 10_000
	type record struct {
		query  balance.Query
		waiter Waiter
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	var perWaiter float64
	for b.Loop() {
		f := newFixture(b, 1, limited(1, Limits{Queue: n, Timeout: time.Hour}))
		require.True(b, f.backends[0].TryBegin())
		records := make([]record, n)
		start, gone, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
		for i := range records {
			go func() {
				<-start
				_, _ = f.TryAcquire(&records[i].query)
				_, _ = f.Wait(&records[i].query, &records[i].waiter, time.Time{}, gone)
				done <- struct{}{}
			}()
		}
		before := heap()
		close(start)
		for f.Depth() < n {
			runtime.Gosched()
		}
		perWaiter = float64(heap()-before)/n + float64(unsafe.Sizeof(Waiter{}))
		close(gone)
		for range n {
			<-done
		}
	}
	b.ReportMetric(perWaiter, "B/waiter")
}

// A request that waits in a record that was used before allocates no more than
// the quantile that tells how long it may take.
func TestWaitingAllocatesLittle(t *testing.T) {
	f := newFixture(t, 1, limited(1, Limits{Queue: 5, Timeout: time.Hour}))
	var q balance.Query
	var w Waiter
	turn := make(chan Lease)
	go func() {
		for l := range turn {
			for f.Depth() == 0 {
				runtime.Gosched()
			}
			l.End(outcome.ClientGone, time.Now())
		}
	}()
	l := f.lease(t)
	require.LessOrEqual(t, testing.AllocsPerRun(200, func() {
		q.Reset()
		_, _ = f.TryAcquire(&q)
		turn <- l
		l, _ = f.Wait(&q, &w, time.Time{}, nil)
	}), 1.0)
	close(turn)
	l.End(outcome.ClientGone, time.Now())
}
