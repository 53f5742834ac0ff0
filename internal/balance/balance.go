// Package balance holds the pickers: one small file a policy, each over a
// frozen set of eligible backends. Pickers know no health, no HTTP, no clock
// and no logging. A pick never blocks and does not allocate.
package balance

import (
	"fmt"
	"sort"
	"strings"

	"lb/internal/backend"
)

// Query is what one request asks of a picker. It lives in the request's record
// and is used again for each attempt of that request.
type Query struct {
	// Retry marks every pick after a request's first. It moves no rotation
	// cursor, so retries do not disturb the order that other requests see.
	Retry bool
	// Answered marks a retry whose request has an answer at hand, though not a
	// good one: not worth giving up for a backend that is kept away.
	Answered bool
	// Unlimited lets backends on trial take the request although their trials
	// are given out: there is nobody else.
	Unlimited bool

	trial uint32 // the period of the trial that Take claimed, 0 for none
	tried [8]*backend.Backend
	more  []*backend.Backend
	n     int
}

// Reset empties q for the next request.
func (q *Query) Reset() {
	clear(q.tried[:])
	q.more, q.n, q.trial = nil, 0, 0
	q.Retry, q.Answered, q.Unlimited = false, false, false
}

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

// Take claims b for the request and reports whether it could: not if this
// request tried it before, nor if b is on trial and its trials are given out.
// What is taken is given back with Backend.End.
func (q *Query) Take(b *backend.Backend) bool {
	if q.n > 0 && q.Tried(b) {
		return false
	}
	trial, ok := b.TakeTrial()
	if !ok && !q.Unlimited {
		return false
	}
	q.trial = trial
	b.Begin()
	return true
}

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

// policies holds one line a policy: its name, its other names, its factory.
var policies = []struct {
	name    string
	aliases []string
	factory Factory
}{
	{"roundrobin", []string{"round-robin", "rr"}, newRoundRobin},
}

// For returns the factory of the policy with that name or alias, or an error
// that names those that exist.
func For(name string) (Factory, error) {
	for _, p := range policies {
		if name == p.name {
			return p.factory, nil
		}
		for _, a := range p.aliases {
			if name == a {
				return p.factory, nil
			}
		}
	}
	return nil, fmt.Errorf("no policy %q; there is %s", name, strings.Join(Names(), ", "))
}

// Names returns the names of all policies, sorted, without aliases.
func Names() []string {
	var names []string
	for _, p := range policies {
		names = append(names, p.name)
	}
	sort.Strings(names)
	return names
}
