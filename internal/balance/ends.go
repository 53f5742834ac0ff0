package balance

import (
	"slices"

	"lb/internal/backend"
)

// ends looks at one backend, the first in its order, and at nobody else: the
// request waits or is refused if that one is full, or failed it. Whose trials
// are given out is not eligible, so the next in the order stands in its place.
type ends struct{ order []*backend.Backend }

func newFirst(eligible []*backend.Backend, _ Picker) Picker { return &ends{eligible} }

func newLast(eligible []*backend.Backend, _ Picker) Picker {
	order := slices.Clone(eligible)
	slices.Reverse(order)
	return &ends{order}
}

func (p *ends) Pick(q *Query) *backend.Backend {
	for _, b := range p.order {
		if q.Take(b) {
			return b
		}
		if q.Unlimited || b.TrialLeft() {
			break
		}
	}
	return nil
}
