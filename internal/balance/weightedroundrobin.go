package balance

import (
	"math"

	"lb/internal/backend"
)

// weightedRoundRobin gives turns by weight, and those of one backend as far
// apart as can be: the smooth order of nginx. The order of a whole cycle is
// worked out when the picker is built; picks walk it with one cursor.
type weightedRoundRobin struct {
	weighted
	turns    []int32 // one cycle, places in the set
	*cursors         // shared by all pickers of the pool, so that a change of the set does not start over
}

func newWeightedRoundRobin(eligible []*backend.Backend, prev Picker) Picker {
	p := &weightedRoundRobin{weighted: withWeights(eligible), cursors: new(cursors)}
	if former, ok := prev.(*weightedRoundRobin); ok {
		p.cursors = former.cursors
	}
	weights := make([]int, len(eligible))
	for i, w := range p.weights {
		weights[i] = int(w)
	}
	p.turns = smooth(fit(weights))
	return p
}

func (p *weightedRoundRobin) Pick(q *Query) *backend.Backend {
	cycle := uint64(len(p.turns))
	if cycle == 0 {
		return nil
	}
	if q.Retry {
		return p.spread(q, p.retry.Add(1))
	}
	// As in roundRobin, a turn that is passed on moves the cursor, too.
	for range p.backends {
		b := p.backends[p.turns[(p.first.Add(1)-1)%cycle]]
		if b.TakesTurn() && q.Take(b) {
			return b
		}
	}
	return p.spread(q, p.first.Add(1))
}

// spread picks by strength among all that may be had: for retries, and when the
// turns next in the row were of those that may not. Multiples of the golden
// ratio spread evenly over any number of shares, so the k-th pick needs to know
// no other.
func (p *weightedRoundRobin) spread(q *Query, k uint64) *backend.Backend {
	const golden = 0x9e3779b97f4a7c15 // 2^64 over the golden ratio
	all := 0.0
	for i, b := range p.backends {
		if q.Could(b) {
			all += p.strength(i)
		}
	}
	at := all * float64(k*golden>>11) / (1 << 53)
	for i, b := range p.backends {
		if !q.Could(b) {
			continue
		}
		if at -= p.strength(i); at < 0 {
			if q.Take(b) {
				return b
			}
			break
		}
	}
	return walk(q, p.backends, k) // somebody was quicker
}

// What bounds the work of building a picker: the turns of a cycle, which may be
// more for larger sets, and turns times distinct weights.
const (
	minCycle        = 1 << 15
	turnsPerBackend = 8
	maxSteps        = 1 << 22
)

// fit divides the weights by what they have in common, and makes them smaller
// if a cycle would still be too long: more than 32,768 turns and more than 8 a
// backend, or fewer where there are over a hundred different weights. Then a
// backend has the turns in such a cycle that its weight is worth, rounded, but
// at least one: half a turn too many or too few, nearly one too many for those
// that are worth less than one.
func fit(weights []int) []int {
	common, sum := 0, 0
	for _, w := range weights {
		common, sum = gcd(common, w), sum+w
	}
	limit := max(minCycle, turnsPerBackend*len(weights))
	scale := 1 / float64(max(1, common))
	for {
		fitted, turns, distinct := scaled(weights, min(scale, float64(limit)/float64(max(1, sum))))
		if turns*distinct <= maxSteps || limit <= len(weights) {
			return fitted
		}
		limit /= 2
	}
}

// scaled returns the weights times scale, at least 1 each, their sum, and how
// many different ones there are.
func scaled(weights []int, scale float64) (fitted []int, sum, distinct int) {
	fitted = make([]int, len(weights))
	seen := make(map[int]bool)
	for i, w := range weights {
		fitted[i] = max(1, int(math.Round(float64(w)*scale)))
		seen[fitted[i]] = true
		sum += fitted[i]
	}
	return fitted, sum, len(seen)
}

// class are the backends of one weight. In the smooth order each of them has
// its k-th turn before one of them has its next, the first in the set first: so
// it is enough to know whose turn it is, and what that one has saved.
type class struct {
	weight, saved int
	members       []int32
	next          int
}

// smooth returns the order of one cycle. At each turn everybody saves its
// weight; who has saved most, the first in the set if several have, gets the
// turn and pays the sum of all weights.
func smooth(weights []int) []int32 {
	var classes []class
	place := make(map[int]int) // of a weight's class
	sum := 0
	for i, w := range weights {
		at, ok := place[w]
		if !ok {
			at = len(classes)
			place[w] = at
			classes = append(classes, class{weight: w})
		}
		classes[at].members = append(classes[at].members, int32(i))
		sum += w
	}
	turns := make([]int32, sum)
	for t := range turns {
		best := &classes[0]
		for i := range classes {
			c := &classes[i]
			c.saved += c.weight
			if c.saved > best.saved || c.saved == best.saved && c.members[c.next] < best.members[best.next] {
				best = c
			}
		}
		turns[t] = best.members[best.next]
		if best.next++; best.next == len(best.members) {
			best.next, best.saved = 0, best.saved-sum
		}
	}
	return turns
}
