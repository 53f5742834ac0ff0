package admission

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPace(t *testing.T) {
	for _, test := range []struct {
		name       string
		pace       Pace
		waiting    int // before the one that asks
		wait, next time.Duration
	}{
		{"nothing is known", Pace{}, 3, 0, 0},
		{"there is no bound", Pace{Held: time.Second}, 3, 0, 0},
		{"the first in line", Pace{time.Minute / 4, 4}, 0, 3750 * time.Millisecond, 3750 * time.Millisecond},
		{"behind as many as there are slots", Pace{2 * time.Second, 8}, 7, 2 * time.Second, 2 * time.Second},
		{"never less than a second", Pace{time.Millisecond, 4}, 10, 2750 * time.Microsecond, time.Second},
		{"never more than a minute", Pace{10 * time.Second, 1}, 99, 1000 * time.Second, time.Minute},
		{"a million that wait long", Pace{30 * time.Minute, 1}, 1_999_999, 2_000_000 * 30 * time.Minute, time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			require.Equal(t, test.wait, test.pace.Wait(test.waiting+1))
			require.Equal(t, test.next, test.pace.RetryAfter(test.waiting))
		})
	}
}
