package fanout

import "slices"

// heldRetries is how often a delivery that was held is tried again once
// another backend has accepted the write, before it is parked as diverged.
const heldRetries = 3

// result is what an attempt came to, as far as the verdict cares.
type result uint8

const (
	// answered: the backend's answer came, whole.
	answered result = iota
	// unsent: the dial failed, so the backend saw nothing.
	unsent
	// starved: lb itself could not make the attempt.
	starved
	// cut: something was or may have been sent, and no whole answer came.
	cut
)

// verdict is the machine that decides over one write. It is pure: attempts
// begin and end, time runs out; what follows stands in the deliveries.
//
// The write is open until its first success, which makes it accepted: it will
// be everywhere. While it is open, an answer in Reject is held. When every
// delivery is held or provably unsent, and one at least is held, nobody has
// the write, and it is rejected. A delivery is provably unsent when no attempt
// of it ever got past the dial and none is running.
type verdict struct {
	plan       *Plan
	deliveries []Delivery
	running    []bool
	accepted   bool
	rejected   bool
	expired    bool
	moves      []move
}

// move is a delivery that came into another state.
type move struct {
	i      int
	reason Reason
}

// newVerdict returns a verdict over the deliveries, which it owns, as they are:
// new ones, or such as a journal has kept.
func newVerdict(p *Plan, deliveries []Delivery) verdict {
	v := verdict{plan: p, deliveries: deliveries, running: make([]bool, len(deliveries))}
	v.accepted = v.count(DeliveryDone) > 0
	return v
}

// begin notes that an attempt of delivery i starts.
func (v *verdict) begin(i int) { v.running[i] = true }

// end notes how the running attempt of delivery i ended; status is the
// answer's.
func (v *verdict) end(i int, r result, status int) {
	v.running[i] = false
	d := &v.deliveries[i]
	limited := d.Left > 0
	d.note(r, status)
	switch {
	case d.State != DeliveryPending:
		// It was settled while the attempt ran.
	case v.succeeded(d, r, status):
		v.set(i, DeliveryDone, "")
		v.accept()
	case !v.accepted && r == answered && slices.Contains(v.plan.Reject, status):
		v.set(i, DeliveryHeld, "")
	case v.accepted && !limited && r == answered && slices.Contains(v.plan.Reject, status):
		// Had it come a moment earlier, it would have been held. What becomes
		// of it must not hang on that.
		d.Left = heldRetries
	case limited:
		if d.Left == 0 {
			v.set(i, DeliveryParked, ReasonDiverged)
		}
	case v.plan.MaxAttempts > 0 && d.Reached >= v.plan.MaxAttempts:
		v.set(i, DeliveryParked, ReasonMaxAttempts)
	}
	if v.expired {
		v.parkIdle(i)
	}
	v.decide()
}

// note counts an attempt.
func (d *Delivery) note(r result, status int) {
	if r == starved {
		return // it never took place
	}
	d.Attempts++
	if r == answered {
		d.LastStatus = status
	}
	if r == cut {
		d.Unknown = true
	}
	if r == answered || r == cut {
		d.Reached++
		d.Left = max(0, d.Left-1)
	}
}

// succeeded reports whether an answer settles d. One in Already says that the
// write is there, which is good news only if an earlier attempt of this very
// delivery may have brought it.
func (v *verdict) succeeded(d *Delivery, r result, status int) bool {
	return r == answered && (slices.Contains(v.plan.Success, status) ||
		d.Unknown && slices.Contains(v.plan.Already, status))
}

// accept closes the open write at its first success: what is held is tried
// again.
func (v *verdict) accept() {
	if v.accepted {
		return
	}
	v.accepted = true
	for i := range v.deliveries {
		if d := &v.deliveries[i]; d.State == DeliveryHeld {
			d.Left = heldRetries
			v.set(i, DeliveryPending, "")
		}
	}
}

// expire notes that the write has reached its MaxAge: all that is not settled
// is parked, what is running as soon as it ends.
func (v *verdict) expire() {
	v.expired = true
	for i := range v.deliveries {
		v.parkIdle(i)
	}
	v.decide()
}

// parkIdle parks delivery i for its age unless it is settled or running.
func (v *verdict) parkIdle(i int) {
	if s := v.deliveries[i].State; !v.running[i] && (s == DeliveryPending || s == DeliveryHeld) {
		v.set(i, DeliveryParked, ReasonMaxAge)
	}
}

// decide rejects an open write when that is the only end it can have, and
// parks one that can have none.
func (v *verdict) decide() {
	if v.accepted || v.rejected {
		return
	}
	var held, pending, sent int
	for i := range v.deliveries {
		switch d := &v.deliveries[i]; {
		case d.State == DeliveryHeld:
			held++
		case d.LastStatus != 0 || d.Unknown || v.running[i]: // not Reached: a retry counts that anew
			sent++
		}
		if v.deliveries[i].State == DeliveryPending {
			pending++
		}
	}
	switch {
	case held > 0 && sent == 0:
		v.rejected = true
		v.setAll(DeliveryPending, DeliveryCancelled, ReasonRejected)
		v.setAll(DeliveryParked, DeliveryCancelled, ReasonRejected) // no operator can send it any more
	case pending == 0:
		v.setAll(DeliveryHeld, DeliveryParked, ReasonUndecided)
	}
}

// setAll sets all deliveries that are in one state to another.
func (v *verdict) setAll(from, to DeliveryState, why Reason) {
	for i := range v.deliveries {
		if v.deliveries[i].State == from {
			v.set(i, to, why)
		}
	}
}

// drop ends delivery i where it stands, for s: an operator leaves it out, or
// its backend is gone.
func (v *verdict) drop(i int, s DeliveryState, why Reason) {
	v.set(i, s, why)
	v.decide()
}

// reopen makes parked delivery i pending again, with all its attempts anew.
func (v *verdict) reopen(i int) {
	d := &v.deliveries[i]
	d.Reached, d.Left = 0, 0
	v.expired = false
	v.set(i, DeliveryPending, "")
}

// set moves delivery i; of several moves between two takes the last counts.
func (v *verdict) set(i int, s DeliveryState, why Reason) {
	v.deliveries[i].State, v.deliveries[i].Reason = s, why
	v.moves = slices.DeleteFunc(v.moves, func(m move) bool { return m.i == i })
	v.moves = append(v.moves, move{i, why})
}

// take returns the moves since the last take.
func (v *verdict) take() []move {
	m := v.moves
	v.moves = nil
	return m
}

// count returns how many deliveries are in one of the states.
func (v *verdict) count(states ...DeliveryState) int {
	n := 0
	for i := range v.deliveries {
		if slices.Contains(states, v.deliveries[i].State) {
			n++
		}
	}
	return n
}

// state returns the state of the whole write.
func (v *verdict) state() State {
	switch {
	case v.rejected:
		return WriteRejected
	case v.count(DeliveryPending, DeliveryHeld) > 0:
		return WritePending
	case v.count(DeliveryParked) > 0:
		return WriteParked
	case v.count(DeliveryDone, DeliverySkipped) > 0:
		return WriteDone
	default:
		return WriteCancelled
	}
}

// disagreement returns the last status of each backend that answered, if they
// are not all the same; else nil. One in Already says that the write is there,
// which is agreement.
func (v *verdict) disagreement() []int {
	var statuses []int
	differ := false
	for _, d := range v.deliveries {
		if d.State == DeliveryDone && slices.Contains(v.plan.Success, d.LastStatus) ||
			d.State == DeliveryParked && d.LastStatus != 0 {
			statuses = append(statuses, d.LastStatus)
			differ = differ || d.LastStatus != statuses[0]
		}
	}
	if !differ {
		return nil
	}
	return statuses
}
