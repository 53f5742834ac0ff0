package crash_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"lb/internal/crash"
)

// A build with the tag dies at the hit that was asked for, no sooner and no
// later, and has noted every hit; one without does neither.
func TestCrash(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	build := func(name string, tags ...string) string {
		file := filepath.Join(dir, name)
		out, err := exec.Command("go", append(append([]string{"build"}, tags...), "-o", file, "./testdata/hit")...).CombinedOutput()
		require.NoError(t, err, string(out))
		return file
	}
	with, without := build("with", "-tags", "crashpoints"), build("without")
	path := []string{"a", "b", "a", "b", "b"}
	for _, test := range []struct {
		name, program, at string
		survived, hit     []string
		killed            bool
	}{
		{name: "the first hit", program: with, at: "a:1", hit: path[:1], killed: true},
		{name: "a later hit", program: with, at: "b:2", survived: path[:3], hit: path[:4], killed: true},
		{name: "a hit too many", program: with, at: "b:4", survived: path, hit: path},
		{name: "another point", program: with, at: "c:1", survived: path, hit: path},
		{name: "nowhere", program: with, survived: path, hit: path},
		{name: "without the tag", program: without, at: "a:1", survived: path},
	} {
		t.Run(test.name, func(t *testing.T) {
			hits := filepath.Join(t.TempDir(), "hits")
			cmd := exec.Command(test.program, path...)
			cmd.Env = append(os.Environ(), "LB_CRASH="+test.at, "LB_CRASH_HITS="+hits)
			out, err := cmd.Output()
			require.Equal(t, test.survived, lines(string(out)))
			noted, _ := os.ReadFile(hits) // absent without a hit
			require.Equal(t, test.hit, lines(string(noted)))
			var exit *exec.ExitError
			require.Equal(t, test.killed, errors.As(err, &exit))
			if test.killed {
				require.Equal(t, syscall.SIGKILL, exit.Sys().(syscall.WaitStatus).Signal())
			} else {
				require.NoError(t, err)
			}
		})
	}
	for _, wrong := range []string{"a", "a:0", "a:x", ":1"} {
		cmd := exec.Command(with, "a")
		cmd.Env = append(os.Environ(), "LB_CRASH="+wrong)
		out, err := cmd.CombinedOutput()
		require.Error(t, err, wrong)
		require.Contains(t, string(out), "LB_CRASH="+wrong+": write the name of a crash point")
	}
}

func lines(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

// A crash point costs nothing where nobody asks for crashes.
func BenchmarkAt(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		crash.At("admit.queued")
	}
}
