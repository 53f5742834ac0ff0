package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// openFile makes sure that the file at path is a store and nobody else's, and
// opens it.
func (s *Store) openFile(path, vfs string) error {
	// The look into the file comes before the lock, so that no lock file appears
	// beside what is not ours.
	if err := identify(path); err != nil {
		return err
	}
	var err error
	if s.lock, err = lock(path); err != nil {
		return err
	}
	name, err := uri(path, vfs)
	if err != nil {
		return err
	}
	if err := s.connect(name); err != nil {
		return err
	}
	if err := syncDirectory(filepath.Dir(path)); err != nil {
		return unavailable(path, err)
	}
	return nil
}

// Where SQLite's header has what tells whose file it is
// (sqlite.org/fileformat.html §1.3).
const (
	headerSize          = 100
	magic               = "SQLite format 3\x00"
	applicationIDOffset = 68
)

// identify creates the file at path if there is none, and refuses one that is
// no store. SQLite is not asked: it would recover another program's database
// when it opens it, and so write to it.
func identify(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if dir := filepath.Dir(path); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the store %s cannot be created: make the directory %s, or choose another path", path, dir)
	}
	if err != nil {
		return fmt.Errorf("the store cannot be opened: %w: allow it, or choose another path", err)
	}
	defer func() { _ = f.Close() }() // nothing was written
	if info, err := f.Stat(); err != nil {
		return err
	} else if !info.Mode().IsRegular() {
		return fmt.Errorf("the store %s is not a regular file: choose another path", path)
	}
	var header [headerSize]byte
	n, err := io.ReadFull(f, header[:])
	switch {
	case err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		return unavailable(path, err)
	case header == [headerSize]byte{}:
		// New, or cut off while it was made. In the latter case a rollback
		// journal lies beside it, and SQLite knows what to do, or says that
		// this is no database.
		return nil
	case n < headerSize || !bytes.HasPrefix(header[:], []byte(magic)):
		return damaged(path, errors.New("it does not begin as a database does"))
	case binary.BigEndian.Uint32(header[applicationIDOffset:]) != applicationID:
		return fmt.Errorf("%s is the database of another program and stays as it is: choose another path", path)
	}
	return nil
}

// lock takes the file beside path that stands for owning it. (SQLite's own
// locks keep a second owner out too, but of two that start at once each may
// refuse the other.) The lock dies with the process; the file stays, because
// whoever removed it might remove one that somebody else has just locked.
func lock(path string) (*os.File, error) {
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the store cannot be locked: %w: allow it, or choose another path", err)
	}
	if err := flock(f); err != nil {
		_ = f.Close() // nothing was written
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, inUse(path)
		}
		return nil, fmt.Errorf("the store cannot be locked: %w: its file system must support flock", &fs.PathError{Op: "flock", Path: f.Name(), Err: err})
	}
	return f, nil
}

func flock(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var locked error
	err = raw.Control(func(fd uintptr) { locked = syscall.Flock(int(fd), syscall.LOCK_EX|syscall.LOCK_NB) })
	return errors.Join(err, locked)
}

// uri names the file to SQLite (sqlite.org/uri.html). modeof gives its log the
// mode of the file itself; the driver's default is what the umask leaves.
func uri(path, vfs string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	query := "modeof=" + strings.ReplaceAll(url.QueryEscape(path), "+", "%20") + "&vfs=" + vfs
	return (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: query}).String(), nil
}

// syncDirectory makes the names of the files in dir durable. SQLite asks its
// file layer for that when it first syncs a new log, but the driver's syncs the
// log a second time instead of the directory. The log is made when a database
// is opened and keeps its name until it is closed, so once is enough.
func syncDirectory(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
