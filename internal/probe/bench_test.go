package probe

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/health"
)

func BenchmarkTCPProbe(b *testing.B) { benchmark(b, TCP{}, serve(b, func(net.Conn) {})) }
func BenchmarkHTTPProbe(b *testing.B) {
	benchmark(b, newHTTP(b, HTTPOptions{}), answering(b, says(ok)))
}

func benchmark(b *testing.B, c Check, address string) {
	b.ReportAllocs()
	for b.Loop() {
		if err := c.Probe(b.Context(), address); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLoops runs 1,000 loops with TCP checks at the default interval, one
// second an operation, and reports what share of one core they take. What accepting costs is in it: the
// listeners are of this process.
func BenchmarkLoops(b *testing.B) {
	const loops = 1000
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	var running sync.WaitGroup
	var probes, failures atomic.Int64
	report := func(r Result) {
		probes.Add(1)
		if r.Verdict != health.Up {
			failures.Add(1)
		}
	}
	for range loops {
		l := New(Options{
			Address: serve(b, func(net.Conn) {}), Check: TCP{}, Report: report,
			Schedule: Schedule{Interval: 2 * time.Second, Timeout: time.Second, Rise: 2, Fall: 3},
		})
		running.Go(func() { l.Run(ctx) })
	}
	b.ResetTimer()
	cpu, began := cpuTime(b), time.Now()
	<-time.After(time.Duration(b.N) * time.Second)
	cpu, wall := cpuTime(b)-cpu, time.Since(began)
	cancel()
	running.Wait()
	require.Zero(b, failures.Load())
	b.ReportMetric(100*float64(cpu)/float64(wall), "%core")
	b.ReportMetric(float64(probes.Load())/wall.Seconds(), "probes/s")
}

// cpuTime returns the time that this process has spent on the processors.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var used syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &used))
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
