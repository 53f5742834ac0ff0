package balance

import "lb/internal/backend"

// leastConn picks the backend with the least in flight for its weight.
type leastConn struct{ lowest }

func newLeastConn(eligible []*backend.Backend, prev Picker) Picker {
	var former *cursors
	if p, ok := prev.(*leastConn); ok {
		former = p.cursors
	}
	return &leastConn{newLowest(eligible, former)}
}

func (p *leastConn) Pick(q *Query) *backend.Backend { return p.pick(q, p.load) }
