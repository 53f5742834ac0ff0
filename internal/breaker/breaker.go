// Package breaker holds the machine that keeps traffic away from a backend
// that answers, but badly: closed, open, half-open. It is pure: figures and the
// time go in, a state comes out. What counts as a failure is decided in package
// outcome, who may have an open breaker in package pool.
package breaker

import (
	"fmt"
	"time"

	"lb/internal/backend"
)

// Settings are the limits of a pool's breakers.
type Settings struct {
	// Consecutive failures in a row open a breaker; 0 for no such rule.
	Consecutive int
	// Ratio of failures in the window opens it too, once MinRequests have
	// ended in the window; 0 for no such rule.
	Ratio       float64
	MinRequests int
	// Window is how long a request counts, at least a second.
	Window time.Duration
	// Open is how long it stays open the first time. Each time that it opens
	// again before it has been closed for as long as it was last open doubles
	// that, up to MaxOpen.
	Open, MaxOpen time.Duration
	// HalfOpen is how many trials must pass, one after the other or at once,
	// before it closes. The first that fails opens it again.
	HalfOpen int
}

// Trips reports whether these figures open a closed breaker.
func (s *Settings) Trips(f backend.Figures) bool { return s.row(f) || s.share(f) }

// Why says what opened it, for people.
func (s *Settings) Why(f backend.Figures) string {
	if s.row(f) {
		return fmt.Sprintf("%d failures in a row", f.Row)
	}
	return fmt.Sprintf("%d of %d requests failed", f.Failed, f.Total)
}

func (s *Settings) row(f backend.Figures) bool {
	return s.Consecutive > 0 && f.Row >= s.Consecutive
}

func (s *Settings) share(f backend.Figures) bool {
	return s.Ratio > 0 && f.Total >= s.MinRequests && f.ErrorRate() >= s.Ratio
}

// State is one of the three states of a breaker.
type State uint8

// The states, by the numbers that lb_breaker_state shows.
const (
	// Closed lets everything through.
	Closed State = iota
	// HalfOpen lets counted trials through.
	HalfOpen
	// Open lets nothing through.
	Open
)

// String returns closed, half-open or open.
func (s State) String() string { return [...]string{"closed", "half-open", "open"}[s] }

// Breaker is the machine of one backend. It is not safe for concurrent use.
type Breaker struct {
	settings *Settings
	state    State
	lasts    time.Duration // how long it is, or was last, open
	until    time.Time     // when it stops being open
	closed   time.Time     // when it closed last
	passed   int           // trials, since it is half-open
}

// New returns a closed breaker.
func New(s *Settings) *Breaker { return &Breaker{settings: s} }

// Configure has s decide from now on. The state stays: a closed breaker meets
// the new limits with the next failure, an open one keeps its time, and a
// half-open one starts its trials anew if their number changes.
func (b *Breaker) Configure(s *Settings) {
	if b.settings.HalfOpen != s.HalfOpen {
		b.passed = 0
	}
	b.settings = s
}

// State returns the state as of the last call of Advance.
func (b *Breaker) State() State { return b.state }

// Until returns when an open breaker becomes half-open.
func (b *Breaker) Until() time.Time { return b.until }

// Passed returns how many trials have passed since it became half-open, and how
// many must.
func (b *Breaker) Passed() (passed, of int) { return b.passed, b.settings.HalfOpen }

// Trip opens it at now and returns for how long.
func (b *Breaker) Trip(now time.Time) time.Duration {
	again := b.state == HalfOpen || b.lasts > 0 && now.Sub(b.closed) < b.lasts
	if again {
		b.lasts += min(b.lasts, b.settings.MaxOpen-b.lasts) // twice; years do not overflow
	} else {
		b.lasts = b.settings.Open
	}
	b.state, b.until = Open, now.Add(b.lasts)
	return b.lasts
}

// Advance makes it half-open if its time is over.
func (b *Breaker) Advance(now time.Time) {
	if b.state == Open && !now.Before(b.until) {
		b.state, b.passed = HalfOpen, 0
	}
}

// Pass notes at now that a trial passed, and closes it with the last one.
func (b *Breaker) Pass(now time.Time) {
	if b.state != HalfOpen {
		return
	}
	if b.passed++; b.passed >= b.settings.HalfOpen {
		b.state, b.closed = Closed, now
	}
}
