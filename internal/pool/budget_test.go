package pool

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// clock is a clock that stands until it is moved.
type clock struct{ time.Time }

func (c *clock) now() time.Time { return c.Time }

// withdrawals takes out as much as there is, at most 10,000.
func withdrawals(b *Budget) (n int) {
	for n < 10_000 && b.Withdraw() {
		n++
	}
	return n
}

func TestBudget(t *testing.T) {
	for _, test := range []struct {
		name             string
		ratio, perSecond float64
		requests         int
		after            time.Duration
		want             int
	}{
		{"a start has one second's worth", 0.2, 3, 0, 0, 3},
		{"each request pays a share", 0.2, 3, 100, 0, 23},
		{"less than one retry is none", 0.2, 0, 4, 0, 0},
		{"five fifths are one", 0.2, 0, 5, 0, 1},
		{"each second pays", 0, 3, 0, 10 * time.Second, 33},
		{"requests and time add up", 0.2, 3, 50, 2 * time.Second, 3 + 10 + 6},
		{"part of a second pays a part", 0, 3, 0, 400 * time.Millisecond, 4},
		{"slow rates count too", 0, 0.1, 0, 20 * time.Second, 2},
		{"an uneven share", 0.29, 0, 100, 0, 29},
		{"nothing comes from nothing", 0, 0, 1000, time.Hour, 0},
		{"a quiet day saves up a thousand and no more", 0, 3, 0, 24 * time.Hour, 1000},
		{"nor do a million requests", 0.2, 0, 1_000_000, 0, 1000},
		{"a ratio above one", 2, 0, 10, 0, 20},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := &clock{time.Unix(1e9, 0)}
			b := newBudget(test.ratio, test.perSecond, c.now)
			for range test.requests {
				b.Deposit()
			}
			c.Time = c.Add(test.after)
			require.Equal(t, test.want, withdrawals(b))
			require.False(t, b.Withdraw())
		})
	}
}

func TestBudgetPaysTheWholeRateHoweverOftenItIsAsked(t *testing.T) {
	for _, step := range []time.Duration{time.Microsecond * 7, 500 * time.Microsecond, 3 * time.Millisecond, 700 * time.Millisecond} {
		c := &clock{time.Unix(1e9, 0)}
		b := newBudget(0, 3, c.now)
		withdrawals(b)
		got := 0
		for end := c.Add(21 * time.Second); !c.After(end); c.Time = c.Add(step) {
			got += withdrawals(b)
		}
		require.InDelta(t, 63, got, 1, "asked every %v for 21 s", step)
	}
}

func TestBudgetWithAClockThatStepsBack(t *testing.T) {
	c := &clock{time.Unix(1e9, 0)}
	b := newBudget(0, 3, c.now)
	require.Equal(t, 3, withdrawals(b))
	c.Time = c.Add(-time.Hour)
	require.Zero(t, withdrawals(b), "time that goes backwards pays nothing")
	b.Configure(1, 3)
	b.Deposit()
	require.True(t, b.Withdraw(), "and what requests pay still counts")
}

func TestBudgetWithOtherRates(t *testing.T) {
	for name, test := range map[string]struct {
		before, after rates
		want          int
	}{
		"what was paid in stays":          {rates{0, 3}, rates{0, 0}, 3 + 30},
		"the old rate until then":         {rates{0, 3}, rates{0, 1}, 3 + 30 + 10},
		"a rate begins when it is set":    {rates{0, 0}, rates{0, 5}, 50},
		"nothing left over is multiplied": {rates{0, 0.00009}, rates{0, 1}, 10},
		"requests pay the new share":      {rates{500, 0}, rates{200, 0}, 50 + 20},
	} {
		t.Run(name, func(t *testing.T) {
			c := &clock{time.Unix(1e9, 0)}
			b := newBudget(float64(test.before.ratio)/token, test.before.perSecond, c.now)
			for range 100 {
				b.Deposit()
			}
			c.Time = c.Add(10 * time.Second)
			b.Configure(float64(test.after.ratio)/token, test.after.perSecond)
			for range 100 {
				b.Deposit()
			}
			c.Time = c.Add(10 * time.Second)
			require.Equal(t, test.want, withdrawals(b))
		})
	}
}

func TestBudgetUnderConcurrency(t *testing.T) {
	const workers, each = 100, 5000
	b := newBudget(1, 0, time.Now)
	var retries atomic.Int64
	var overdrawn atomic.Bool
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				b.Deposit()
				for b.Withdraw() { // down to the last token, over which they fight
					retries.Add(1)
				}
				if b.tokens.Load() < 0 {
					overdrawn.Store(true)
				}
			}
		})
	}
	wg.Wait()
	require.False(t, overdrawn.Load(), "the last token is taken once")
	retries.Add(int64(withdrawals(b)))
	require.EqualValues(t, workers*each, retries.Load(), "none lost, none twice")
}

func TestBudgetDoesNotAllocate(t *testing.T) {
	b := NewBudget(0.2, 3)
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		b.Deposit()
		b.Withdraw()
	}))
}
