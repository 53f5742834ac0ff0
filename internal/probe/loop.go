package probe

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"lb/internal/health"
)

// Schedule says how often a backend is probed and what the results are worth.
type Schedule struct {
	// Interval is the longest time from one start to the next, above 0.
	Interval time.Duration
	// Timeout bounds one probe, above 0. With one that is no longer than Interval, a
	// backend that hangs is down after at most Fall × Interval + Timeout.
	Timeout time.Duration
	// Rise and Fall are how many results in a row change the verdict.
	Rise, Fall int
	// Initial is the verdict before the first probe.
	Initial health.Initial
}

// Options are what a loop is made of.
type Options struct {
	// Address is the backend's, host:port.
	Address  string
	Check    Check
	Schedule Schedule
	// Paused reports whether the backend wants no probes now (maintenance). It
	// is asked before each; nil never pauses.
	Paused func() bool
	// Report is called after each probe, from the loop's goroutine, which waits
	// for it; nil tells nobody.
	Report func(Result)
}

// Result is what one probe found.
type Result struct {
	OK bool
	// Err is why a probe failed; nil if it did not. An error that Is ErrStarved
	// counts for nothing.
	Err error
	// At is when the probe ended, Took how long it ran.
	At   time.Time
	Took time.Duration
	// Verdict is what the results so far say, and Changed whether that differs
	// from the last report, or from the initial verdict if there was none.
	Verdict health.Verdict
	Changed bool
}

// State is what a loop knows at one moment.
type State struct {
	Verdict                        health.Verdict
	ConsecutiveOK, ConsecutiveFail int
	// LastProbe is when the last probe ended; the zero time if none has.
	LastProbe time.Time
	// LastError is why the last failed probe failed; "" once a later one has
	// found the backend up.
	LastError string
}

// Loop probes one backend again and again, from one goroutine.
type Loop struct {
	options  Options
	checks   health.Checks
	reported health.Verdict
	fresh    bool // no probe since the start, the last pause or Forget
	forget   atomic.Bool
	wake     chan struct{}
	first    chan struct{}
	atFirst  func()

	mu    sync.Mutex
	state State
}

// New returns a loop. It probes nothing until Run.
func New(o Options) *Loop {
	l := &Loop{
		options: o,
		checks:  health.Checks{Rise: o.Schedule.Rise, Fall: o.Schedule.Fall, Initial: o.Schedule.Initial},
		fresh:   true,
		wake:    make(chan struct{}, 1),
		first:   make(chan struct{}),
	}
	l.atFirst = sync.OnceFunc(func() { close(l.first) })
	l.reported = l.checks.Verdict()
	l.state.Verdict = l.reported
	return l
}

// Run probes until ctx ends; it is called once. The first probe starts at once.
// The second follows after a random part of the interval, so that the loops of
// a thousand backends spread, and each further one after 90 to 100 % of it, so
// that they stay spread. A probe that ctx cuts off is not reported.
func (l *Loop) Run(ctx context.Context) {
	defer l.atFirst()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-l.wake:
		}
		timer.Reset(l.turn(ctx))
		l.atFirst()
	}
}

// First is closed when the first probe has ended and been reported, or at once
// if there is to be none: the loop is paused, or Run ended.
func (l *Loop) First() <-chan struct{} { return l.first }

// Wake makes the loop probe now instead of when its time has come, unless it is
// paused still. It never blocks.
func (l *Loop) Wake() {
	select {
	case l.wake <- struct{}{}:
	default: // it is about to wake
	}
}

// Forget makes the loop forget what it has found: the next probe is a first one
// again, and one that is under way counts for nothing. It never blocks.
func (l *Loop) Forget() { l.forget.Store(true) }

// State returns what the loop knows now. Safe for concurrent use.
func (l *Loop) State() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// turn probes once unless the loop is paused, and returns how long to wait.
func (l *Loop) turn(ctx context.Context) time.Duration {
	interval := l.options.Schedule.Interval
	if l.options.Paused != nil && l.options.Paused() {
		l.reset()
		return interval
	}
	if l.forget.Swap(false) {
		l.reset()
	}
	start := time.Now()
	share := 0.9 + 0.1*rand.Float64()
	if l.fresh {
		share, l.fresh = rand.Float64(), false
	}
	err := l.probe(ctx)
	if ctx.Err() != nil {
		return interval // nobody waits for it
	}
	if l.forget.Load() {
		return 0
	}
	l.note(err, start)
	next := time.Duration(share * float64(interval))
	return max(0, next-time.Since(start))
}

func (l *Loop) probe(ctx context.Context) error {
	timeout := l.options.Schedule.Timeout
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, noAnswer(timeout))
	defer cancel()
	return l.options.Check.Probe(ctx, l.options.Address)
}

// noAnswer is why a probe failed that ran for a whole timeout.
type noAnswer time.Duration

func (d noAnswer) Error() string { return fmt.Sprintf("no answer within %v", time.Duration(d)) }

// note takes in what a probe found, and tells it.
func (l *Loop) note(err error, start time.Time) {
	now := time.Now()
	if !errors.Is(err, ErrStarved) {
		l.checks.Result(err == nil)
	}
	verdict := l.checks.Verdict()
	l.publish(func(s *State) {
		s.LastProbe = now
		switch {
		case err != nil:
			s.LastError = err.Error()
		case verdict == health.Up:
			s.LastError = ""
		}
	})
	result := Result{
		OK: err == nil, Err: err, At: now, Took: now.Sub(start),
		Verdict: verdict, Changed: verdict != l.reported,
	}
	l.reported = verdict
	if l.options.Report != nil {
		l.options.Report(result)
	}
}

// reset forgets what the probes so far have found.
func (l *Loop) reset() {
	l.fresh = true
	l.checks.Reset()
	l.publish(func(s *State) { s.LastError = "" })
}

// publish makes what the checks say visible to all, with what else changes.
func (l *Loop) publish(change func(*State)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Verdict = l.checks.Verdict()
	l.state.ConsecutiveOK, l.state.ConsecutiveFail = l.checks.ConsecutiveOK(), l.checks.ConsecutiveFail()
	change(&l.state)
}
