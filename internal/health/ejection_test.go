package health

import (
	"bufio"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// TestEjection plays the stories of testdata/ejection.txt.
func TestEjection(t *testing.T) {
	f, err := os.Open("testdata/ejection.txt")
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()

	var e *Ejection
	var story string
	var until time.Time
	stories := 0
	scanner := bufio.NewScanner(f)
	for n := 1; scanner.Scan(); n++ {
		line := strings.TrimSpace(scanner.Text())
		if title, ok := strings.CutPrefix(line, "= "); ok {
			story, e, until = title, new(Ejection), time.Time{}
			stories++
			continue
		}
		if line == "" || line[0] == '#' {
			continue
		}
		words := strings.Fields(line)
		require.Len(t, words, 3, "line %d", n)
		at := epoch.Add(duration(t, words[0]))
		switch words[1] {
		case "fails":
			out := e.Failed(at)
			if words[2] == "-" {
				require.Zero(t, out, "%s: line %d: %s", story, n, line)
			} else {
				require.Equal(t, duration(t, words[2]), out, "%s: line %d: %s", story, n, line)
				until = at.Add(out)
			}
		case "works":
			e.Succeeded()
			until = time.Time{}
		case "old":
			e.Answered()
		case "sign":
			e.Shorten(at)
			if at.Before(until) {
				until = at
			}
		case "is":
			phases := map[string]Phase{"calm": Calm, "ejected": Ejected, "trying": Trying}
			require.Contains(t, phases, words[2], "line %d", n)
			require.Equal(t, phases[words[2]], e.Phase(at), "%s: line %d: %s", story, n, line)
		default:
			require.Fail(t, "unknown event", "line %d: %s", n, line)
		}
		require.Equal(t, until, e.Until(), "%s: line %d: %s", story, n, line)
	}
	require.NoError(t, scanner.Err())
	require.Equal(t, 10, stories)
}

func duration(t *testing.T, s string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(s)
	require.NoError(t, err)
	return d
}

func TestEjectionNeverOverflows(t *testing.T) {
	var e Ejection
	now := epoch
	for i := range 1000 {
		out := e.Failed(now)
		require.Positive(t, out, "failure %d", i)
		require.LessOrEqual(t, out, 30*time.Second, "failure %d", i)
		now = now.Add(out)
	}
}
