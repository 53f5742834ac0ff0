package store

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// ownerPath is the environment variable that makes the test binary an owner of
// the store it names.
const ownerPath = "LB_TEST_STORE_OWNER"

const ownerBackends = 5

// own opens the store at path and writes without end: i to the state of backend
// i modulo 5 and into the audit trail, then registers i in place of i-5. What
// is acknowledged goes to stdout.
func own(path string) {
	s, err := Open(path)
	for i := 0; err == nil; i++ {
		state := drained(strconv.Itoa(i % ownerBackends))
		state.Word = strconv.Itoa(i)
		err = s.SetOperatorState(context.Background(), state, record(state.Word))
		if err == nil {
			gone := RegistrationKey{"resize", strconv.Itoa(i - ownerBackends)}
			err = s.SaveRegistrations(context.Background(), []Registration{registered(state.Word)}, []RegistrationKey{gone})
		}
		if err == nil {
			_, err = fmt.Println(i)
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func TestAKilledOwnerLosesNothingItAcknowledged(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel() // kills an owner that outlives a failed test
	for round := range 3 {
		path := filepath.Join(t.TempDir(), "lb.db")
		owner := exec.CommandContext(ctx, self)
		owner.Env = append(os.Environ(), ownerPath+"="+path)
		owner.Stderr = os.Stderr
		stdout, err := owner.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, owner.Start())

		acknowledged := -1
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			acknowledged, err = strconv.Atoi(lines.Text())
			require.NoError(t, err)
			if acknowledged == 50*(round+1) {
				_, err = Open(path)
				require.ErrorIs(t, err, ErrInUse)
				require.NoError(t, owner.Process.Kill())
			}
		}
		require.ErrorContains(t, owner.Wait(), "killed")

		s := mustOpen(t, path) // at once
		words := details(t, s)
		last := len(words) - 1
		require.GreaterOrEqual(t, last, acknowledged)
		require.LessOrEqual(t, last, acknowledged+1, "one more may have been written and not acknowledged")
		for n, word := range words {
			require.Equal(t, strconv.Itoa(last-n), word, "no gaps")
		}
		want := make(map[string]string)
		for i := max(0, last-ownerBackends+1); i <= last; i++ {
			want[strconv.Itoa(i%ownerBackends)] = strconv.Itoa(i)
		}
		got := make(map[string]string)
		for _, state := range states(t, s) {
			got[state.Backend] = state.Word
		}
		require.Equal(t, want, got, "a state and its record go together")

		var instances []int
		for _, r := range registrations(t, s) {
			i, err := strconv.Atoi(r.Instance)
			require.NoError(t, err)
			require.Equal(t, registered(r.Instance), r)
			instances = append(instances, i)
		}
		slices.Sort(instances)
		newest := instances[len(instances)-1]
		require.GreaterOrEqual(t, newest, acknowledged)
		require.Len(t, instances, ownerBackends, "who comes and who goes, together")
		require.Equal(t, newest-ownerBackends+1, instances[0])
	}
}
