// Package balance holds the pickers: one small file a policy, each over a
// frozen set of eligible backends. Pickers know no health, no HTTP, no clock
// and no logging. A pick never blocks and does not allocate.
package balance

import "lb/internal/backend"

// Query is what one request asks of a picker. It lives in the request's record
// and is used again for each attempt of that request.
type Query struct {
	// Retry marks every pick after a request's first. It moves no rotation
	// cursor, so retries do not disturb the order that other requests see.
	Retry bool
	// Answered marks a retry whose request has an answer at hand, though not a
	// good one: not worth giving up for a backend that is kept away.
	Answered bool
	// Key is what the policies that hash spread by: equal keys go to the same
	// backend as long as it can be had.
	Key uint64
	// Unlimited lets backends on trial take the request although their trials
	// are given out: there is nobody else.
	Unlimited bool

	trial uint32 // the period of the trial that Take claimed, 0 for none
	full  bool   // a backend could not be had for want of a slot
	gave  bool   // a trial was claimed and given back
	tried [8]*backend.Backend
	more  []*backend.Backend
	n     int
}

// Reset empties q for the next request.
func (q *Query) Reset() {
	clear(q.tried[:])
	q.more, q.n, q.trial = nil, 0, 0
	q.Retry, q.Answered, q.Unlimited = false, false, false
	q.Key = 0
	q.Begin()
}

// Begin forgets what earlier picks met. The pool calls it before each.
func (q *Query) Begin() { q.full, q.gave = false, false }

// Exclude keeps b out of the following picks of this request.
func (q *Query) Exclude(b *backend.Backend) {
	if q.n < len(q.tried) {
		q.tried[q.n] = b
	} else {
		q.more = append(q.more, b)
	}
	q.n++
}

// Tried reports whether b was excluded.
func (q *Query) Tried(b *backend.Backend) bool {
	for i := 0; i < q.n && i < len(q.tried); i++ {
		if q.tried[i] == b {
			return true
		}
	}
	for _, t := range q.more {
		if t == b {
			return true
		}
	}
	return false
}

// Take claims a slot of b for the request and reports whether it could: not if
// this request tried it before, nor if b is on trial and its trials are given
// out, nor if b is full. What is taken is given back with Backend.End.
func (q *Query) Take(b *backend.Backend) bool {
	if !q.Could(b) {
		return false
	}
	trial, ok := b.TakeTrial()
	if !ok && !q.Unlimited {
		return false
	}
	if !b.TryBegin() {
		if trial != 0 {
			b.ReturnTrial(trial)
			q.gave = true
		}
		q.full = true
		return false
	}
	q.trial = trial
	return true
}

// Could reports whether Take is worth a try, for policies that compare before
// they take: b was not tried, has a trial left if it is on trial, and is not
// full. It claims nothing.
func (q *Query) Could(b *backend.Backend) bool {
	switch {
	case q.n > 0 && q.Tried(b), !q.Unlimited && !b.TrialLeft():
		return false
	case b.Full():
		q.full = true
		return false
	}
	return true
}

// MetFull reports whether, since Begin, a backend could not be had because all
// its slots are taken: waiting may help.
func (q *Query) MetFull() bool { return q.full }

// GaveBack reports whether, since Begin, a trial was claimed and given back:
// somebody may have missed it meanwhile.
func (q *Query) GaveBack() bool { return q.gave }

// Fresh reports whether the request has tried nobody yet.
func (q *Query) Fresh() bool { return q.n == 0 }

// Trial returns the period of the trial that the last Take claimed, 0 if its
// backend is not on trial.
func (q *Query) Trial() uint32 { return q.trial }

// Picker is the compiled form of a policy over a frozen set of backends.
type Picker interface {
	// Pick returns a backend that q.Take has claimed, or nil if none would
	// take it.
	Pick(q *Query) *backend.Backend
}

// Factory builds a picker over the eligible backends, in config order. The
// slice is frozen. prev is the pool's former picker, nil at first: a policy
// with a cursor carries it over.
type Factory func(eligible []*backend.Backend, prev Picker) Picker
