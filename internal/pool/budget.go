package pool

import (
	"sync/atomic"
	"time"
)

// Budget bounds the retries of a pool to a share of its requests plus a small
// constant rate, so that retries cannot multiply an outage. It is a bucket of
// tokens: each request puts in Ratio of one, each second PerSecond, and a
// retry takes one out. Finagle's RetryBudget is the model.
//
// It starts with one second's worth, so that the first requests after a start
// can be retried too.
type Budget struct {
	rates     atomic.Pointer[rates]
	tokens    atomic.Int64 // milli-tokens
	paidUntil atomic.Int64 // nanoseconds since start up to which PerSecond was put in
	start     time.Time    // time is told from here, so that a clock that is set changes nothing
	now       func() time.Time
}

// rates are what is paid in, never changed but replaced.
type rates struct {
	ratio     int64 // milli-tokens a request
	perSecond float64
}

const (
	token = 1000 // milli-tokens
	// What a quiet hour may save up for the next outage.
	fullBudget = 1000 * token
)

// NewBudget returns a budget of ratio retries a request plus perSecond.
func NewBudget(ratio, perSecond float64) *Budget {
	return newBudget(ratio, perSecond, time.Now)
}

func newBudget(ratio, perSecond float64, now func() time.Time) *Budget {
	b := &Budget{start: now(), now: now}
	b.rates.Store(&rates{int64(ratio * token), perSecond})
	b.tokens.Store(int64(perSecond * token))
	return b
}

// Configure replaces the rates from now on: the time until now is paid by the
// old ones, and what is in the budget stays there.
func (b *Budget) Configure(ratio, perSecond float64) {
	b.accrue()
	// What accrue left over, or all if the rate was 0, is not for the new rate.
	if last, now := b.paidUntil.Load(), int64(b.now().Sub(b.start)); last < now {
		b.paidUntil.CompareAndSwap(last, now)
	}
	b.rates.Store(&rates{int64(ratio * token), perSecond})
}

// Deposit pays for one request. It reads no clock.
func (b *Budget) Deposit() {
	if b.tokens.Load() < fullBudget {
		b.tokens.Add(b.rates.Load().ratio)
	}
}

// Withdraw takes one retry out and reports whether there was one.
func (b *Budget) Withdraw() bool {
	b.accrue()
	for {
		have := b.tokens.Load()
		if have < token {
			return false
		}
		if b.tokens.CompareAndSwap(have, have-token) {
			return true
		}
	}
}

// accrue puts in what the time since the last call is worth. What is worth less
// than a milli-token stays unpaid until the next call.
func (b *Budget) accrue() {
	perSecond := b.rates.Load().perSecond
	if perSecond <= 0 {
		return
	}
	const second = float64(time.Second)
	last := b.paidUntil.Load()
	worth := int64(float64(int64(b.now().Sub(b.start))-last) / second * perSecond * token)
	if worth <= 0 {
		return
	}
	paid := last + int64(float64(worth)/(perSecond*token)*second)
	if !b.paidUntil.CompareAndSwap(last, paid) {
		return
	}
	b.tokens.Add(min(worth, max(0, fullBudget-b.tokens.Load())))
}
