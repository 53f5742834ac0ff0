package breaker

import (
	"bufio"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"lb/internal/backend"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// TestBreaker plays the stories of testdata/breaker.txt.
func TestBreaker(t *testing.T) {
	f, err := os.Open("testdata/breaker.txt")
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()

	settings := &Settings{Open: 10 * time.Second, MaxOpen: time.Minute, HalfOpen: 3}
	var b *Breaker
	var story string
	stories := 0
	scanner := bufio.NewScanner(f)
	for n := 1; scanner.Scan(); n++ {
		line := strings.TrimSpace(scanner.Text())
		if title, ok := strings.CutPrefix(line, "= "); ok {
			story, b = title, New(settings)
			stories++
			continue
		}
		if line == "" || line[0] == '#' {
			continue
		}
		words := strings.Fields(line)
		require.Len(t, words, 3, "line %d", n)
		at := epoch.Add(duration(t, words[0]))
		b.Advance(at)
		var got string
		switch words[1] {
		case "trips":
			d := b.Trip(at)
			got = d.String()
			words[2] = duration(t, words[2]).String()
			require.Equal(t, at.Add(d), b.Until(), "%s: line %d", story, n)
			require.Equal(t, Open, b.State(), "%s: line %d", story, n)
		case "passes":
			b.Pass(at)
			got = b.State().String()
		case "is":
			got = b.State().String()
		default:
			require.Fail(t, "unknown event", "line %d: %s", n, line)
		}
		require.Equal(t, words[2], got, "%s: line %d: %s", story, n, line)
	}
	require.NoError(t, scanner.Err())
	require.Equal(t, 7, stories)
}

func duration(t *testing.T, s string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(s)
	require.NoError(t, err)
	return d
}

func TestPassedCountsAnewInEachHalfOpen(t *testing.T) {
	b := New(&Settings{Open: time.Second, MaxOpen: time.Minute, HalfOpen: 2})
	b.Trip(epoch)
	b.Advance(epoch.Add(time.Second))
	b.Pass(epoch)
	passed, of := b.Passed()
	require.Equal(t, []int{1, 2}, []int{passed, of})
	b.Advance(epoch.Add(time.Hour))
	passed, _ = b.Passed()
	require.Equal(t, 1, passed, "it is half-open already")
	b.Trip(epoch.Add(time.Hour))
	b.Advance(epoch.Add(2 * time.Hour))
	passed, _ = b.Passed()
	require.Zero(t, passed)
}

func TestConfigureKeepsTheState(t *testing.T) {
	few := &Settings{Open: 10 * time.Second, MaxOpen: time.Minute, HalfOpen: 2}
	more := &Settings{Open: time.Second, MaxOpen: 15 * time.Second, HalfOpen: 3}
	b := New(few)
	b.Configure(more)
	require.Equal(t, Closed, b.State())
	b.Configure(few)
	b.Trip(epoch)
	b.Configure(more)
	require.Equal(t, Open, b.State())
	require.Equal(t, epoch.Add(10*time.Second), b.Until())
	b.Advance(b.Until())
	b.Pass(epoch)
	other := *more
	other.Window = time.Minute
	b.Configure(&other)
	passed, of := b.Passed()
	require.Equal(t, []int{1, 3}, []int{passed, of}, "as many trials as before: they go on")
	b.Configure(few)
	passed, of = b.Passed()
	require.Equal(t, []int{0, 2}, []int{passed, of})
	require.Equal(t, HalfOpen, b.State())
	require.Equal(t, 20*time.Second, b.Trip(epoch))
	b.Configure(more)
	b.Advance(b.Until())
	require.Equal(t, 15*time.Second, b.Trip(epoch), "no longer than the new bound")
}

// Whatever the durations, each time is as long as the last one, or longer.
func TestTheLongestTimesDoNotOverflow(t *testing.T) {
	const years = 200 * 365 * 24 * time.Hour
	b, now := New(&Settings{Open: years, MaxOpen: years + time.Hour, HalfOpen: 1}), time.Now()
	require.Equal(t, years, b.Trip(now))
	b.Advance(now.Add(years))
	require.Equal(t, HalfOpen, b.State())
	require.Equal(t, years+time.Hour, b.Trip(now))
}

func TestTrips(t *testing.T) {
	both := Settings{Consecutive: 5, Ratio: 0.5, MinRequests: 20}
	row := Settings{Consecutive: 5, MinRequests: 1}
	ratio := Settings{Ratio: 0.5, MinRequests: 20}
	for _, test := range []struct {
		name     string
		settings Settings
		figures  backend.Figures
		want     string
	}{
		{"nothing happened", both, backend.Figures{}, ""},
		{"one short of the row", both, backend.Figures{Total: 4, Failed: 4, Row: 4}, ""},
		{"the row", both, backend.Figures{Total: 100, Failed: 5, Row: 5}, "5 failures in a row"},
		{"a row that the window has forgotten", both, backend.Figures{Row: 6}, "6 failures in a row"},
		{"the ratio, exactly", both, backend.Figures{Total: 20, Failed: 10, Row: 1}, "10 of 20 requests failed"},
		{"just below the ratio", both, backend.Figures{Total: 21, Failed: 10, Row: 1}, ""},
		{"too few requests for the ratio", both, backend.Figures{Total: 19, Failed: 19, Row: 4}, ""},
		{"no rule for the ratio", row, backend.Figures{Total: 1000, Failed: 999, Row: 4}, ""},
		{"no rule for the row", ratio, backend.Figures{Total: 19, Failed: 19, Row: 19}, ""},
		{"no rule for the row, but the ratio", ratio, backend.Figures{Total: 20, Failed: 20, Row: 20}, "20 of 20 requests failed"},
		{"a tiny ratio wants a failure", Settings{Ratio: 1e-9, MinRequests: 1}, backend.Figures{Total: 9}, ""},
		{"every request", Settings{Ratio: 1, MinRequests: 2}, backend.Figures{Total: 2, Failed: 2, Row: 2}, "2 of 2 requests failed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			require.Equal(t, test.want != "", test.settings.Trips(test.figures))
			if test.want != "" {
				require.Equal(t, test.want, test.settings.Why(test.figures))
			}
		})
	}
}

// The numbers are those that lb_breaker_state shows.
func TestStates(t *testing.T) {
	for number, name := range []string{"closed", "half-open", "open"} {
		require.Equal(t, name, State(number).String())
	}
}
