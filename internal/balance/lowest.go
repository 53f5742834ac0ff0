package balance

import "lb/internal/backend"

// rescans is how often a picker that compares looks again after the best was
// taken away in the meantime, before it takes anybody.
const rescans = 4

// lowest picks whoever costs least, of equals each in turn.
type lowest struct {
	weighted
	*cursors // the place after the one that was picked last
}

func newLowest(eligible []*backend.Backend, prev *cursors) lowest {
	if prev == nil {
		prev = new(cursors)
	}
	return lowest{withWeights(eligible), prev}
}

// pick compares by cost, which is asked for a place in the set.
func (p *lowest) pick(q *Query, cost func(i int) float64) *backend.Backend {
	n := len(p.backends)
	if n == 0 {
		return nil
	}
	cursor := &p.first
	if q.Retry {
		cursor = &p.retry
	}
	from := int(cursor.Load() % uint64(n)) //nolint:gosec // below n
	for range rescans {
		i := p.cheapest(q, from, cost, nil)
		if i < 0 {
			return nil
		}
		if idles(p.backends[i]) && !p.backends[i].TakesTurn() {
			if busy := p.cheapest(q, from, cost, idles); busy >= 0 {
				i = busy
			}
		}
		if b := p.backends[i]; q.Take(b) {
			cursor.Store(uint64(i) + 1)
			return b
		}
	}
	return walk(q, p.backends, uint64(from))
}

// cheapest returns the place of the backend with the lowest cost that may be
// had and is none of those to leave out, the first one from a place on if
// several have it; -1 if there is none.
func (p *lowest) cheapest(q *Query, from int, cost func(i int) float64, except func(*backend.Backend) bool) int {
	best, least := -1, 0.0
	i := from
	for range p.backends {
		if b := p.backends[i]; q.Could(b) && (except == nil || !except(b)) {
			if c := cost(i); best < 0 || c < least {
				best, least = i, c
			}
		}
		if i++; i == len(p.backends) {
			i = 0
		}
	}
	return best
}
