package health

import (
	"bufio"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var initials = map[string]Initial{"probe": InitialProbe, "up": InitialUp, "down": InitialDown}

// TestChecks plays the stories of testdata/checks.txt.
func TestChecks(t *testing.T) {
	f, err := os.Open("testdata/checks.txt")
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()

	var c *Checks
	var story string
	var ok, fail int
	stories := 0
	scanner := bufio.NewScanner(f)
	for n := 1; scanner.Scan(); n++ {
		line := strings.TrimSpace(scanner.Text())
		if title, isTitle := strings.CutPrefix(line, "= "); isTitle {
			story, c, ok, fail = title, nil, 0, 0
			stories++
			continue
		}
		if line == "" || line[0] == '#' {
			continue
		}
		words := strings.Fields(line)
		if c == nil {
			require.Len(t, words, 4, "line %d", n)
			c = newChecks(t, words)
			require.Equal(t, words[3], c.Verdict().String(), "%s: line %d", story, n)
			continue
		}
		changes := len(words) == 3 && words[2] == "!"
		require.True(t, len(words) == 2 || changes, "line %d", n)
		changed := false
		switch words[0] {
		case "ok":
			changed, ok, fail = c.Result(true), ok+1, 0
		case "fail":
			changed, ok, fail = c.Result(false), 0, fail+1
		case "reset":
			c.Reset()
			ok, fail = 0, 0
		default:
			require.Fail(t, "unknown event", "line %d: %s", n, line)
		}
		require.Equal(t, words[1], c.Verdict().String(), "%s: line %d: %s", story, n, line)
		require.Equal(t, changes, changed, "%s: line %d: %s", story, n, line)
		require.Equal(t, ok, c.ConsecutiveOK(), "%s: line %d: %s", story, n, line)
		require.Equal(t, fail, c.ConsecutiveFail(), "%s: line %d: %s", story, n, line)
	}
	require.NoError(t, scanner.Err())
	require.Equal(t, 15, stories)
}

func newChecks(t *testing.T, words []string) *Checks {
	t.Helper()
	rise, err := strconv.Atoi(words[0])
	require.NoError(t, err)
	fall, err := strconv.Atoi(words[1])
	require.NoError(t, err)
	initial, known := initials[words[2]]
	require.True(t, known, words[2])
	return &Checks{Rise: rise, Fall: fall, Initial: initial}
}

func TestChecksDoNotAllocate(t *testing.T) {
	c := &Checks{Rise: 2, Fall: 3}
	n := 0
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		n++
		c.Result(n%5 == 0)
	}))
}
