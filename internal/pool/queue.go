package pool

import (
	"time"

	"lb/internal/backend"
	"lb/internal/balance"
	"lb/internal/outcome"
)

// Limits bound what is in flight in a pool.
type Limits struct {
	// Total is how many requests and attempts may be in flight in the pool; 0:
	// any number.
	Total int
	// Queue is how many requests may wait for a slot; 0: none.
	Queue int
	// Timeout is the longest that one waits.
	Timeout time.Duration
}

// Waiter is one that waits for a slot: a request for any that its policy may
// use, a delivery for one of its own backend. The zero value is ready, and is
// ready again when the wait is over.
type Waiter struct {
	// Granted is called with the lease that Acquire had to wait for, on a
	// goroutine of its own and without a lock held. Wait does not use it.
	Granted func(Lease)
}

// Refusal says why TryAcquire has just refused q: no_backend if nobody may have
// it, else max_concurrency_reached.
func (p *Pool) Refusal(q *balance.Query) *outcome.Error { return nil }

// Wait waits in the queue for a slot that q may use, until the pool's timeout,
// the deadline (zero: none), or gone is closed. The error's code is queue_full,
// queue_timeout, max_concurrency_reached where nobody may wait, or
// client_closed.
func (p *Pool) Wait(q *balance.Query, w *Waiter, deadline time.Time, gone <-chan struct{}) (Lease, *outcome.Error) {
	return Lease{}, nil
}

// Withdraw takes w, which waits for Acquire, out of the queue. False: it is not
// there any more, and Granted was or will be called.
func (p *Pool) Withdraw(w *Waiter) bool { return false }

// Depth returns how many requests wait.
func (p *Pool) Depth() int { return 0 }

// SetLimits replaces the limits. Who waits goes on waiting, also where the queue
// has become shorter.
func (p *Pool) SetLimits(l Limits) {}

// SetLimit sets how many may be in flight at b; 0: any number.
func (p *Pool) SetLimit(b *backend.Backend, n int) {}

// SetTraits sets b's weight and labels, for the picks from now on.
func (p *Pool) SetTraits(b *backend.Backend, weight int, labels map[string]string) {}

// SetPresence writes the word of b's source.
func (p *Pool) SetPresence(b *backend.Backend, word backend.Presence, reason string) {}

// SetPolicy has another policy pick from now on.
func (p *Pool) SetPolicy(f balance.Factory) {}

// Replace gives the pool other members, in this order. Those that stay keep
// everything; a new one has the state that it brings along.
func (p *Pool) Replace(all []*backend.Backend) {}

// Tick brings up to date what picks read and time changes. It is to be called
// each second.
func (p *Pool) Tick(now time.Time) {}
