package fanout

import (
	"time"

	"lb/internal/backend"
	"lb/internal/pool"
)

const (
	// laneWidth is how many attempts run at one backend at once. 128 is the
	// accept backlog that a listener gets on older kernels (SOMAXCONN before
	// Linux 5.4): a backend that has just come back is not refused by the
	// rush of its own backlog. It is also below the connections kept for a
	// backend by default (256), so a long backlog does not dial for each one.
	laneWidth = 128
	// reachPoll is how often a lane looks whether its backend is reachable
	// again by what others did, out of maintenance, or back: nobody calls when a
	// dial of theirs succeeds, or an operator is done.
	reachPoll = 250 * time.Millisecond
)

// delivery is one backend's copy of a write on its way. Its state stands in
// the write's verdict.
type delivery struct {
	write *write
	i     int // its place in the write
	lane  *lane
	due   time.Time // of the next attempt, or of the last while it runs
	// since when it puts its backend behind while it is pending, which may be
	// in the future; zero for never
	since     time.Time
	hasFailed bool // an attempt of it, other than with an answer that was held
	blocked   bool // it waits for its turn in its key, outside of the lane's queues
	last      bool // its backend was removed: the attempt that runs is the last
	// places in the lane's queues
	waiting, later, ready, aging int
}

// lane is the schedule of one backend: which of its deliveries may try next,
// and when. It decides only; the engine runs the attempts.
//
// While the backend is unreachable only its oldest delivery tries. The others
// wait in place, and go oldest first as soon as a dial has succeeded.
type lane struct {
	key     laneKey
	backend *backend.Backend // who stands for that identity now
	removed bool             // nobody does, and nobody is waited for: see Cancel

	// An attempt needs a slot. Where none is free, the lane waits for one, and
	// not each of its deliveries: who goes is decided when it is there.
	waiter pool.Waiter
	asked  Pool // where waiter waits, or was granted what has not been taken yet; nil: nowhere

	waiting queue[*delivery] // all that do not run, oldest first
	later   queue[*delivery] // those of them not known to be due, by due time
	ready   queue[*delivery] // those that are, oldest first
	running int
	lag     lag
	alarm   func() // what the timer calls
	timer   *time.Timer

	// What is in the journal alone: how many deliveries, and when the next of
	// them may be due.
	outside    int
	outsideDue time.Time
	loading    bool          // they are being read
	poll       time.Duration // the last wait after finding nothing
	busyThen   bool          // the last read showed only what was at work already: there may be more behind
}

func newLane(b *backend.Backend, alarm func()) *lane {
	older := func(a, b *delivery) bool { return a.write.record.Seq < b.write.record.Seq }
	return &lane{
		key:     laneKey{b.Pool, b.ID},
		backend: b,
		lag:     newLag(),
		alarm:   alarm,
		waiting: queue[*delivery]{less: older, place: func(d *delivery) *int { return &d.waiting }},
		later: queue[*delivery]{
			less:  func(a, b *delivery) bool { return a.due.Before(b.due) },
			place: func(d *delivery) *int { return &d.later },
		},
		ready: queue[*delivery]{less: older, place: func(d *delivery) *int { return &d.ready }},
	}
}

// add schedules d, which must not be in the lane.
func (l *lane) add(d *delivery, due time.Time) {
	d.due = due
	l.waiting.push(d)
	l.later.push(d)
}

// keepOutside notes that a delivery goes on in the journal alone, until due.
func (l *lane) keepOutside(due time.Time) {
	if l.outside == 0 || due.Before(l.outsideDue) {
		l.outsideDue = due
	}
	l.outside++
}

// remove takes d out, if it waits there.
func (l *lane) remove(d *delivery) {
	l.waiting.remove(d)
	l.later.remove(d)
	l.ready.remove(d)
}

// next returns the delivery that is to try now. With nil, wake is when to ask
// again if nothing else happens; zero for never.
func (l *lane) next(now time.Time, unreachable, onHold bool) (d *delivery, wake time.Time) {
	oldest, ok := l.waiting.min()
	if !ok || l.running >= laneWidth {
		return nil, time.Time{}
	}
	if onHold {
		return nil, now.Add(reachPoll)
	}
	if unreachable {
		poll := now.Add(reachPoll)
		switch {
		case l.running > 0: // that one is the try
			return nil, poll
		case oldest.due.After(poll):
			return nil, poll
		case oldest.due.After(now):
			return nil, oldest.due
		}
		return oldest, time.Time{}
	}
	first, waits := l.later.min()
	for ; waits && !first.due.After(now); first, waits = l.later.min() {
		l.later.remove(first)
		l.ready.push(first)
	}
	if d, ok := l.ready.min(); ok {
		return d, time.Time{}
	}
	return nil, first.due // waiting is not empty, so later is not
}

// start takes d, which next returned, out of the lane and counts it as running;
// done ends that.
func (l *lane) start(d *delivery) {
	l.remove(d)
	l.running++
}

// done ends the attempt that start began.
func (l *lane) done() { l.running-- }

// nextTry returns when d, which is pending, will try again as far as can be
// told; zero while that hangs on an attempt that is running.
func (l *lane) nextTry(d *delivery, unreachable bool) time.Time {
	if !l.waiting.has(d) {
		return time.Time{}
	}
	if !unreachable {
		return d.due
	}
	if l.running > 0 {
		return time.Time{}
	}
	oldest, _ := l.waiting.min()
	return oldest.due
}

// arm makes the lane's timer call at wake, or not at all.
func (l *lane) arm(now, wake time.Time) {
	switch {
	case wake.IsZero():
		l.disarm()
	case l.timer == nil:
		l.timer = time.AfterFunc(wake.Sub(now), l.alarm)
	default:
		l.timer.Reset(wake.Sub(now))
	}
}

// disarm stops the lane's timer.
func (l *lane) disarm() {
	if l.timer != nil {
		l.timer.Stop()
	}
}
