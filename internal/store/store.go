// Package store keeps what must outlive the process in one SQLite file: what
// operators have said about backends, which instances have registered, the
// writes that are not delivered yet, and who did what and when.
package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/ncruces/go-sqlite3"
)

var (
	// ErrInUse says that somebody else has the file open.
	ErrInUse = errors.New("in use by another lb")
	// ErrDamaged says that the file, or a part of it, cannot be made sense of.
	ErrDamaged = errors.New("damaged")
	// ErrUnavailable says that nothing was read or written: no space, an I/O
	// error, a damaged page, a closed store. It goes to clients as 503
	// storage_unavailable.
	ErrUnavailable = errors.New("unavailable")
)

// How long a call waits for those before it when its context says nothing. A
// write takes as long as the disk takes to sync, milliseconds; behind a disk
// that hangs, callers are better told than kept.
const patience = 5 * time.Second

// Store is an open store. Safe for concurrent use: calls take turns on the one
// connection.
//
// A method's context bounds the wait for its turn and interrupts a statement,
// but not the disk: a sync that hangs keeps its own caller, and the others get
// ErrUnavailable after 5 s. A context that ended gives its own error, and then
// nothing was written.
type Store struct {
	path string
	lock *os.File // nil in memory

	turn   chan struct{} // holds one value; who takes it may use what follows
	conn   *sqlite3.Conn // nil when closed
	broken error         // why nothing is written any more
	kept   map[string]*sqlite3.Stmt

	journal atomic.Pointer[Journal]
}

// Open opens the store in the file at path, and creates it with mode 0600 if
// there is none; its directory must exist. The file belongs to the caller
// alone until Close or the end of the process, however it ends: an error that
// wraps ErrInUse says that it belongs to somebody else. ErrDamaged is wrapped
// when the file is no database or is damaged as far as can be told without
// reading all of it. Another program's database, and a file written by a newer
// lb, are refused and left as they are.
//
// An empty path gives a store in memory, which forgets everything.
func Open(path string) (*Store, error) { return open(path, "os") }

// open is Open over the file layer (VFS) of that name.
func open(path, vfs string) (*Store, error) {
	s := &Store{path: path, turn: make(chan struct{}, 1)}
	var err error
	if path == "" {
		s.path = "in memory"
		err = s.connect(":memory:")
	} else {
		err = s.openFile(path, vfs)
	}
	if err != nil {
		return nil, errors.Join(err, s.release())
	}
	s.turn <- struct{}{}
	return s, nil
}

// connect opens the database and brings it up to date.
func (s *Store) connect(name string) error {
	conn, err := sqlite3.OpenFlags(name, sqlite3.OPEN_READWRITE|sqlite3.OPEN_URI)
	if err != nil {
		return s.explain(err)
	}
	s.conn = conn
	err = prepare(conn, s.lock != nil)
	if err == nil {
		err = migrate(conn, migrations)
	}
	if errors.Is(err, sqlite3.BUSY) {
		return inUse(s.path) // by something that knows no lock file: SQLite's shell, a backup
	}
	return s.explain(err)
}

// Close ends the store and lets another process open the file. Calls that come
// later get ErrUnavailable. A second Close does nothing.
func (s *Store) Close() error {
	if j := s.journal.Load(); j != nil {
		j.Close()
	}
	if err := s.takeTurn(context.Background()); err != nil {
		return err
	}
	defer s.endTurn()
	return s.release()
}

// release gives up what open took. The lock goes last: before that the file is
// still being written.
func (s *Store) release() error {
	s.dropKept()
	err := s.conn.Close()
	s.conn = nil
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
		s.lock = nil
	}
	return err
}

// read calls fn when it is its turn.
func (s *Store) read(ctx context.Context, fn func(*sqlite3.Conn) error) error {
	if err := s.takeTurn(ctx); err != nil {
		return err
	}
	defer s.endTurn()
	if s.conn == nil {
		return unavailable(s.path, errors.New("it is closed"))
	}
	defer s.conn.SetInterrupt(s.conn.SetInterrupt(ctx))
	err := fn(s.conn)
	if err != nil && ctx.Err() != nil && errors.Is(err, sqlite3.INTERRUPT) {
		return ctx.Err()
	}
	return s.explain(err)
}

// write calls fn in a transaction when it is its turn. When write returns nil
// everything is synced to the disk; when it returns an error nothing of it is
// there, with one exception.
//
// After a failed sync nobody knows which of the written pages are on the disk:
// the kernel may report the failure once and forget it, so that a later sync
// which succeeds proves nothing. SQLite fails the transaction; its frames stay
// in the write-ahead log and are overwritten by the next ones. If the process
// ends before that, recovery may find them whole and apply them: a write whose
// sync failed is not acknowledged, but it may come true at the next start. From
// then on this store only reads; the next Open begins with what the disk has.
// (A failed sync of a checkpoint is another matter: SQLite keeps the log and
// repeats the checkpoint from it, so nothing acknowledged depends on it.)
//
// After any other failure, a full disk above all, the next write finds out
// whether it is over.
func (s *Store) write(ctx context.Context, fn func(*sqlite3.Conn) error) error {
	return s.read(ctx, func(c *sqlite3.Conn) error { return s.commit(c, fn) })
}

// commit is write for who has the turn.
func (s *Store) commit(c *sqlite3.Conn, fn func(*sqlite3.Conn) error) error {
	if s.broken != nil {
		return s.broken
	}
	err := transaction(c, fn)
	if errors.Is(err, sqlite3.IOERR_FSYNC) || errors.Is(err, sqlite3.IOERR_DIR_FSYNC) {
		s.broken = fmt.Errorf("nothing is written any more since a sync failed: check the disk and restart lb: %w", err)
	}
	return err
}

// takeTurn waits until the connection is free.
func (s *Store) takeTurn(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-s.turn:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return unavailable(s.path, fmt.Errorf("the calls before have not come back for %v: check the disk", patience))
	}
}

func (s *Store) endTurn() { s.turn <- struct{}{} }

// explain says of an error of SQLite's what it means for callers.
func (s *Store) explain(err error) error {
	switch {
	case errors.Is(err, sqlite3.CORRUPT), errors.Is(err, sqlite3.NOTADB), errors.Is(err, sqlite3.IOERR_DATA), errors.Is(err, errSum), errors.Is(err, errStructure):
		return damaged(s.path, err)
	case errors.As(err, new(sqlite3.ErrorCode)):
		return unavailable(s.path, err)
	}
	return err
}

func unavailable(path string, why error) error {
	return fmt.Errorf("the store %s is %w: %w", path, ErrUnavailable, why)
}

func damaged(path string, why error) error {
	return fmt.Errorf("the store %s is %w and %w (%w): put a copy in its place, or move it away to begin with an empty one",
		path, ErrDamaged, ErrUnavailable, why)
}

func inUse(path string) error {
	return fmt.Errorf("the store %s is %w: stop that one, or give each its own file", path, ErrInUse)
}
