package pool

import (
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/balance"
	"lb/internal/outcome"
)

// hooked is a policy that does something in the middle of each pick.
func hooked(pick func(q *balance.Query, serving []*backend.Backend) *backend.Backend) func(*Options) {
	return func(o *Options) {
		o.Policy = func(serving []*backend.Backend, _ balance.Picker) balance.Picker {
			return hook(func(q *balance.Query) *backend.Backend { return pick(q, serving) })
		}
	}
}

type hook func(*balance.Query) *backend.Backend

func (h hook) Pick(q *balance.Query) *backend.Backend { return h(q) }

// The classic lost wake-up: a slot comes free after a request was refused, or
// while it tries for the last time.
func TestASlotThatComesFreeOnTheWayIntoTheQueue(t *testing.T) {
	t.Run("before", func(t *testing.T) {
		f := newFixture(t, 1, limited(1, Limits{Queue: 5}))
		held := f.lease(t)
		var q balance.Query
		_, ok := f.TryAcquire(&q)
		require.False(t, ok)
		ends(held, outcome.Success)
		l, e := f.Wait(&q, new(Waiter), time.Time{}, nil)
		require.Nil(t, e)
		ends(l, outcome.Success)
	})
	t.Run("meanwhile", func(t *testing.T) {
		var held Lease
		picks, ended := 0, make(chan struct{})
		f := newFixture(t, 1, hooked(func(q *balance.Query, serving []*backend.Backend) *backend.Backend {
			b := serving[0]
			if q.Take(b) {
				return b
			}
			if picks++; picks == 2 { // TryAcquire was refused, this is the last try
				go func() {
					held.End(outcome.Success, time.Now())
					close(ended)
				}()
				for range 10_000 { // it ends, and finds somebody waiting or nobody
					select {
					case <-ended:
						return nil
					default:
						runtime.Gosched()
					}
				}
			}
			return nil
		}), limited(1, Limits{Queue: 5, Timeout: 5 * time.Second}))
		held = f.acquire(f.backends[0])
		l, e := f.request(t.Context(), new(balance.Query), new(Waiter))
		require.Nil(t, e)
		require.Equal(t, 2, picks)
		<-ended
		ends(l, outcome.Success)
	})
}

// A pick that fails has held for a moment what another one missed.
func TestWhatAPickGivesBackIsNotMissed(t *testing.T) {
	granted := make(chan Lease, 1)
	var f *fixture
	f = newFixture(t, 1, hooked(func(*balance.Query, []*backend.Backend) *backend.Backend {
		_, ok := f.Acquire(f.backends[0], &Waiter{Granted: func(l Lease) { granted <- l }})
		require.False(t, ok, "the pick has the last place in the total")
		return nil
	}), func(o *Options) { o.Limits.Total = 1 })
	_, ok := f.TryAcquire(new(balance.Query))
	require.False(t, ok)
	ends(<-granted, outcome.Success)
}
