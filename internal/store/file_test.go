package store

import (
	"bytes"
	"encoding/binary"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/ncruces/go-sqlite3"
	"github.com/stretchr/testify/require"
)

func TestARestartKeeps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lb.db")
	s := mustOpen(t, path)
	require.NoError(t, s.SetOperatorState(t.Context(), drained("a"), record("1")))
	for range 2 {
		require.NoError(t, s.Close())
		s = mustOpen(t, path)
		require.Equal(t, []OperatorState{drained("a")}, states(t, s))
		require.Equal(t, []string{"1"}, details(t, s))
	}
}

func TestMemoryForgetsAndIsPrivate(t *testing.T) {
	s, other := mustOpen(t, ""), mustOpen(t, "")
	require.NoError(t, s.Append(t.Context(), record("1")))
	require.Empty(t, details(t, other))
	require.NoError(t, s.Close())
	require.Empty(t, details(t, mustOpen(t, "")))
}

func TestTheFilesAreTheOwnersAlone(t *testing.T) {
	dir := t.TempDir()
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	s := mustOpen(t, filepath.Join(dir, "lb.db"))
	require.NoError(t, s.Append(t.Context(), record("1")))

	var names []string
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, entry := range entries {
		info, err := entry.Info()
		require.NoError(t, err)
		require.Equal(t, fs.FileMode(0o600), info.Mode(), entry.Name())
		names = append(names, entry.Name())
	}
	require.Equal(t, []string{"lb.db", "lb.db-wal", "lb.db.lock"}, names)
}

func TestOddPaths(t *testing.T) {
	for _, name := range []string{"a b", "a?mode=ro", "a#b", "a%20b", "a&vfs=x", "ü+1", "file:x", ":memory:"} {
		path := filepath.Join(t.TempDir(), name)
		s := mustOpen(t, path)
		require.NoError(t, s.Append(t.Context(), record(name)))
		require.NoError(t, s.Close())
		require.FileExists(t, path)
		require.Equal(t, []string{name}, details(t, mustOpen(t, path)))
	}
	t.Chdir(t.TempDir())
	require.NoError(t, mustOpen(t, "lb.db").Close())
	require.FileExists(t, "lb.db", "relative")
}

func TestOneOwner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lb.db")
	s := mustOpen(t, path)
	_, err := Open(path)
	require.ErrorIs(t, err, ErrInUse)
	require.ErrorContains(t, err, path+" is in use by another lb")
	require.NoError(t, s.Append(t.Context(), record("1")), "the owner feels nothing")

	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(path, link))
	_, err = Open(link)
	require.ErrorIs(t, err, ErrInUse, "by another name too")

	require.NoError(t, s.Close())
	s = mustOpen(t, path)
	require.NoError(t, s.Close())

	// Another program reads it.
	shell, err := sqlite3.Open(path)
	require.NoError(t, err)
	require.NoError(t, shell.Exec("BEGIN; SELECT * FROM audit"))
	_, err = Open(path)
	require.ErrorIs(t, err, ErrInUse)
	require.NoError(t, shell.Close())
	require.Equal(t, []string{"1"}, details(t, mustOpen(t, path)))
}

func TestOfManyThatStartAtOnceOneOwnsIt(t *testing.T) {
	for range 20 {
		path := filepath.Join(t.TempDir(), "lb.db")
		const starts = 4
		owners, refused := make(chan *Store, starts), make(chan error, starts)
		begin := make(chan struct{})
		var wg sync.WaitGroup
		for range starts {
			wg.Go(func() {
				<-begin
				if s, err := Open(path); err == nil {
					owners <- s
				} else {
					refused <- err
				}
			})
		}
		close(begin)
		wg.Wait()
		require.Len(t, owners, 1)
		require.NoError(t, (<-owners).Close())
		for range starts - 1 {
			require.ErrorIs(t, <-refused, ErrInUse)
		}
	}
}

func TestWhatCannotBeAStore(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	for path, want := range map[string]string{
		filepath.Join(dir, "no", "lb.db"): "make the directory " + filepath.Join(dir, "no"),
		dir:                               "is a directory",
		pipe:                              "not a regular file",
	} {
		_, err := Open(path)
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, path)
		require.NoFileExists(t, path+".lock")
	}
}

// closed makes a store with records in it and returns its content.
func closed(t *testing.T) (path string, content []byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "lb.db")
	s := mustOpen(t, path)
	require.NoError(t, s.SetOperatorState(t.Context(), drained("a"), record("1")))
	fill(t, s, 1000)
	require.NoError(t, s.Close())
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	return path, content
}

func TestADamagedFile(t *testing.T) {
	for name, damage := range map[string]func(content []byte) []byte{
		"text":          func([]byte) []byte { return []byte("hello") },
		"long text":     func([]byte) []byte { return bytes.Repeat([]byte("hello "), 5000) },
		"zeros":         func(c []byte) []byte { return make([]byte, len(c)) },
		"header":        func(c []byte) []byte { copy(c, "garbage garbage "); return c },
		"cut in header": func(c []byte) []byte { return c[:50] },
		"cut in page 1": func(c []byte) []byte { return c[:2000] },
		"a bit of page 1": func(c []byte) []byte {
			c[2000] ^= 1
			return c
		},
		"page size": func(c []byte) []byte { c[16] = 3; return c },
	} {
		t.Run(name, func(t *testing.T) {
			path, content := closed(t)
			content = damage(content)
			require.NoError(t, os.WriteFile(path, content, 0o600))
			_, err := Open(path)
			require.ErrorIs(t, err, ErrDamaged)
			require.ErrorContains(t, err, path)
			after, err := os.ReadFile(path)
			require.NoError(t, err)
			require.True(t, bytes.Equal(content, after), "it stays as it is")
		})
	}
}

// Open does not read every page, but no page is believed without its checksum.
func TestAFlippedBit(t *testing.T) {
	path, content := closed(t)
	at := bytes.LastIndex(content, []byte("filler"))
	require.Greater(t, at, 3*4096)
	content[at] ^= 1
	require.NoError(t, os.WriteFile(path, content, 0o600))
	s := mustOpen(t, path)
	require.Equal(t, []OperatorState{drained("a")}, states(t, s), "its neighbours are well")
	var err error
	for before := int64(0); err == nil; {
		var page []Record
		if page, err = s.Audit(t.Context(), before, 10); err == nil {
			require.NotEmpty(t, page, "the end, and nobody noticed")
			before = page[len(page)-1].ID
		}
	}
	require.ErrorIs(t, err, ErrDamaged)
	require.ErrorIs(t, err, ErrUnavailable)
}

func TestAnotherProgramsDatabase(t *testing.T) {
	for name, pragma := range map[string]string{
		"without a mark": "", "with another mark": "PRAGMA application_id = 1;", "with a log": "PRAGMA journal_mode = WAL;",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "other.db")
			other, err := sqlite3.Open(path)
			require.NoError(t, err)
			require.NoError(t, other.Exec(pragma+"CREATE TABLE t(x); INSERT INTO t VALUES (1)"))
			defer func() { require.NoError(t, other.Close()) }() // a log is still there below
			before := snapshot(t, dir)
			_, err = Open(path)
			require.ErrorContains(t, err, path+" is the database of another program")
			require.NotErrorIs(t, err, ErrDamaged)
			require.Equal(t, before, snapshot(t, dir))
		})
	}
}

// snapshot is what the files of a directory hold.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	got := make(map[string]string)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, entry := range entries {
		content, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		require.NoError(t, err)
		got[entry.Name()] = string(content)
	}
	return got
}

func TestTheHeader(t *testing.T) {
	_, content := closed(t)
	require.EqualValues(t, applicationID, binary.BigEndian.Uint32(content[applicationIDOffset:]))
	require.EqualValues(t, 8, content[20], "room for checksums")
	require.EqualValues(t, []byte{2, 2}, content[18:20], "a write-ahead log")
}
