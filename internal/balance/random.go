package balance

import (
	"math/rand/v2"

	"lb/internal/backend"
)

// random picks anybody, all alike. A backend in its slow start passes on some
// of the requests that are drawn for it.
type random struct{ backends []*backend.Backend }

func newRandom(eligible []*backend.Backend, _ Picker) Picker { return &random{eligible} }

func (p *random) Pick(q *Query) *backend.Backend {
	n := len(p.backends)
	if n == 0 {
		return nil
	}
	for range draws {
		if b := p.backends[rand.IntN(n)]; b.TakesTurn() && q.Take(b) {
			return b
		}
	}
	return stroll(q, p.backends)
}
