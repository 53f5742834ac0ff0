package backend

import (
	"testing"
	"time"
)

// each runs do alone and on all processors at once, at 100,000 times a second:
// in a slice that is full, counting would cost less.
func each(b *testing.B, do func(back *Backend, now time.Time)) {
	b.Helper()
	b.Run("serial", func(b *testing.B) {
		var back Backend
		b.ReportAllocs()
		now := time.Now()
		for b.Loop() {
			now = now.Add(10 * time.Microsecond)
			do(&back, now)
		}
	})
	b.Run("parallel", func(b *testing.B) {
		var back Backend
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			now := time.Now()
			for pb.Next() {
				now = now.Add(10 * time.Microsecond)
				do(&back, now)
			}
		})
	})
}

func BenchmarkRecentCount(b *testing.B) {
	each(b, func(back *Backend, now time.Time) { back.Recent.Count(now, false) })
}

func BenchmarkLatencyObserve(b *testing.B) {
	each(b, func(back *Backend, now time.Time) { back.Heads.Observe(now, 3*time.Millisecond) })
}

func BenchmarkTakeTrial(b *testing.B) {
	b.Run("not on trial", func(b *testing.B) { each(b, func(back *Backend, _ time.Time) { back.TakeTrial() }) })
	b.Run("on trial", func(b *testing.B) {
		each(b, func(back *Backend, _ time.Time) {
			if period, ok := back.TakeTrial(); ok && period != 0 {
				back.ReturnTrial(period)
			} else if period == 0 {
				back.SetTrials(1)
			}
		})
	})
}
