package fanout

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"lb/internal/outcome"
)

// replay returns what a client is told that sends again what it sent before
// under its Idempotency-Key: first is the record of that. Nothing is sent to
// a backend.
func (e *Engine) replay(ctx context.Context, w *write, first *Record) (Answer, error) {
	if first.Print != w.record.Print {
		return Answer{}, &outcome.Error{
			Code:   outcome.KeyReused,
			Detail: "the Idempotency-Key belongs to another request: take a new one for each write",
		}
	}
	r, found, err := e.Find(ctx, first.ID)
	if err != nil {
		return Answer{}, storageError(err)
	}
	if !found {
		r = *first
	}
	if r.State == WriteCancelled && r.Deliveries[0].Reason == ReasonUnacknowledged {
		return Answer{}, storageError(errors.New("it was refused the first time, too")) // and its place is about to be free
	}
	a := Answer{ID: r.ID, Total: len(r.Deliveries)}
	for _, d := range r.Deliveries {
		if d.State == DeliveryDone {
			a.Acked++
		}
	}
	switch {
	case r.Reply != nil && (r.State == WriteRejected || a.Acked >= w.plan.Ack.need(a.Total)):
		if a.Rejected = r.State == WriteRejected; a.Rejected {
			if err := e.journal.Flush(ctx); err != nil {
				return Answer{}, storageError(err) // nobody is told what a crash could undo
			}
		}
		a.Backend, a.Status = r.Reply.Backend, r.Reply.Response.Status
		a.Fields, a.Body = r.Reply.Response.Fields, r.Reply.Response.Body
		return a, nil
	case r.Told, r.State.Settled(), time.Since(r.Created) >= w.plan.Wait:
		a.Pending, a.Status = true, http.StatusAccepted // as it was, or would have been, the first time
		return a, nil
	}
	return Answer{ID: r.ID}, &outcome.Error{
		Code: outcome.RequestInProgress, RetryAfter: again,
		Detail: "the first request with this Idempotency-Key is still on its way: ask again, or look at the Location",
	}
}

// consider keeps an answer for a client that comes again, if it is the one
// that such a client would get now.
func (w *write) consider(i int, r result, resp Response) {
	if w.record.Claim == (Key{}) || r != answered {
		return
	}
	if w.record.Reply != nil && w.verdict.count(DeliveryDone) > w.plan.Ack.need(len(w.verdict.deliveries)) {
		return // the client has its answer, and gets the same again
	}
	best := w.firstSuccess()
	if best < 0 {
		best = w.first(DeliveryHeld)
	}
	if best != i {
		return
	}
	w.record.Reply = &Reply{Backend: w.verdict.deliveries[i].Backend, Response: resp}
	w.newReply = w.record.Reply
}

// explain notes in words, for operators, how an attempt that did not succeed
// ended.
func (d *Delivery) explain(r result, text string) {
	switch {
	case d.State == DeliveryDone, r == answered:
		d.Error = "" // the status says it
	default:
		d.Error = text[:min(len(text), MaxError)]
	}
}

// live returns w's record as things stand.
func (w *write) live() Record {
	r := w.record
	r.State = w.verdict.state()
	r.Deliveries = slices.Clone(w.verdict.deliveries)
	return r
}
