package admin

import (
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"

	"lb/internal/outcome"
)

// Registrar is what the admin listener needs to let backends register
// themselves. Its methods are called from any goroutine and may wait for
// storage and for changes before theirs. Their errors are *outcome.Error where
// the client can be told more than "it failed": Overloaded and
// StorageUnavailable say that nothing has changed.
type Registrar interface {
	// RegisterInstance takes in what a backend says of itself, a JSON document
	// of at most MaxRegistrationBytes, and reports whether the backend is new;
	// else it has renewed its registration. By says who asks, for the audit
	// trail. The further codes of its errors: RegistrationInvalid (Fields says
	// where), RegistrationDisabled, AddressNotAllowed, InstanceExists,
	// ProcedureExists, OtherPolicy.
	RegisterInstance(ctx context.Context, body []byte, by string) (now Registered, created bool, err error)
	// UnregisterInstance takes a backend away. To say the same twice is no
	// error. The further codes of its errors: InstanceNotFound,
	// AmbiguousInstance, RegistrationDisabled.
	UnregisterInstance(ctx context.Context, u Unregistration) error
}

// Registered is the answer to a registration.
type Registered struct {
	// InstanceID is the backend's id in its pool.
	InstanceID string `json:"instanceId"`
	Pool       string `json:"pool"`
	// TTL is how long the backend may stay silent, Heartbeat how often it should
	// register again: Go durations, such as 1m30s.
	TTL       string `json:"ttl"`
	Heartbeat string `json:"heartbeat"`
	// Generation is the number of the configuration that has the backend's pool.
	Generation uint64 `json:"generation"`
}

// Unregistration says which backend is to leave.
type Unregistration struct {
	// ID is the backend's id as the client gave it. Pool is its pool; empty
	// means the only one that has such an id.
	ID, Pool string
	// Force cuts what is in flight, which else may end.
	Force bool
	// By says who asks, for the audit trail.
	By string
}

// MaxRegistrationBytes is the size of the largest body of /register.
const MaxRegistrationBytes = 64 << 10

// register answers a backend that registers itself.
func (h *Handler) register(to Registrar) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if to == nil {
			h.refuse(w, r, registrationOff())
			return
		}
		_, e := parameters(r)
		if e == nil {
			e = saysJSON(r)
		}
		var by string
		if e == nil {
			by, e = h.by(r)
		}
		var body []byte
		if e == nil {
			body, e = document(w, r)
		}
		if e != nil {
			h.refuse(w, r, e)
			return
		}
		now, created, err := to.RegisterInstance(r.Context(), body, by)
		if err != nil {
			h.report(w, r, err)
			return
		}
		status := http.StatusOK
		if created {
			status = http.StatusCreated
		}
		h.answerJSON(w, r, status, now)
	}
}

// unregister answers who takes a backend away.
func (h *Handler) unregister(from Registrar) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if from == nil {
			h.refuse(w, r, registrationOff())
			return
		}
		params, by, e := h.order(r, "pool", "force")
		if e != nil {
			h.refuse(w, r, e)
			return
		}
		force, given := params["force"]
		if given && force != "true" && force != "false" {
			h.refuse(w, r, badRequest("the parameter force is true or false, not %q", clip(force)))
			return
		}
		u := Unregistration{ID: r.PathValue("instanceId"), Pool: params["pool"], Force: force == "true", By: by}
		if err := from.UnregisterInstance(r.Context(), u); err != nil {
			h.report(w, r, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

func registrationOff() *outcome.Error {
	return &outcome.Error{Code: outcome.RegistrationDisabled, Detail: "set registration.enabled to let backends register"}
}

// saysJSON refuses a body of any other type, or of none. A web page can have a
// browser send those anywhere without asking; JSON it cannot.
func saysJSON(r *http.Request) *outcome.Error {
	types := r.Header.Values("Content-Type")
	if len(types) == 1 {
		name, params, err := mime.ParseMediaType(types[0])
		charset, given := params["charset"]
		if err == nil && name == "application/json" && (!given || strings.EqualFold(charset, "utf-8")) {
			return nil
		}
	}
	return badRequest("send one field Content-Type: application/json")
}

// document reads a request's body whole.
func document(w http.ResponseWriter, r *http.Request) ([]byte, *outcome.Error) {
	tooLarge := &outcome.Error{Code: outcome.BodyTooLarge, Detail: "a registration has at most 64 KiB"}
	if r.ContentLength > MaxRegistrationBytes {
		return nil, tooLarge // before the client is asked to go on
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxRegistrationBytes))
	var over *http.MaxBytesError
	switch {
	case errors.As(err, &over):
		return nil, tooLarge
	case err != nil:
		e := badRequest("the body broke off, is malformed, or did not come in time")
		e.Err = err
		return nil, e
	}
	return body, nil
}
