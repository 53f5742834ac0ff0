package fanout

import (
	"math"
	"net/http"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/stretchr/testify/require"
)

var standard = Backoff{Base: time.Second, Cap: 64 * time.Second, Jitter: 100 * time.Millisecond}

func none(time.Duration) time.Duration    { return 0 }
func whole(m time.Duration) time.Duration { return m }

func TestWaitsToTheMillisecond(t *testing.T) {
	want := []int{1000, 2000, 4000, 8000, 16000, 32000, 64000, 64000, 64000, 64000}
	low := &Waits{Backoff: standard, Draw: none}
	high := &Waits{Backoff: standard, Draw: whole}
	for k, ms := range want {
		d := time.Duration(ms) * time.Millisecond
		require.Equal(t, d, low.NextBackOff(), "retry %d", k)
		require.Equal(t, d+100*time.Millisecond, high.NextBackOff(), "retry %d, all of the jitter", k)
	}
	low.Reset()
	require.Equal(t, time.Second, low.NextBackOff(), "after Reset")
}

func TestWaitsDrawTheirJitterAnew(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 1000 {
		for k := range 10 {
			w := Waits{Backoff: standard, Retry: k}
			j := w.NextBackOff() - standard.floor(k)
			require.GreaterOrEqual(t, j, time.Duration(0))
			require.LessOrEqual(t, j, standard.Jitter)
			seen[j] = true
		}
	}
	require.Greater(t, len(seen), 5000)
}

func TestWaitsReachBothEndsOfTheJitter(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 200 {
		seen[uniform(2)] = true
	}
	require.Equal(t, map[time.Duration]bool{0: true, 1: true, 2: true}, seen)
	require.Zero(t, uniform(0))
	require.Zero(t, uniform(-1))
}

func TestWaitsStop(t *testing.T) {
	w := &Waits{Backoff: standard, MaxAttempts: 3, Draw: none}
	require.Equal(t, time.Second, w.NextBackOff())
	require.Equal(t, 2*time.Second, w.NextBackOff())
	require.Equal(t, backoff.Stop, w.NextBackOff(), "three attempts are two retries")
	require.Equal(t, backoff.Stop, w.NextBackOff())
}

func TestWaitsDoNotOverflow(t *testing.T) {
	for _, b := range []Backoff{
		standard,
		{Base: 1, Cap: math.MaxInt64},
		{Base: 3, Cap: math.MaxInt64},
		{Base: time.Second, Cap: 24 * time.Hour},
		{Base: time.Minute, Cap: time.Second}, // a cap below the base
	} {
		before := time.Duration(0)
		for k := range 1001 {
			wait := b.floor(k)
			require.GreaterOrEqual(t, wait, before, "%v, retry %d", b, k)
			require.LessOrEqual(t, wait, b.Cap, "%v, retry %d", b, k)
			before = wait
		}
		require.Equal(t, b.Cap, before, "%v", b)
	}
	require.Equal(t, time.Duration(1<<62), Backoff{Base: 1, Cap: math.MaxInt64}.floor(62))
	require.Zero(t, Backoff{Base: 0, Cap: time.Hour}.floor(1000))
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"":                     0,
		"0":                    0,
		"7":                    7 * time.Second,
		" 120 ":                2 * time.Minute, //nolint:gocritic // the blanks are what is tried
		"99999999999999999999": math.MaxInt32 * time.Second,
		"-1":                   0,
		"+1":                   0,
		"1.5":                  0,
		"soon":                 0,
		now.Add(90 * time.Second).Format(http.TimeFormat): 90 * time.Second,
		now.Add(-time.Hour).Format(http.TimeFormat):       0,
	} {
		require.Equal(t, want, retryAfter(value, now), "%q", value)
	}
}
