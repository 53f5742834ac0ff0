package balance

import (
	"math/rand/v2"

	"lb/internal/backend"
)

// p2c draws two and picks the one with less in flight for its weight: nearly as
// good as comparing all, at the cost of two. Of equals it picks the one that was
// drawn first.
type p2c struct{ weighted }

func newP2C(eligible []*backend.Backend, _ Picker) Picker { return &p2c{withWeights(eligible)} }

func (p *p2c) Pick(q *Query) *backend.Backend {
	if i := p.draw(q); i >= 0 && q.Take(p.backends[i]) {
		return p.backends[i]
	}
	return stroll(q, p.backends)
}

// draw returns the place of the less loaded of two, of the only one it could
// draw, or -1.
func (p *p2c) draw(q *Query) int {
	n := len(p.backends)
	if n < 2 {
		return n - 1
	}
	one, i := -1, rand.IntN(n)
	for range draws {
		if b := p.backends[i]; i != one && q.Could(b) && (!idles(b) || b.TakesTurn()) {
			switch {
			case one < 0:
				one = i
			case p.load(i) < p.load(one):
				return i
			default:
				return one
			}
		}
		i = (i + 1 + rand.IntN(n-1)) % n // somebody else than just now
	}
	return one
}
