package admin

import (
	"encoding/json"
	"time"

	"lb/internal/outcome"
)

// The values of Health.Status.
const (
	// StatusOK: every required route has an eligible backend.
	StatusOK = "ok"
	// StatusUnavailable: some required route has none. /health answers 503.
	StatusUnavailable = "unavailable"
)

// Health is the body of /health.
type Health struct {
	// Status is StatusOK or StatusUnavailable.
	Status string           `json:"status"`
	Pools  List[PoolHealth] `json:"pools"`
	Config ConfigHealth     `json:"config"`
}

// ConfigHealth says which configuration serves, and what became of the last try
// to replace it.
type ConfigHealth struct {
	// Generation is its number, from 1.
	Generation uint64 `json:"generation"`
	// LoadedAt is since when it serves.
	LoadedAt time.Time `json:"loaded_at"`
	// Error is why the last reload failed; nil if it did not.
	Error *ConfigError `json:"error,omitempty"`
}

// ConfigError is a reload that failed.
type ConfigError struct {
	At     time.Time `json:"at"`
	Detail string    `json:"detail"`
	// Errors are the problems of the configuration, if it was read: as Reloader
	// has them.
	Errors List[outcome.FieldError] `json:"errors"`
}

// PoolHealth is the health of one pool.
type PoolHealth struct {
	Name string `json:"name"`
	// Eligible is how many backends may be picked now.
	Eligible int                 `json:"eligible"`
	Backends List[BackendHealth] `json:"backends"`
}

// BackendHealth is the health of one backend.
type BackendHealth struct {
	ID string `json:"instanceId"`
	// State is one word for what a backend is in, the first that holds of:
	// maintenance (an operator took it out: no work, no probes), draining (it
	// gets no new reads, what is under way ends: an operator said so, or it
	// unregistered), expired (it did not renew its registration), down (its checks fail, or none has ended
	// yet), ejected (a dial failed, or its breaker is not closed), up.
	State string `json:"state"`
	// Reasons says why the backend is not eligible.
	Reasons List[string] `json:"reasons"`
	// ConsecutiveOK and ConsecutiveFail count probes since the last other result.
	ConsecutiveOK   int `json:"consecutive_ok"`
	ConsecutiveFail int `json:"consecutive_fail"`
	// LastProbe is when the last probe ended; nil without one.
	LastProbe *time.Time `json:"last_probe"`
	// LastError is why the last failed probe failed; empty if none did.
	LastError string `json:"last_error,omitempty"`
	// Breaker is closed, open (no traffic) or half-open (a few requests, to
	// see whether it is well again); empty without a breaker.
	Breaker string `json:"breaker,omitempty"`
	// ErrorRate is the share of requests that failed lately, 0 to 1.
	ErrorRate float64 `json:"error_rate"`
	// P50 and P99 are quantiles of the response time, in milliseconds.
	P50 float64 `json:"p50_ms"`
	P99 float64 `json:"p99_ms"`
}

// Instance is one entry of /instances.
type Instance struct {
	ID   string `json:"instanceId"`
	Pool string `json:"pool"`
	// Address is host:port.
	Address string `json:"address"`
	// Source says where the backend came from: "config" or "registration".
	Source string `json:"source"`
	Weight int    `json:"weight"`
	// InFlight is how many requests and attempts have begun and not ended.
	InFlight int64 `json:"in_flight"`
	// Limit is how many may be in flight; 0 means no limit.
	Limit int `json:"limit"`
	// Queued is how many requests and delivery attempts wait for a slot of the
	// pool; it is the same for all of the pool's backends.
	Queued int `json:"queued"`
	// State is the same word as in /health.
	State string `json:"state"`
	// Eligible says whether the policy may pick it.
	Eligible bool `json:"eligible"`
	// Reasons says why the backend is not eligible.
	Reasons List[string] `json:"reasons"`
	// EWMA is the moving average of the time to first byte, in milliseconds, as
	// least_time and custom see it.
	EWMA float64 `json:"ewma_ms"`
	// Labels are the backend's labels, if it has any.
	Labels map[string]string `json:"labels,omitempty"`
	// ExpiresAt is when the backend is taken out unless it renews its
	// registration before; nil for one that did not register itself.
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
}

// List is a slice whose JSON is a list even when it is nil.
type List[T any] []T

// MarshalJSON writes the list, never null.
func (l List[T]) MarshalJSON() ([]byte, error) {
	if l == nil {
		return []byte("[]"), nil
	}
	return json.Marshal([]T(l))
}
