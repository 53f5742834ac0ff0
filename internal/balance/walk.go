package balance

import (
	"math/rand/v2"

	"lb/internal/backend"
)

// walk asks each backend once, from a place on, whatever its share.
func walk(q *Query, backends []*backend.Backend, from uint64) *backend.Backend {
	n := uint64(len(backends))
	for i := range n {
		if b := backends[(from+i)%n]; q.Take(b) {
			return b
		}
	}
	return nil
}

// stroll asks each backend once, from a random place on and in random strides:
// who stands beside those that are full gets hardly more than others, and nobody
// has to be counted.
func stroll(q *Query, backends []*backend.Backend) *backend.Backend {
	n := len(backends)
	if n == 0 {
		return nil
	}
	at, stride := rand.IntN(n), 1+rand.IntN(n)
	for gcd(stride, n) != 1 { // else it would not come by everybody
		stride = 1 + rand.IntN(n)
	}
	for range n {
		if b := backends[at]; q.Take(b) {
			return b
		}
		at = (at + stride) % n
	}
	return nil
}

// draws is how often the policies that draw try again before they stroll: often
// enough that a stroll is rare unless nearly all are full.
const draws = 8

// gcd returns the greatest common divisor.
func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
