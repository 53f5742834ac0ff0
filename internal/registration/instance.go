package registration

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"lb/internal/config"
)

// State says whether an instance is there.
type State int

// The states of an instance.
const (
	// Present: it has been heard of within its ttl, or a request to it is in
	// flight.
	Present State = iota
	// Expired: it was silent for its ttl.
	Expired
	// Left: it was unregistered or evicted.
	Left
)

var stateNames = []string{"present", "expired", "left"}

// String returns present, expired or left.
func (s State) String() string { return stateNames[s] }

// MarshalText implements encoding.TextMarshaler.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *State) UnmarshalText(text []byte) error {
	i := slices.Index(stateNames, string(text))
	if i < 0 {
		return fmt.Errorf("no state %q", text)
	}
	*s = State(i)
	return nil
}

// Instance is a backend that registered itself, as it was heard of last.
type Instance struct {
	// Pool and ID say which it is, Address is host:port.
	Pool, ID, Address string
	// Weight is from 1 to 1000.
	Weight int
	// Policy is that of the pool, as of the last registration.
	Policy string
	// Concurrency is how many requests it takes at once; nil or 0: the pool's
	// limits.per_backend, which a backend cannot lift.
	Concurrency *int
	// TTL is how long it may stay silent.
	TTL time.Duration
	// Labels are the user's words; nil: none. They are never changed.
	Labels map[string]string
	// Health is how it is checked; nil: as the pool says. It is never changed.
	Health *config.Health
	State  State
	// Order is its place in the pool: lower ones come first.
	Order uint64
	// First is when it registered, Seen when it was heard of last, LeftAt when
	// it expired or left; that is zero while it is present.
	First, Seen, LeftAt time.Time
}

// Heartbeat returns how often the instance should register again: two times may
// fail before it expires. It is in whole milliseconds.
func (i Instance) Heartbeat() time.Duration { return (i.TTL / 3).Truncate(time.Millisecond) }

// stored is the document of an instance in the store. Fields that a later
// version adds are not read, those that it misses are zero.
type stored struct {
	Pool        string            `json:"pool"`
	ID          string            `json:"id"`
	Address     string            `json:"address"`
	Weight      int               `json:"weight"`
	Policy      string            `json:"policy"`
	Concurrency *int              `json:"concurrency,omitempty"`
	TTL         config.Duration   `json:"ttl"`
	Labels      map[string]string `json:"labels,omitempty"`
	Health      *storedHealth     `json:"health,omitempty"`
	State       State             `json:"state"`
	Order       uint64            `json:"order"`
	First       time.Time         `json:"first"`
	Seen        time.Time         `json:"seen"`
	LeftAt      time.Time         `json:"left_at,omitzero"`
}

// storedHealth is config.Health under names of its own, so that the file stays
// readable whatever becomes of the configuration's names.
type storedHealth struct {
	Type     string               `json:"type"`
	Path     string               `json:"path,omitempty"`
	Method   string               `json:"method,omitempty"`
	Port     int                  `json:"port,omitempty"`
	Headers  []config.HeaderValue `json:"headers,omitempty"`
	Statuses string               `json:"statuses,omitempty"`
	Body     string               `json:"body,omitempty"`
	Service  string               `json:"service,omitempty"`
	Command  []string             `json:"-"` // none: see Parse
	Interval config.Duration      `json:"interval"`
	Timeout  config.Duration      `json:"timeout"`
	Rise     int                  `json:"rise"`
	Fall     int                  `json:"fall"`
	Initial  string               `json:"initial"`
}

// MarshalJSON writes the document for the store.
func (i Instance) MarshalJSON() ([]byte, error) {
	return json.Marshal(stored{
		Pool: i.Pool, ID: i.ID, Address: i.Address, Weight: i.Weight, Policy: i.Policy, Concurrency: i.Concurrency,
		TTL: config.Duration(i.TTL), Labels: i.Labels, Health: (*storedHealth)(i.Health), State: i.State, Order: i.Order,
		First: i.First, Seen: i.Seen, LeftAt: i.LeftAt,
	})
}

// UnmarshalJSON reads what MarshalJSON wrote, in this version or another one.
func (i *Instance) UnmarshalJSON(document []byte) error {
	var s stored
	if err := json.Unmarshal(document, &s); err != nil {
		return err
	}
	if s.Pool == "" || s.ID == "" || s.Address == "" || s.TTL <= 0 {
		return errors.New("not the document of an instance")
	}
	*i = Instance{
		Pool: s.Pool, ID: s.ID, Address: s.Address, Weight: max(1, s.Weight), Policy: s.Policy, Concurrency: s.Concurrency,
		TTL: s.TTL.D(), Labels: s.Labels, Health: (*config.Health)(s.Health), State: s.State, Order: s.Order,
		First: s.First, Seen: s.Seen, LeftAt: s.LeftAt,
	}
	return nil
}
