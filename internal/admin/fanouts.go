package admin

import (
	"context"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Fanouts is what the admin listener needs of the writes that fan out. Its
// methods are called from any goroutine and may wait for storage. Their errors
// are *outcome.Error where the client can be told more than "it failed":
// StorageUnavailable from each of them, and from all but ListFanouts
// FanoutNotFound (no write has that id, or it has no such delivery).
type Fanouts interface {
	// ListFanouts returns the writes that the filter lets through, by rising
	// Seq. The limit is at least 1 and at most MaxFanouts+1, which is how more
	// of them are noticed.
	ListFanouts(ctx context.Context, f FanoutFilter) ([]Fanout, error)
	// ShowFanout returns one write.
	ShowFanout(ctx context.Context, id string) (Fanout, error)
	// RetryDelivery has a parked delivery tried again, and SkipDelivery leaves
	// out one that is pending, held or parked; both return the write as it is
	// then. DeliverySettled says that the delivery is not where that can be
	// done to it. After StorageUnavailable the detail says what is known.
	RetryDelivery(ctx context.Context, c DeliveryChange) (Fanout, error)
	SkipDelivery(ctx context.Context, c DeliveryChange) (Fanout, error)
}

// FanoutFilter says which writes are listed.
type FanoutFilter struct {
	// State is one of FanoutStates, Pool a pool's name; empty means any.
	State, Pool string
	// After is the Seq behind which the list begins; 0 for its beginning.
	After uint64
	Limit int
}

// FanoutStates are the states of a write.
var FanoutStates = []string{"pending", "done", "parked", "rejected", "cancelled"}

// DeliveryChange is what an operator wants done to one delivery.
type DeliveryChange struct {
	// ID is the write's, Backend the id of the delivery's backend, as the
	// client gave them.
	ID, Backend string
	// By says who asks, for the audit trail.
	By string
}

// Fanout is a write as operators see it: its status page, and what helps to
// find out what it is and why it is not everywhere.
type Fanout struct {
	// Seq is the write's place in the order of admission, from 1.
	Seq uint64 `json:"seq"`
	ID  string `json:"id"`
	// State is one of FanoutStates.
	State   string    `json:"state"`
	Created time.Time `json:"created"`
	Route   string    `json:"route"`
	Pool    string    `json:"pool"`
	Method  string    `json:"method"`
	// Path is the request target without its query, which may hold secrets.
	Path       string         `json:"path"`
	RequestID  string         `json:"request_id"`
	Deliveries List[Delivery] `json:"deliveries"`
}

// Delivery is one backend's copy of a write.
type Delivery struct {
	// Backend is the backend's id.
	Backend string `json:"backend"`
	// Address is where the backend is now; empty if it is no member of the
	// pool any more.
	Address string `json:"address"`
	// State is pending, held, done, parked, skipped or cancelled.
	State string `json:"state"`
	// Reason says why it is parked, skipped or cancelled; empty in any other
	// state.
	Reason string `json:"reason"`
	// Attempts counts those that failed to connect too.
	Attempts int `json:"attempts"`
	// LastStatus is the last status that the backend answered with; nil if it
	// never did.
	LastStatus *int `json:"last_status"`
	// Error is the last failure in words.
	Error string `json:"error"`
	// NextAttempt is nil while an attempt runs, while the backend is in
	// maintenance, and when none is to come.
	NextAttempt *time.Time `json:"next_attempt"`
}

// FanoutPage is the body of /fanout.
type FanoutPage struct {
	// Fanouts are ordered from the oldest to the newest.
	Fanouts List[Fanout] `json:"fanouts"`
	// Next is the value of after that the next page has; nil if this is the
	// last one.
	Next *uint64 `json:"next"`
}

// How many writes a page of /fanout has.
const (
	// DefaultFanouts is the number where the client does not say.
	DefaultFanouts = 100
	// MaxFanouts is the most that a client may ask for.
	MaxFanouts = 500
)

// listFanouts answers with a page of writes.
func (h *Handler) listFanouts(f Fanouts) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		filter, err := filterOf(r)
		if err != nil {
			h.report(w, r, err)
			return
		}
		limit := filter.Limit
		filter.Limit++
		found, err := f.ListFanouts(r.Context(), filter)
		var page FanoutPage
		page.Fanouts, page.Next = cut(found, limit, func(f Fanout) uint64 { return f.Seq })
		h.answerOrReport(w, r, page, err)
	}
}

// filterOf reads which writes a request asks for.
func filterOf(r *http.Request) (FanoutFilter, error) {
	params, e := parameters(r, "state", "pool", "after", "limit")
	if e != nil {
		return FanoutFilter{}, e
	}
	f := FanoutFilter{State: params["state"], Pool: params["pool"]}
	if f.State != "" && !slices.Contains(FanoutStates, f.State) {
		return f, badRequest("the parameter state is one of %s, not %q", strings.Join(FanoutStates, ", "), clip(f.State))
	}
	after, e := number(params, "after", 0, math.MaxInt64)
	if e != nil {
		return f, e
	}
	limit, e := number(params, "limit", DefaultFanouts, MaxFanouts)
	if e != nil {
		return f, e
	}
	f.After, f.Limit = uint64(max(0, after)), int(limit)
	return f, nil
}

// showFanout answers with one write.
func (h *Handler) showFanout(f Fanouts) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if _, e := parameters(r); e != nil {
			h.refuse(w, r, e)
			return
		}
		found, err := f.ShowFanout(r.Context(), r.PathValue("id"))
		h.answerOrReport(w, r, found, err)
	}
}

// changeDelivery answers a request that does something to one delivery.
func (h *Handler) changeDelivery(do func(context.Context, DeliveryChange) (Fanout, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, by, e := h.order(r)
		if e != nil {
			h.refuse(w, r, e)
			return
		}
		now, err := do(r.Context(), DeliveryChange{ID: r.PathValue("id"), Backend: r.PathValue("backend"), By: by})
		h.answerOrReport(w, r, now, err)
	}
}
