package store

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/ncruces/go-sqlite3"
	"github.com/stretchr/testify/require"
)

func TestANewerFileIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lb.db")
	s := mustOpen(t, path)
	require.NoError(t, s.conn.Exec(fmt.Sprintf("PRAGMA user_version = %d", len(migrations)+1)))
	require.NoError(t, s.Close())
	before, err := os.ReadFile(path)
	require.NoError(t, err)
	_, err = Open(path)
	require.ErrorContains(t, err, fmt.Sprintf("newer lb (version %d, this one knows %d)", len(migrations)+1, len(migrations)))
	after, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, before, after)
}

func TestMigrations(t *testing.T) {
	s := mustOpen(t, "")
	c := s.conn
	steps := append(slices.Clone(migrations),
		`ALTER TABLE audit ADD COLUMN extra TEXT; CREATE TABLE second (x)`,
		`CREATE TABLE third (x); CREATE TABLE nonsense (`)
	version := func() int64 {
		n, err := number(c, "PRAGMA user_version")
		require.NoError(t, err)
		return n
	}
	tables := func(name string) int64 {
		n, err := number(c, "SELECT count(*) FROM sqlite_schema WHERE name = '"+name+"'")
		require.NoError(t, err)
		return n
	}
	require.NoError(t, s.Append(t.Context(), record("kept")))
	require.EqualValues(t, len(migrations), version())
	require.ErrorIs(t, migrate(c, steps), sqlite3.ERROR)
	require.EqualValues(t, len(migrations)+1, version(), "the step before the failing one is taken")
	require.EqualValues(t, 1, tables("second"))
	require.Zero(t, tables("third"), "the failing one left nothing")

	steps[len(steps)-1] = `CREATE TABLE third (x)`
	require.NoError(t, migrate(c, steps))
	require.NoError(t, migrate(c, steps), "twice is once")
	require.EqualValues(t, len(steps), version())
	require.EqualValues(t, 1, tables("third"))
	require.Equal(t, []string{"kept"}, details(t, s))
}

func TestPragmasTakeEffect(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "lb.db"))
	for pragma, want := range map[string]string{
		"journal_mode": "wal", "synchronous": "2", "locking_mode": "exclusive", "cell_size_check": "1", "temp_store": "2",
		"checksum_verification": "1",
	} {
		got := ""
		require.NoError(t, query(s.conn, "PRAGMA "+pragma, func(row *sqlite3.Stmt) { got = row.ColumnText(0) }))
		require.Equal(t, want, got, pragma)
	}
}
