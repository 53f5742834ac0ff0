package store

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"lb/internal/fanout"
	"lb/internal/fanout/journaltest"
)

func mustJournal(t *testing.T, s *Store) *Journal {
	t.Helper()
	j, err := s.Journal(JournalOptions{})
	require.NoError(t, err)
	t.Cleanup(j.Close)
	return j
}

func TestTheJournalIsOne(t *testing.T) {
	for name, key := range map[string][]byte{"plain": nil, "encrypted": make([]byte, keySize)} {
		t.Run(name, func(t *testing.T) {
			journaltest.Run(t, func(t *testing.T) fanout.Journal {
				j, err := mustOpen(t, filepath.Join(t.TempDir(), "lb.db")).Journal(JournalOptions{Key: key})
				require.NoError(t, err)
				t.Cleanup(j.Close)
				return j
			})
		})
	}
}
