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
	ratio     int64 // milli-tokens a request
	perSecond float64
	tokens    atomic.Int64 // milli-tokens
	paidUntil atomic.Int64 // Unix nanoseconds up to which PerSecond was put in
	now       func() time.Time
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
	b := &Budget{ratio: int64(ratio * token), perSecond: perSecond, now: now}
	b.tokens.Store(int64(perSecond * token))
	b.paidUntil.Store(now().UnixNano())
	return b
}

// Deposit pays for one request. It reads no clock.
func (b *Budget) Deposit() {
	if b.tokens.Load() < fullBudget {
		b.tokens.Add(b.ratio)
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

// accrue puts in what the time since the last call is worth.
func (b *Budget) accrue() {
	now := b.now().UnixNano()
	last := b.paidUntil.Load()
	worth := int64(float64(now-last) / float64(time.Second) * b.perSecond * token)
	if worth <= 0 || !b.paidUntil.CompareAndSwap(last, now) {
		return
	}
	b.tokens.Add(min(worth, max(0, fullBudget-b.tokens.Load())))
}
