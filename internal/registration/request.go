// Package registration decides about backends that register themselves: what a
// registration may say, who is registered, who stands in whose way, and who has
// been silent for too long. It reads no clock, does no I/O and starts no
// goroutine: whoever calls brings the time, stores what was decided, and acts
// on it.
package registration

import (
	"fmt"
	"time"

	"lb/internal/config"
	"lb/internal/config/load"
	"lb/internal/outcome"
)

// MaxBody is how large the body of a registration may be, in bytes.
const MaxBody = 64 << 10

// Request is a registration as a backend sent it. What it need not say is nil,
// or empty, if it did not.
type Request struct {
	// Pool is the pool's name, Address host:port as allow.Address takes it, ID
	// the backend's name in the pool; it is the address if none was given.
	Pool, Address, ID string
	// Weight is from 1 to 1000.
	Weight *int
	// Invoke is the name of a policy, never an alias.
	Invoke string
	// Concurrency is how many requests the backend takes at once; 0: as the pool's
	// limits.per_backend says.
	Concurrency *int
	// TTL is how long the backend may stay silent, from 1 s to 24 h.
	TTL *time.Duration
	// Labels are free words. Said but empty, they are not nil.
	Labels map[string]string
	// Health is how the backend is checked, with defaults; never by exec.
	Health *config.Health
	// Force lets the registration evict whoever stands in its way.
	Force bool
}

// document is the body of a registration. No value may be null: what is not
// meant is left out.
type document struct {
	Pool        string             `yaml:"pool"`
	Address     string             `yaml:"address"`
	ID          *string            `yaml:"id"`
	Weight      *int               `yaml:"weight"`
	Invoke      *string            `yaml:"invoke"`
	Concurrency *int               `yaml:"concurrency"`
	TTL         *config.Duration   `yaml:"ttl"`
	Labels      *map[string]string `yaml:"labels"`
	Health      *config.Health     `yaml:"health"`
	Force       bool               `yaml:"force"`
}

// Parse reads the body of a registration, one JSON object. The error has the
// code invalid_registration and everything that is wrong in Fields, or the code
// body_too_large. Whether the address may be dialled is not judged here.
func Parse(body []byte) (Request, *outcome.Error) {
	if len(body) > MaxBody {
		return Request{}, &outcome.Error{
			Code: outcome.BodyTooLarge, Detail: fmt.Sprintf("a registration has at most %s", config.Size(MaxBody)),
		}
	}
	var d document
	j := &judge{problems: load.Strict(body, &d)}
	j.decoded = j.problems
	j.name("pool", d.Pool, "")
	j.address(d.Address)
	if d.ID == nil {
		d.ID = &d.Address
	} else if *d.ID != d.Address {
		j.name("id", *d.ID, "[]")
	}
	j.within("weight", d.Weight, 1, maxWeight)
	j.within("concurrency", d.Concurrency, 0, maxConcurrency)
	j.health(d.Health)
	r := Request{
		Pool: d.Pool, Address: d.Address, ID: *d.ID, Weight: d.Weight, Invoke: j.invoke(d.Invoke),
		Concurrency: d.Concurrency, TTL: j.ttl(d.TTL), Labels: j.labels(d.Labels), Health: d.Health, Force: d.Force,
	}
	if len(j.problems) > 0 {
		return Request{}, invalid(j.problems)
	}
	return r, nil
}

// invalid is the error about a registration that says something wrong.
func invalid(problems config.Problems) *outcome.Error {
	e := &outcome.Error{Code: outcome.RegistrationInvalid, Fields: make([]outcome.FieldError, len(problems))}
	for i, p := range problems {
		detail := p.Message
		if p.Suggestion != "" {
			detail += "; " + p.Suggestion
		}
		e.Fields[i] = outcome.FieldError{Field: p.Path, Detail: detail}
	}
	switch first := problems[0]; {
	case first.Path == "":
		e.Detail = "the body: " + e.Fields[0].Detail
	case len(problems) == 1:
		e.Detail = first.Path + ": " + e.Fields[0].Detail
	default:
		e.Detail = fmt.Sprintf("%d things are wrong, the first: %s: %s", len(problems), first.Path, e.Fields[0].Detail)
	}
	return e
}
