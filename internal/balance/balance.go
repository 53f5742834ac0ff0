// Package balance holds the pickers: one small file a policy, each over a
// frozen set of eligible backends. Pickers know no health, no HTTP, no clock
// and no logging. A pick never blocks and does not allocate.
package balance

import (
	"fmt"
	"slices"
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
// they take: b was not tried and is not full. It claims nothing.
func (q *Query) Could(b *backend.Backend) bool {
	switch {
	case q.n > 0 && q.Tried(b):
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

// Spec is what a configuration says of a policy.
type Spec struct {
	// Name is the policy's, or one of its aliases.
	Name string
	// BoundedLoad is, for hash, how many times its fair share of what is in
	// flight a backend may have, at least 1; 0: any number.
	BoundedLoad float64
	// Score is the expression of custom.
	Score string
}

// Policy is one line in the table of policies.
type Policy struct {
	// Name is the one word for it, Aliases are others that mean the same.
	Name    string
	Aliases []string
	// Weighted says that it heeds weights, Keyed that its pool must say what
	// Query.Key is made of, ByClient that it is made of the client's address.
	Weighted, Keyed, ByClient bool
	// Compile makes the factory, or says what is wrong with the spec: a
	// *SpecError where that can be pinned to one of its settings.
	Compile func(Spec) (Factory, error)
}

// SpecError says what is wrong with one setting of a policy.
type SpecError struct {
	// Setting is key, bounded_load or score.
	Setting string
	// Message says what is wrong, Suggestion what would be right; that may be
	// empty.
	Message, Suggestion string
}

func (e *SpecError) Error() string {
	text := e.Setting + ": " + e.Message
	if e.Suggestion != "" {
		text += "; " + e.Suggestion
	}
	return text
}

// policies is the table of policies.
var policies = []Policy{
	{Name: "roundrobin", Aliases: []string{"round-robin", "rr"}, Compile: plain(newRoundRobin)},
}

// plain is the Compile of a policy without settings.
func plain(f Factory) func(Spec) (Factory, error) {
	return func(Spec) (Factory, error) { return f, nil }
}

// Find returns the policy with that name or alias.
func Find(name string) (Policy, bool) {
	for _, p := range policies {
		if p.Name == name || slices.Contains(p.Aliases, name) {
			return p, true
		}
	}
	return Policy{}, false
}

// New returns the factory of the policy that s names, or an error that says
// what is wrong with s.
func New(s Spec) (Factory, error) {
	p, ok := Find(s.Name)
	if !ok {
		return nil, fmt.Errorf("no policy %q; there is %s", s.Name, strings.Join(Names(), ", "))
	}
	return p.Compile(s)
}

// Names returns the names of all policies, sorted, without aliases.
func Names() []string {
	names := make([]string, 0, len(policies))
	for _, p := range policies {
		names = append(names, p.Name)
	}
	slices.Sort(names)
	return names
}
