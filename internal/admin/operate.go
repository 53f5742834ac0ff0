package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"lb/internal/outcome"
	"lb/internal/problem"
)

// Operator is what the admin listener needs to carry out what operators want.
// Its methods are called from any goroutine and may wait for storage. Their
// errors are *outcome.Error where the client can be told more than "it failed".
type Operator interface {
	Fanouts
	// SetAdmin makes one change and returns the backend as it is after it. To
	// say the same twice is no error. The codes of its errors:
	// InstanceNotFound (the detail names the id, or the pool, that is unknown),
	// AmbiguousInstance (without a pool the id is in several; the detail names
	// them), StorageUnavailable (nothing has changed).
	SetAdmin(ctx context.Context, change Change) (Instance, error)
	// Audit returns up to limit records whose id is below before, the newest
	// first; before 0 begins with the newest of all. The limit is at least 1
	// and at most MaxAuditRecords+1, which is how more of them are noticed.
	Audit(ctx context.Context, before int64, limit int) ([]AuditRecord, error)
}

// Word is what an operator wants of a backend.
type Word string

// The words of operators.
const (
	// Enabled lets a backend work.
	Enabled Word = "enabled"
	// Draining gives it no new reads; what is under way ends.
	Draining Word = "draining"
	// Maintenance gives it no work and no probes.
	Maintenance Word = "maintenance"
)

// verbs are the last segments of the paths that change a backend, and the
// words that they stand for.
var verbs = map[string]Word{"drain": Draining, "maintenance": Maintenance, "enable": Enabled}

// Change is one thing that an operator wants.
type Change struct {
	// ID is the backend's id as the client gave it. Pool is its pool; empty
	// means the only one that has such an id.
	ID, Pool string
	To       Word
	// By says who asks, for the audit trail.
	By string
}

// AuditRecord tells of one change: who, what, when.
type AuditRecord struct {
	// ID grows with each record.
	ID int64     `json:"id"`
	At time.Time `json:"at"`
	// Who is where the request came from, with "token" or "registration token"
	// before it if the client has shown one; or NAME (that), where NAME is what
	// the client called itself, which nothing proves. What lb did by itself was
	// done by "lb".
	Who string `json:"who"`
	// Action is what was done, Target what it was done to, Detail the rest.
	Action string `json:"action"`
	Target string `json:"target"`
	Detail string `json:"detail"`
	// Generation is the number of the configuration that served at the time.
	Generation uint64 `json:"generation"`
}

// AuditPage is the body of /audit.
type AuditPage struct {
	// Records are ordered from the newest to the oldest.
	Records List[AuditRecord] `json:"records"`
	// Next is the value of before that the next older page has; nil if this
	// page has the oldest record.
	Next *int64 `json:"next"`
}

// How many records a page of /audit has.
const (
	// DefaultAuditRecords is the number where the client does not say.
	DefaultAuditRecords = 100
	// MaxAuditRecords is the most that a client may ask for.
	MaxAuditRecords = 1000
)

// OperatorField is the request field in which a client may say on whose behalf
// it acts: up to MaxOperatorBytes bytes of printable ASCII. It goes into the
// audit trail as a claim.
const (
	OperatorField    = "X-LB-Operator"
	MaxOperatorBytes = 64
)

// change answers a request that sets a backend to a word.
func (h *Handler) change(o Operator, to Word) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		change, e := h.wanted(r, to)
		if e != nil {
			h.refuse(w, r, e)
			return
		}
		now, err := o.SetAdmin(r.Context(), change)
		h.answerOrReport(w, r, now, err)
	}
}

// wanted reads a change out of a request.
func (h *Handler) wanted(r *http.Request, to Word) (Change, *outcome.Error) {
	params, by, e := h.order(r, "pool")
	if e != nil {
		return Change{}, e
	}
	return Change{ID: r.PathValue("id"), Pool: params["pool"], To: to, By: by}, nil
}

// order reads what every request that changes something has: its parameters,
// no body, and who asks.
func (h *Handler) order(r *http.Request, known ...string) (params map[string]string, by string, e *outcome.Error) {
	params, e = parameters(r, known...)
	if e != nil {
		return nil, "", e
	}
	if e := bodiless(r); e != nil {
		return nil, "", e
	}
	by, e = h.by(r)
	return params, by, e
}

// audit answers with a page of the audit trail.
func (h *Handler) audit(o Operator) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		before, limit, e := page(r, DefaultAuditRecords, MaxAuditRecords)
		if e != nil {
			h.refuse(w, r, e)
			return
		}
		records, err := o.Audit(r.Context(), before, limit+1)
		var answer AuditPage
		answer.Records, answer.Next = cut(records, limit, func(r AuditRecord) int64 { return r.ID })
		h.answerOrReport(w, r, answer, err)
	}
}

// page reads which page of a list, the newest first, a request asks for: one of
// missing entries if it does not say, and never of more than most.
func page(r *http.Request, missing, most int64) (before int64, limit int, e *outcome.Error) {
	params, e := parameters(r, "before", "limit")
	if e != nil {
		return 0, 0, e
	}
	if before, e = number(params, "before", 0, math.MaxInt64); e != nil {
		return 0, 0, e
	}
	n, e := number(params, "limit", missing, most)
	return before, int(n), e
}

// cut makes a page of a list for which one entry more than limit was asked, so
// that it shows whether there are more: then next is the key of the page's last.
func cut[T, K any](found []T, limit int, key func(T) K) (page []T, next *K) {
	if len(found) <= limit {
		return found, nil
	}
	last := key(found[limit-1])
	return found[:limit], &last
}

// number returns a parameter that is a whole number from 1 to most.
func number(params map[string]string, name string, missing, most int64) (int64, *outcome.Error) {
	text, ok := params[name]
	if !ok {
		return missing, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 1 || n > most {
		return 0, badRequest("the parameter %s is a whole number from 1 to %d, not %q", name, most, clip(text))
	}
	return n, nil
}

// parameters returns the query's parameters, each of them among those known,
// given once, and not empty. Anything else is refused: a misspelt or forgotten
// pool must not let a change go elsewhere.
func parameters(r *http.Request, known ...string) (map[string]string, *outcome.Error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest("the query cannot be read: %v", err)
	}
	params := make(map[string]string, len(query))
	for name, values := range query {
		switch {
		case !slices.Contains(known, name):
			return nil, badRequest("there is no parameter %q here; known: %q", clip(name), known)
		case len(values) > 1:
			return nil, badRequest("the parameter %s is given %d times", name, len(values))
		case values[0] == "":
			return nil, badRequest("the parameter %s is empty", name)
		}
		params[name] = values[0]
	}
	return params, nil
}

// bodiless refuses a request with a body, where there is nothing to say in one.
func bodiless(r *http.Request) *outcome.Error {
	var first [1]byte
	if _, err := io.ReadFull(r.Body, first[:]); !errors.Is(err, io.EOF) {
		return badRequest("this path takes no body")
	}
	return nil
}

// by says who asks: the peer's address and the token that it has shown, and
// before them what the client calls itself. What lb saw itself stands last, so that no name can imitate it.
func (h *Handler) by(r *http.Request) (string, *outcome.Error) {
	from := peer(r)
	if shown := h.guard.shown(r); shown != nothing {
		from = string(shown) + ", " + from
	}
	switch names := r.Header.Values(OperatorField); {
	case len(names) == 0:
		return from, nil
	case len(names) > 1 || !printable(names[0]):
		return "", badRequest("%s is one name of 1 to %d printable ASCII characters", OperatorField, MaxOperatorBytes)
	default:
		return names[0] + " (" + from + ")", nil
	}
}

func printable(name string) bool {
	return name != "" && len(name) <= MaxOperatorBytes &&
		!slices.ContainsFunc([]byte(name), func(b byte) bool { return b < ' ' || b > '~' })
}

// peer returns the address of the client, without the port. That of a unix
// socket's client is a path of its own choice, which could look like any other.
func peer(r *http.Request) string {
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && local.Network() == "unix" {
		return "unix socket"
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// answerOrReport answers with v, or with an error if there is one.
func (h *Handler) answerOrReport(w http.ResponseWriter, r *http.Request, v any, err error) {
	if err != nil {
		h.report(w, r, err)
		return
	}
	h.answerJSON(w, r, http.StatusOK, v)
}

// report answers with an error of the Operator and of those beside it.
func (h *Handler) report(w http.ResponseWriter, r *http.Request, err error) {
	var e *outcome.Error
	switch {
	case !errors.As(err, &e):
		h.fail(w, r, err)
	case e.Code.Status() >= http.StatusInternalServerError:
		h.log("admin request failed", "code", string(e.Code), "path", clip(r.URL.Path), "error", err)
		problem.Write(w, e, "")
	default:
		h.refuse(w, r, e)
	}
}

func badRequest(format string, args ...any) *outcome.Error {
	return &outcome.Error{Code: outcome.BadRequest, Detail: fmt.Sprintf(format, args...)}
}
