package store

import (
	"context"
	"fmt"
	"time"

	"github.com/ncruces/go-sqlite3"
)

// OperatorState is what an operator has said about one backend.
type OperatorState struct {
	// Pool and Backend name it. At most 1 KiB each.
	Pool, Backend string
	// Word is what it shall be; the store knows no words. At most 1 KiB.
	Word string
	// Since is when that was said, in UTC; the zero time stands for now.
	Since time.Time
	// By is who said it; cut at 1 KiB.
	By string
}

// OperatorStates returns all that operators have said and not taken back, by
// pool and backend.
func (s *Store) OperatorStates(ctx context.Context) ([]OperatorState, error) {
	var states []OperatorState
	err := s.read(ctx, func(c *sqlite3.Conn) error {
		return query(c, `SELECT pool, backend, word, since, set_by FROM operator_state ORDER BY pool, backend`,
			func(row *sqlite3.Stmt) {
				states = append(states, OperatorState{
					Pool: row.ColumnText(0), Backend: row.ColumnText(1), Word: row.ColumnText(2),
					Since: time.Unix(0, row.ColumnInt64(3)).UTC(), By: row.ColumnText(4),
				})
			})
	})
	if err != nil {
		return nil, err
	}
	return states, nil
}

// SetOperatorState remembers state in place of what was said about that backend
// before, or forgets the backend if state has no word, and appends r to the
// audit trail: both or neither, synced to the disk when it returns nil.
func (s *Store) SetOperatorState(ctx context.Context, state OperatorState, r Record) error {
	if len(state.Pool) > maxText || len(state.Backend) > maxText || len(state.Word) > maxText {
		// Cut, they would be somebody else's.
		return fmt.Errorf("the names of a pool and a backend and the word for a state may have %d bytes each", maxText)
	}
	return s.write(ctx, func(c *sqlite3.Conn) error {
		var err error
		if state.Word == "" {
			err = query(c, `DELETE FROM operator_state WHERE pool = ? AND backend = ?`, nil, state.Pool, state.Backend)
		} else {
			err = query(c, `REPLACE INTO operator_state (pool, backend, word, since, set_by) VALUES (?, ?, ?, ?, ?)`, nil,
				state.Pool, state.Backend, state.Word, nanoseconds(state.Since), clip(state.By))
		}
		if err != nil {
			return err
		}
		return insert(c, r)
	})
}

// nanoseconds is how a time is stored.
func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		t = time.Now()
	}
	return t.UnixNano()
}
