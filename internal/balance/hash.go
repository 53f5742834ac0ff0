package balance

import (
	"math"

	"github.com/cespare/xxhash/v2"

	"lb/internal/backend"
)

// rendezvous gives each key to the backend that scores highest for it (highest
// random weight). Scores hang on nothing but the key, the backend's id and its
// weight: they are the same in every process and after every restart, and a
// backend that goes moves its own keys and no others.
type rendezvous struct {
	weighted
	ids   []uint64 // hashes of the backends' ids
	alike bool     // all weights are the same
	total float64  // of the weights
	bound float64  // how many times its fair share a backend may have in flight; 0: any number
}

// hashing returns the factory of pickers with that bound.
func hashing(bound float64) Factory {
	return func(eligible []*backend.Backend, _ Picker) Picker {
		p := &rendezvous{weighted: withWeights(eligible), ids: make([]uint64, len(eligible)), alike: true, bound: bound}
		for i, b := range eligible {
			p.ids[i] = xxhash.Sum64String(b.ID)
			p.alike = p.alike && p.weights[i] == p.weights[0]
			p.total += p.weights[i]
		}
		return p
	}
}

// The smallest and the largest bound: below the one there is not enough room
// for what is in flight, above the other it bounds nothing.
const minBound, maxBound = 1, 100

func compileHash(s Spec) (Factory, error) {
	if err := s.foreign(s.Score != "", "score", "custom"); err != nil {
		return nil, err
	}
	if c := s.BoundedLoad; c != 0 && !(minBound <= c && c <= maxBound) {
		return nil, &SpecError{"bounded_load", "must be from 1 to 100", "1.25 lets a backend have a quarter more than its fair share"}
	}
	return hashing(s.BoundedLoad), nil
}

func (p *rendezvous) Pick(q *Query) *backend.Backend {
	if p.bound != 0 {
		if b := p.pick(q, true); b != nil {
			return b
		}
		// Whoever has room within the bound is full or has failed the request:
		// better too many at one than a refusal.
	}
	return p.pick(q, false)
}

// pick returns the backend that scores highest of those that may be had, and,
// if it is to be bounded, have room for one more.
func (p *rendezvous) pick(q *Query, bounded bool) *backend.Backend {
	room := math.Inf(1)
	if bounded {
		room = p.room()
	}
	for range rescans {
		i := p.highest(q, room)
		if i < 0 {
			return nil
		}
		if b := p.backends[i]; q.Take(b) {
			return b
		}
	}
	if bounded {
		return nil
	}
	return walk(q, p.backends, q.Key)
}

// room is how much may be in flight for a weight of 1 if one more is, times the
// weight of all.
func (p *rendezvous) room() float64 {
	inFlight := int64(1)
	for _, b := range p.backends {
		inFlight += b.InFlight()
	}
	return p.bound * float64(inFlight)
}

// highest returns the place of the backend that scores highest, -1 if none may
// be had. Only for one that scores higher than those before does it find out
// whether it may be had: those are few. Where weights differ, a score is
// -weight/ln(u) for a random u between 0 and 1: it is the highest as often as the
// weight says. The bits of positive floats are in the order of the numbers.
func (p *rendezvous) highest(q *Query, room float64) int {
	best, top := -1, uint64(0)
	for i, id := range p.ids {
		score := mix(q.Key ^ id)
		if !p.alike {
			u := unit(score)
			if best >= 0 && hopeless(u, p.weights[i], top) {
				continue
			}
			score = math.Float64bits(-p.weights[i] / math.Log(u))
		}
		if best >= 0 && score <= top {
			continue
		}
		b := p.backends[i]
		if q.Could(b) && float64(b.InFlight()+1) <= math.Ceil(room*p.weights[i]/p.total) {
			best, top = i, score
		}
	}
	return best
}

// hopeless reports, without the cost of a logarithm, that -weight/ln(u) is less
// than the score top: -ln(u) is at least 1-u. What is a hair below is not called
// so, that no rounding decides.
func hopeless(u, weight float64, top uint64) bool {
	const hair = 1 - 1e-9
	return weight < math.Float64frombits(top)*(1-u)*hair
}

// unit turns a random number into one between 0 and 1, neither of them.
func unit(random uint64) float64 { return (float64(random>>12) + 0.5) / (1 << 52) }

// mix makes every bit of x count for every bit of the result (the finalizer of
// splitmix64).
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}
