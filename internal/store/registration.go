package store

import (
	"context"
	"fmt"
	"time"

	"github.com/ncruces/go-sqlite3"
)

// maxDocument is how many bytes a registration's document may have.
const maxDocument = 64 << 10

// Registration is what is remembered of an instance that has registered itself.
type Registration struct {
	// Pool and Instance name it. At most 1 KiB each.
	Pool, Instance string
	// State is where it stands; the store knows no words. At most 1 KiB.
	State string
	// Seen is when it was heard of last, Left when it went, in UTC; the zero
	// time stays zero.
	Seen, Left time.Time
	// Document is all else; the store does not look into it. At most 64 KiB.
	Document []byte
}

// RegistrationKey names a registration.
type RegistrationKey struct{ Pool, Instance string }

// Registrations returns all that were saved and not forgotten, by pool and
// instance.
func (s *Store) Registrations(ctx context.Context) ([]Registration, error) {
	var found []Registration
	err := s.read(ctx, func(c *sqlite3.Conn) error {
		return query(c, `SELECT id, pool, instance, state, seen, gone, document FROM registrations ORDER BY pool, instance`,
			func(row *sqlite3.Stmt) { found = append(found, scanRegistration(row)) })
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// scanRegistration reads a row, whose first column is the row's number.
func scanRegistration(row *sqlite3.Stmt) Registration {
	return Registration{
		Pool: row.ColumnText(1), Instance: row.ColumnText(2), State: row.ColumnText(3),
		Seen: timeOf(row.ColumnInt64(4)), Left: timeOf(row.ColumnInt64(5)), Document: row.ColumnBlob(6, nil),
	}
}

// SaveRegistrations takes out those that forget names, remembers those in save in
// place of what was known of them before, and appends the records to the audit
// trail: all or nothing, synced to the disk when it returns nil.
func (s *Store) SaveRegistrations(ctx context.Context, save []Registration, forget []RegistrationKey, audit ...Record) error {
	for _, r := range save {
		if len(r.Pool) > maxText || len(r.Instance) > maxText || len(r.State) > maxText {
			return fmt.Errorf("the names of a pool and an instance and the word for a state may have %d bytes each", maxText)
		}
		if len(r.Document) > maxDocument {
			return fmt.Errorf("the document of %s/%s has %d bytes, and may have %d", r.Pool, r.Instance, len(r.Document), maxDocument)
		}
	}
	return s.write(ctx, func(c *sqlite3.Conn) error {
		for _, k := range forget {
			if err := s.run(`DELETE FROM registrations WHERE pool = ? AND instance = ?`, nil, k.Pool, k.Instance); err != nil {
				return err
			}
		}
		for _, r := range save {
			if err := s.putRegistration(r); err != nil {
				return err
			}
		}
		for _, r := range audit {
			if err := insert(c, r); err != nil {
				return err
			}
		}
		return nil
	})
}

// putRegistration stores r within a transaction.
func (s *Store) putRegistration(r Registration) error {
	document := append([]byte{}, r.Document...) // nil would be NULL
	return s.run(`REPLACE INTO registrations (pool, instance, state, seen, gone, document) VALUES (?, ?, ?, ?, ?, ?)`, nil,
		r.Pool, r.Instance, r.State, instant(r.Seen), instant(r.Left), document)
}
