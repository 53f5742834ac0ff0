package store

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3"
	"github.com/stretchr/testify/require"
)

func version(document string) ConfigVersion {
	return ConfigVersion{At: noon, By: "ada", Source: "/etc/lb/lb.yaml", Document: []byte(document), Generation: 7}
}

func save(t *testing.T, s *Store, v ConfigVersion, audit ...Record) int64 {
	t.Helper()
	id, err := s.SaveConfigVersion(t.Context(), v, audit...)
	require.NoError(t, err)
	return id
}

// versionIDs are those that s has, the newest first.
func versionIDs(t *testing.T, s *Store) (ids []int64) {
	t.Helper()
	versions, err := s.ConfigVersions(t.Context(), 0, 1000)
	require.NoError(t, err)
	for _, v := range versions {
		ids = append(ids, v.ID)
	}
	return ids
}

func TestConfigVersions(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		require.Empty(t, versionIDs(t, s))
		first := version("listeners: []\n\x00\xff")
		require.EqualValues(t, 1, save(t, s, first))
		second := version("")
		second.At = noon.In(time.FixedZone("", 3600))
		second.By, second.Source = strings.Repeat("b", maxText+1), "a\xffb"
		require.EqualValues(t, 2, save(t, s, second))

		first.ID = 1
		got, err := s.ConfigVersion(t.Context(), 1)
		require.NoError(t, err)
		require.Equal(t, first, got)
		second.ID, second.At, second.By, second.Source = 2, noon, second.By[:maxText], "a?b"
		second.Document = []byte{}
		got, err = s.ConfigVersion(t.Context(), 2)
		require.NoError(t, err)
		require.Equal(t, second, got, "in UTC to the nanosecond, texts cut and clean")

		first.Document, second.Document = nil, nil
		list, err := s.ConfigVersions(t.Context(), 0, 10)
		require.NoError(t, err)
		require.Equal(t, []ConfigVersion{second, first}, list)
		for _, id := range []int64{0, -1, 3} {
			_, err = s.ConfigVersion(t.Context(), id)
			require.ErrorIs(t, err, ErrNoVersion)
			require.NotErrorIs(t, err, ErrUnavailable)
		}
	})
}

func TestTheSameConfigIsNoNewVersion(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		require.EqualValues(t, 1, save(t, s, version("a"), record("1"), record("2")))
		again := version("a")
		again.By, again.Generation = "bob", 8
		require.EqualValues(t, 1, save(t, s, again, record("3")))
		require.EqualValues(t, 2, save(t, s, version("b")))
		require.EqualValues(t, 3, save(t, s, version("a")), "only the newest counts: this is a rollback")
		require.Equal(t, []int64{3, 2, 1}, versionIDs(t, s))
		require.Equal(t, []string{"3", "2", "1"}, details(t, s), "what was done is told all the same")
		v, err := s.ConfigVersion(t.Context(), 1)
		require.NoError(t, err)
		require.Equal(t, "ada", v.By)
	})
}

func TestTheNewestVersionsAreKept(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		for i := range maxVersions + 5 {
			require.EqualValues(t, i+1, save(t, s, version(fmt.Sprint(i))))
		}
		ids := versionIDs(t, s)
		require.Len(t, ids, maxVersions)
		require.EqualValues(t, maxVersions+5, ids[0])
		require.EqualValues(t, 6, ids[maxVersions-1])

		page, err := s.ConfigVersions(t.Context(), 50, 2)
		require.NoError(t, err)
		require.Equal(t, []int64{49, 48}, []int64{page[0].ID, page[1].ID})
		page, err = s.ConfigVersions(t.Context(), 0, -1)
		require.NoError(t, err)
		require.Len(t, page, 1, "at least one")
	})
}

func TestConfigVersionsAllOrNothing(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		large := version("")
		large.Document = bytes.Repeat([]byte("x"), maxVersionSize)
		require.EqualValues(t, 1, save(t, s, large))
		large.Document = append(large.Document, 'x')
		_, err := s.SaveConfigVersion(t.Context(), large, record("large"))
		require.ErrorIs(t, err, ErrDocumentSize)
		require.NotErrorIs(t, err, ErrUnavailable, "the caller's mistake")

		// An audit trail that takes no record takes no version either.
		require.NoError(t, s.conn.Exec(`CREATE TRIGGER refuse BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'no'); END`))
		id, err := s.SaveConfigVersion(t.Context(), version("b"), record("b"))
		require.ErrorIs(t, err, ErrUnavailable)
		require.Zero(t, id)
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = s.SaveConfigVersion(ended, version("b"))
		require.ErrorIs(t, err, context.Canceled)
		_, err = s.ConfigVersions(ended, 0, 1)
		require.ErrorIs(t, err, context.Canceled)
		_, err = s.ConfigVersion(ended, 1)
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, []int64{1}, versionIDs(t, s))
		require.Empty(t, details(t, s))
	})
}

func TestConfigVersionsSurvive(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "lb.db")
	s := mustOpen(t, path)
	save(t, s, version("a"))
	save(t, s, version("b"))
	require.NoError(t, s.Close())
	s = mustOpen(t, path)
	require.Equal(t, []int64{2, 1}, versionIDs(t, s))
	require.NoError(t, s.Close())

	report, err := Salvage(t.Context(), path, filepath.Join(dir, "new.db"), nil)
	require.NoError(t, err)
	require.Equal(t, Report{Versions: 2}, report)
	s = mustOpen(t, filepath.Join(dir, "new.db"))
	want := version("b")
	want.ID = 2
	got, err := s.ConfigVersion(t.Context(), 2)
	require.NoError(t, err)
	require.Equal(t, want, got)
	require.EqualValues(t, 3, save(t, s, version("c")))
	require.Equal(t, []int64{3, 2, 1}, versionIDs(t, s))
}

// A store that an older lb wrote has no versions, and loses none in a salvage.
func TestSalvageFromBeforeVersions(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "lb.db")
	s := mustOpen(t, path)
	require.NoError(t, s.Append(t.Context(), record("1")))
	require.NoError(t, s.write(t.Context(), func(c *sqlite3.Conn) error {
		return c.Exec(`DROP TABLE config_versions; PRAGMA user_version = 3`)
	}))
	require.NoError(t, s.Close())
	report, err := Salvage(t.Context(), path, filepath.Join(dir, "new.db"), nil)
	require.NoError(t, err)
	require.Equal(t, Report{Audit: 1}, report)
}
