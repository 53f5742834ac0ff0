package fanout

import (
	"context"
	"time"
)

// Unavailable is the Journal of a store that cannot be used: it takes nothing
// and has nothing.
type Unavailable struct {
	// Err is why.
	Err error
}

// Admit fails.
func (u Unavailable) Admit(context.Context, *Record) error { return u.Err }

// Update does nothing: there are no writes.
func (Unavailable) Update(Change) {}

// Flush fails.
func (u Unavailable) Flush(context.Context) error { return u.Err }

// Find fails.
func (u Unavailable) Find(context.Context, string) (Record, bool, error) {
	return Record{}, false, u.Err
}

// Due fails.
func (u Unavailable) Due(context.Context, string, string, time.Time, int) ([]Record, error) {
	return nil, u.Err
}

// Head fails.
func (u Unavailable) Head(context.Context, string, string, Key) (Record, bool, error) {
	return Record{}, false, u.Err
}

// List fails.
func (u Unavailable) List(context.Context, Filter) ([]Record, error) { return nil, u.Err }

// Totals fails.
func (u Unavailable) Totals(context.Context) (Totals, error) { return Totals{}, u.Err }

// Oldest fails.
func (u Unavailable) Oldest(context.Context) ([]Oldest, error) { return nil, u.Err }
