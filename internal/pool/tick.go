package pool

import (
	"time"

	"lb/internal/backend"
)

// Tick brings up to date what picks read and time changes. It is to be called
// each second.
func (p *Pool) Tick(now time.Time) {
	var slowest int64
	depth := p.Depth()
	for _, b := range p.members.Load().All {
		b.Speed.Decay(now)
		b.SetErrorRate(b.Recent.Figures(now).ErrorRate())
		b.SetQueued(depth)
		slowest = max(slowest, int64(b.Speed.Average()))
	}
	p.slowest.Store(slowest)
}

// sped notes at now that b took so long for a response head, or failed and is to
// count as if it had.
func (p *Pool) sped(b *backend.Backend, now time.Time, took time.Duration) {
	b.Speed.Observe(now, took)
	average := int64(b.Speed.Average())
	for {
		slowest := p.slowest.Load()
		if average <= slowest || p.slowest.CompareAndSwap(slowest, average) {
			return
		}
	}
}
