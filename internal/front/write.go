package front

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"

	"lb/internal/exchange"
	"lb/internal/fanout"
	"lb/internal/field"
	"lb/internal/outcome"
)

// serveFanout takes a write in whole, submits it, and answers as far as the
// deliveries have come.
func (f *Front) serveFanout(w *writer, r *http.Request, x *exchange.Exchange) {
	plan := x.Route.Plan.(*fanout.Plan)
	content, failure := readAll(r, plan.MaxBody)
	if failure != nil {
		w.Header().Set("Connection", "close") // the rest of the body is of no use
		w.refuse(failure)
		return
	}
	keys := r.Header["Idempotency-Key"]
	if field.Named(r.Header["Connection"], "Idempotency-Key") {
		keys = nil
	}
	if len(keys) > 1 {
		w.refuse(&outcome.Error{Code: outcome.BadRequest, Detail: "the request has more than one Idempotency-Key"})
		return
	}
	write := fanout.Write{
		Method: x.Method, Target: originForm(x), Host: r.Host,
		Fields: endToEnd(r.Header, &x.Forward), Body: content,
		RequestID: x.Forward.RequestID,
	}
	if len(keys) == 1 {
		write.Key = keys[0]
	}
	answer, err := f.Fanout.Submit(r.Context(), plan, write)
	switch {
	case err == nil:
		x.Outcome = outcome.FromStatus(answer.Status)
		f.answerWrite(w, r, answer)
	case errors.As(err, &failure):
		if answer.ID != "" { // the request came before, and has no answer yet
			w.Header().Set("Location", statusOf(answer.ID))
		}
		w.refuse(failure)
	case r.Context().Err() != nil: // the client left; the write goes on without it
		panic(http.ErrAbortHandler)
	default:
		w.refuse(&outcome.Error{Code: outcome.Internal, Detail: "the log tells more", Err: err})
	}
}

// statusOf is where the status of a write can be read.
func statusOf(id string) string { return exchange.Reserved + "fanout/" + id }

// answerWrite sends what the first backend in config order said, or 202 with
// the place where the rest can be followed.
func (f *Front) answerWrite(w *writer, r *http.Request, a fanout.Answer) {
	h := w.Header()
	for _, field := range a.Fields {
		h.Add(field.Name, field.Value)
	}
	h.Del("X-Lb-Fanout-Id") // a backend's own
	h.Del("X-Lb-Acked")
	w.x.FanoutID, w.x.Acked = a.ID, fmt.Sprintf("%d/%d", a.Acked, a.Total)
	h["X-LB-Fanout-Id"] = []string{a.ID} // spelled as documented, for those who look with grep
	h["X-LB-Acked"] = []string{w.x.Acked}
	if !a.Pending {
		w.answer(a.Status, a.Body)
		return
	}
	h.Set("Location", statusOf(a.ID))
	status, _, err := f.Fanout.Status(r.Context(), a.ID)
	if err != nil {
		status = fanout.Status{ID: a.ID, State: fanout.WritePending} // the write is admitted, whatever the journal says now
	}
	w.json(http.StatusAccepted, status)
}

// readAll reads the request's body, of at most limit bytes.
func readAll(r *http.Request, limit int64) ([]byte, *outcome.Error) {
	tooLarge := &outcome.Error{
		Code:   outcome.BodyTooLarge,
		Detail: fmt.Sprintf("the body is larger than the %d bytes that the route's max_body allows", limit),
	}
	if r.ContentLength > limit {
		return nil, tooLarge
	}
	content, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	switch {
	case int64(len(content)) > limit:
		return nil, tooLarge
	case r.Context().Err() != nil && !errors.Is(err, os.ErrDeadlineExceeded):
		panic(http.ErrAbortHandler) // the client left before it had said everything
	case err != nil:
		return nil, &outcome.Error{
			Code:   outcome.BadRequest,
			Detail: outcome.DetailOf(outcome.ClientFault),
			Err:    err,
		}
	}
	return content, nil
}

// originForm returns the request target without scheme and authority.
func originForm(x *exchange.Exchange) string {
	if !x.Target.HasQuery {
		return x.Target.RawPath
	}
	return x.Target.RawPath + "?" + x.Target.RawQuery
}

// framing are the fields that the sender of each attempt makes anew.
var framing = map[string]bool{"Content-Length": true, "Expect": true, "Idempotency-Key": true}

// endToEnd returns the fields that every delivery carries: the client's, less
// those of its connection, plus what lb says about the client. They are sorted
// by name, so that each attempt sends the same bytes.
func endToEnd(h http.Header, forward *exchange.Forward) []fanout.Field {
	var fields []fanout.Field
	add := func(name, value string) {
		if value != "" {
			fields = append(fields, fanout.Field{Name: name, Value: value})
		}
	}
	for name, values := range h {
		if field.HopByHop(name, h["Connection"]) || framing[name] || exchange.Withheld(name, forward.Trusted) {
			continue
		}
		switch name {
		case "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Request-Id":
		default:
			for _, v := range values {
				fields = append(fields, fanout.Field{Name: name, Value: v})
			}
		}
	}
	add("X-Forwarded-For", forward.For)
	add("X-Forwarded-Host", forward.Host)
	add("X-Forwarded-Proto", forward.Proto)
	add("X-Request-Id", forward.RequestID)
	slices.SortStableFunc(fields, func(a, b fanout.Field) int { return strings.Compare(a.Name, b.Name) })
	return fields
}
