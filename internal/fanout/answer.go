package fanout

import (
	"net/http"
	"slices"
)

// answer returns what the client gets as things stand, and whether there is
// any reason not to wait longer. Without one it is the 202.
func (w *write) answer() (Answer, bool) {
	v := &w.verdict
	n := len(v.deliveries)
	done := v.count(DeliveryDone)
	a := Answer{ID: w.record.ID, Acked: done, Total: n}
	if v.rejected {
		if !w.recorded {
			return later(a), false // nobody is told what a crash could undo
		}
		a.Rejected = true
		return w.quote(a, w.first(DeliveryHeld)), true
	}
	need := w.plan.Ack.need(n)
	switch {
	case done >= need:
		return w.quote(a, w.firstSuccess()), true
	case done+v.count(DeliveryPending, DeliveryHeld) < need:
		return later(a), true // it will never be acked: the status tells why
	}
	// All that is missing was out already when the write came: waiting for it
	// is not worth the client's time.
	for i := range v.deliveries {
		if v.deliveries[i].State != DeliveryDone && !w.out[i] {
			return later(a), false
		}
	}
	return later(a), true
}

// later makes a the 202.
func later(a Answer) Answer {
	a.Pending, a.Status = true, http.StatusAccepted
	return a
}

// quote makes a the answer of delivery i's backend.
func (w *write) quote(a Answer, i int) Answer {
	r := w.answers[i]
	a.Status, a.Fields, a.Body = r.Status, r.Fields, r.Body
	a.Backend = w.verdict.deliveries[i].Backend
	return a
}

// first returns the first delivery in config order in that state.
func (w *write) first(s DeliveryState) int {
	return slices.IndexFunc(w.verdict.deliveries, func(d Delivery) bool { return d.State == s })
}

// firstSuccess returns the first delivery in config order that succeeded. One
// that succeeded by an answer in Already comes last: its 409 would tell the
// client that its own write was refused.
func (w *write) firstSuccess() int {
	i := slices.IndexFunc(w.verdict.deliveries, func(d Delivery) bool {
		return d.State == DeliveryDone && slices.Contains(w.plan.Success, d.LastStatus)
	})
	if i < 0 {
		return w.first(DeliveryDone)
	}
	return i
}
