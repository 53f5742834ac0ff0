package backend

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSpeed(t *testing.T) {
	now := time.Now()
	const ms = float64(time.Millisecond)
	var s Speed
	is := func(want float64, why string) {
		t.Helper()
		require.InEpsilon(t, want, s.Average(), 1e-9, why)
	}
	require.Zero(t, s.Average())
	s.Decay(now)
	require.Zero(t, s.Average(), "nothing was observed, and nothing decays")

	s.Observe(now, 10*time.Millisecond)
	is(10*ms, "the first one counts in full")
	s.Observe(now, 50*time.Millisecond)
	is(50*ms, "so does a slower one")
	s.Observe(now, 10*time.Millisecond)
	is(50*ms, "a faster one in the same instant does not")
	now = now.Add(SpeedDecay)
	s.Observe(now, 10*time.Millisecond)
	is(10*ms+40*ms/math.E, "after the time constant it has pulled the average down by 1-1/e")
	s.Observe(now.Add(-time.Hour), 0)
	is(10*ms+40*ms/math.E, "a clock that goes back pulls nothing")
}

func TestSpeedDecaysByTheTimeThatPassed(t *testing.T) {
	start := time.Now()
	var at, once Speed
	for _, s := range []*Speed{&at, &once} {
		s.Observe(start, time.Second)
	}
	for i := range 10 { // a tick each second
		at.Decay(start.Add(time.Duration(i+1) * time.Second))
	}
	once.Decay(start.Add(10 * time.Second))
	require.InEpsilon(t, float64(time.Second)/math.E, once.Average(), 1e-9)
	require.InEpsilon(t, once.Average(), at.Average(), 1e-9, "however often it is called")
	once.Decay(start)
	require.InEpsilon(t, at.Average(), once.Average(), 1e-9, "and never by less than nothing")
	once.Observe(start.Add(20*time.Second), 1)
	require.InEpsilon(t, float64(time.Second)/math.E/math.E, once.Average(), 1e-6, "what has decayed decays no second time")
}

func BenchmarkSpeed(b *testing.B) {
	now := time.Now()
	b.Run("observe", func(b *testing.B) {
		var s Speed
		b.ReportAllocs()
		for b.Loop() {
			now = now.Add(time.Microsecond)
			s.Observe(now, time.Duration(now.Nanosecond()))
		}
	})
	b.Run("decay", func(b *testing.B) {
		var s Speed
		s.Observe(now, time.Hour)
		b.ReportAllocs()
		for b.Loop() {
			now = now.Add(time.Microsecond)
			s.Decay(now)
		}
	})
}
