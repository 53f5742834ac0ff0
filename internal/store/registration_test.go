package store

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3"
	"github.com/stretchr/testify/require"
)

func registered(instance string) Registration {
	return Registration{Pool: "resize", Instance: instance, State: "present", Seen: noon, Document: []byte(`{"address":"` + instance + `:1"}`)}
}

// registrations are what s holds.
func registrations(t *testing.T, s *Store) []Registration {
	t.Helper()
	got, err := s.Registrations(t.Context())
	require.NoError(t, err)
	return got
}

func TestRegistrations(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		require.Empty(t, registrations(t, s))
		a, b, c := registered("a"), registered("b"), registered("c")
		c.Pool = "aaa"
		c.Seen, c.Left = noon.In(time.FixedZone("", 3600)), noon.Add(time.Nanosecond)
		require.NoError(t, s.SaveRegistrations(t.Context(), []Registration{b, a, c}, nil, record("1"), record("2")))
		c.Seen = noon
		require.Equal(t, []Registration{c, a, b}, registrations(t, s), "by pool and instance, in UTC to the nanosecond; zero times stay zero")

		a.State, a.Document = "left", nil
		gone := []RegistrationKey{{"resize", "b"}, {"resize", "nobody"}, {"aaa", "a"}}
		require.NoError(t, s.SaveRegistrations(t.Context(), []Registration{a}, gone, record("3")))
		require.Equal(t, []Registration{c, a}, registrations(t, s))

		require.NoError(t, s.SaveRegistrations(t.Context(), []Registration{a}, []RegistrationKey{{"resize", "a"}, {"aaa", "c"}}))
		require.Equal(t, []Registration{a}, registrations(t, s), "who is saved stays")
		require.NoError(t, s.SaveRegistrations(t.Context(), nil, nil))
		require.Equal(t, []string{"3", "2", "1"}, details(t, s))
	})
}

func TestRegistrationsAreKeptAsTheyAre(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		odd := Registration{
			Pool: "p\x00'; --", Instance: "\xff[::1]:80", State: strings.Repeat("s", maxText), Document: bytes.Repeat([]byte{0, 0xff}, maxDocument/2),
		}
		require.NoError(t, s.SaveRegistrations(t.Context(), []Registration{odd}, nil))
		require.Equal(t, []Registration{odd}, registrations(t, s))

		long := strings.Repeat("a", maxText+1)
		for name, change := range map[string]func(*Registration){
			"1024 bytes each":                   func(r *Registration) { r.Pool = long },
			"instance and the word":             func(r *Registration) { r.Instance = long },
			"the word for a state":              func(r *Registration) { r.State = long },
			"resize/a has 65537 bytes, and may": func(r *Registration) { r.Document = make([]byte, maxDocument+1) },
		} {
			bad := registered("a")
			change(&bad)
			err := s.SaveRegistrations(t.Context(), []Registration{registered("good"), bad}, []RegistrationKey{{odd.Pool, odd.Instance}}, record("refused"))
			require.ErrorContains(t, err, name)
			require.NotErrorIs(t, err, ErrUnavailable, "the caller's mistake")
			require.Equal(t, []Registration{odd}, registrations(t, s), "all or nothing")
		}
		require.Empty(t, details(t, s))
	})
}

func TestRegistrationsOnAFullDisk(t *testing.T) {
	d := newDisk(t)
	s := d.open(t)
	a, b := registered("a"), registered("b")
	require.NoError(t, s.SaveRegistrations(t.Context(), []Registration{a}, nil, record("before")))
	for range 3 {
		for _, fault := range []error{sqlite3.FULL, sqlite3.IOERR_WRITE} {
			d.set(failing("write", fault))
			err := s.SaveRegistrations(t.Context(), []Registration{b}, []RegistrationKey{{a.Pool, a.Instance}}, record("lost"))
			require.ErrorIs(t, err, ErrUnavailable)
			require.ErrorIs(t, err, fault)
			require.Equal(t, []Registration{a}, registrations(t, s))
			require.Equal(t, []string{"before"}, details(t, s))
		}
	}
	d.set(nil)
	require.NoError(t, s.SaveRegistrations(t.Context(), []Registration{b}, []RegistrationKey{{a.Pool, a.Instance}}, record("after")))
	after := mustOpen(t, filepath.Join(d.afterPowerFailure(t), "lb.db"))
	require.Equal(t, []Registration{b}, registrations(t, after), "what is acknowledged is synced")
	require.Equal(t, []string{"after", "before"}, details(t, after))
}

// A file of an older lb gets the table, and keeps what it has.
func TestAnOlderFileTakesRegistrations(t *testing.T) {
	path := olderFile(t)
	s := mustOpen(t, path)
	require.Equal(t, []string{"1"}, details(t, s))
	require.NoError(t, s.SaveRegistrations(t.Context(), []Registration{registered("a")}, nil))
	require.NoError(t, s.Close())
	require.Equal(t, []Registration{registered("a")}, registrations(t, mustOpen(t, path)))
}

// olderFile is a store as it was before there were registrations.
func olderFile(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "lb.db")
	s := mustOpen(t, path)
	require.NoError(t, s.Append(t.Context(), record("1")))
	require.NoError(t, s.conn.Exec(`DROP TABLE registrations; DROP TABLE config_versions; PRAGMA user_version = 2`))
	require.NoError(t, s.Close())
	return path
}

func TestSalvageOfAnOlderFileMissesNoRegistrations(t *testing.T) {
	report, err := Salvage(t.Context(), olderFile(t), filepath.Join(t.TempDir(), "new.db"), nil)
	require.NoError(t, err)
	require.Equal(t, Report{Audit: 1}, report)
}

// A page that hangs in the air takes its rows with it, and no others.
func TestSalvageBringsRegistrations(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lb.db")
	s := mustOpen(t, path)
	var all []Registration
	for i := range 100 {
		r := registered(fmt.Sprintf("instance-%02d", i))
		r.Document = bytes.Repeat([]byte(r.Instance), 100)
		all = append(all, r)
	}
	require.NoError(t, s.SaveRegistrations(t.Context(), all, nil))
	require.NoError(t, s.Close())
	content, err := os.ReadFile(path)
	require.NoError(t, err)

	to := filepath.Join(t.TempDir(), "new.db")
	report, err := Salvage(t.Context(), path, to, nil)
	require.NoError(t, err)
	require.Equal(t, Report{Registrations: 100}, report)
	require.Equal(t, all, registrations(t, mustOpen(t, to)))

	at := bytes.LastIndex(content, []byte("instance-50instance-50")) / 4096 * 4096
	require.EqualValues(t, 13, content[at], "a leaf of a table")
	content[at] = 77
	require.NoError(t, os.WriteFile(path, content, 0o600))
	s = mustOpen(t, path)
	_, err = s.Registrations(t.Context())
	require.ErrorIs(t, err, ErrDamaged)
	require.NoError(t, s.Close())

	to = filepath.Join(t.TempDir(), "new.db")
	report, err = Salvage(t.Context(), path, to, nil)
	require.NoError(t, err)
	require.Len(t, report.Lost, 1)
	require.Contains(t, report.Lost[0], "some of the registrations: ")
	left := registrations(t, mustOpen(t, to))
	require.Len(t, left, report.Registrations)
	require.Subset(t, all, left)
	require.Greater(t, len(left), 90)
	require.Less(t, len(left), 100)
}

// BenchmarkRegistrations reads and writes 10,000 registrations at once.
func BenchmarkRegistrations(b *testing.B) {
	s, err := Open(filepath.Join(b.TempDir(), "lb.db"))
	require.NoError(b, err)
	defer func() { require.NoError(b, s.Close()) }()
	all := make([]Registration, 10_000)
	for i := range all {
		all[i] = registered(fmt.Sprint("instance-", i))
		all[i].Document = bytes.Repeat([]byte("x"), 500)
	}
	b.Run("save", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			require.NoError(b, s.SaveRegistrations(b.Context(), all, nil))
		}
	})
	b.Run("load", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			found, err := s.Registrations(b.Context())
			require.NoError(b, err)
			require.Len(b, found, len(all))
		}
	})
}
