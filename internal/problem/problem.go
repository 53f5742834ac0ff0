// Package problem writes the errors that lb itself answers with: RFC 9457
// problem documents, the same on every listener.
package problem

import (
	"encoding/json"
	"math"
	"net/http"
	"strconv"

	"lb/internal/outcome"
)

// document is the body, with its members in the order that people read.
type document struct {
	Type      string       `json:"type"`
	Title     string       `json:"title"`
	Status    int          `json:"status"`
	Detail    string       `json:"detail,omitempty"`
	Code      outcome.Code `json:"code"`
	RequestID string       `json:"request_id,omitempty"`
	// Errors says what is wrong where in the request's body.
	Errors []outcome.FieldError `json:"errors,omitempty"`
}

// Write answers with e: status, X-LB-Error, Retry-After on every 503 and 429
// (in whole seconds, at least 1), and the document. Fields already set on w,
// such as Allow or Location, stand. requestID may be empty.
func Write(w http.ResponseWriter, e *outcome.Error, requestID string) {
	status := e.Code.Status()
	body, err := json.Marshal(document{
		Type: "urn:lb:error:" + string(e.Code), Title: e.Code.Title(), Status: status,
		Detail: e.Detail, Code: e.Code, RequestID: requestID, Errors: e.Fields,
	})
	if err != nil { // strings and numbers always marshal
		panic(err)
	}
	body = append(body, '\n')
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h["X-LB-Error"] = []string{string(e.Code)} // spelled as documented, for those who look with grep
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		h.Set("Retry-After", strconv.Itoa(max(1, int(math.Ceil(e.RetryAfter.Seconds())))))
	}
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that left needs no error page
}
