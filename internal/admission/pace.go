package admission

import "time"

// Pace is how fast slots come free. The zero value is not known.
type Pace struct {
	// Held is for how long a slot is held, the median of what was seen lately.
	Held time.Duration
	// Slots is how many there are.
	Slots int
}

// MinSamples is how often a slot must have come free lately before Held means
// anything.
const MinSamples = 20

// The bounds of what clients are told.
const (
	minRetry = time.Second
	maxRetry = time.Minute
)

// Wait estimates how long the waiter at a position, from 1, waits for a slot; 0
// if that is not known.
func (p Pace) Wait(position int) time.Duration {
	if p.Slots <= 0 {
		return 0
	}
	return time.Duration(float64(p.Held) * float64(position) / float64(p.Slots))
}

// RetryAfter estimates when a request that is refused now, behind so many that
// wait, would find a slot: from a second to a minute; 0 if that is not known.
func (p Pace) RetryAfter(waiting int) time.Duration {
	if p.Held <= 0 || p.Slots <= 0 {
		return 0
	}
	return min(max(p.Wait(waiting+1), minRetry), maxRetry)
}
