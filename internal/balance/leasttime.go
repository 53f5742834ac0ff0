package balance

import "lb/internal/backend"

// leastTime picks the backend where a request will probably be answered first:
// the peak EWMA of its response heads, times the requests that it would have,
// by its weight.
type leastTime struct{ lowest }

// unknownTime stands for the average of a backend that has answered nothing
// yet, in nanoseconds: longer than any real one. So it gets one request, and no
// more before that is answered (as in Finagle).
const unknownTime = 1e30

func newLeastTime(eligible []*backend.Backend, prev Picker) Picker {
	var former *cursors
	if p, ok := prev.(*leastTime); ok {
		former = p.cursors
	}
	return &leastTime{newLowest(eligible, former)}
}

func (p *leastTime) Pick(q *Query) *backend.Backend { return p.pick(q, p.cost) }

func (p *leastTime) cost(i int) float64 {
	b := p.backends[i]
	n, average := float64(b.InFlight()), b.Speed.Average()
	if average == 0 {
		if n == 0 {
			return 0
		}
		average = unknownTime
	}
	return average * (1 + n) / p.strength(i)
}
