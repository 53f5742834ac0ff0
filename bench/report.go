package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// printHeader says what was measured, with what, and how.
func printHeader(ctx context.Context, out io.Writer, o options) {
	pinning := "proxy on cpu " + proxyCPU + " with GOMAXPROCS=1; client and backend on cpu " + otherCPU
	if o.unpinned {
		pinning = "none"
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	for _, line := range [][2]string{
		{"date", time.Now().UTC().Format(time.RFC3339)},
		{"command", strings.Join(append([]string{"bench"}, os.Args[1:]...), " ")},
		{"go", runtime.Version() + " " + runtime.GOARCH},
		{"commit", output(ctx, "git", "rev-parse", "--short", "HEAD")},
		{"nginx", strings.TrimPrefix(output(ctx, "nginx", "-v"), "nginx version: ")},
		{"wrk", output(ctx, "wrk", "-v")},
		{"kernel", strings.TrimSpace(string(kernel))},
		{"processors", fmt.Sprintf("%d × %s", runtime.NumCPU(), processorModel())},
		{"pinning", pinning},
		{"load", fmt.Sprintf("wrk -t1 -c%d -d%ds, repeated to at least %d requests a run; answer of %d bytes",
			o.connections, o.seconds, o.requests, len(backendBody))},
	} {
		fmt.Fprintf(out, "%-11s %s\n", line[0], line[1])
	}
	fmt.Fprintln(out)
}

// output returns the first line a tool prints about itself; some print it on
// stderr and exit with 1.
func output(ctx context.Context, name string, args ...string) string {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if len(out) == 0 && err != nil {
		return "unknown"
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

func processorModel() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

// pair holds two runs, one right after the other.
type pair struct{ bare, lb figures }

// summarize prints medians and the verdict, and reports whether lb is within
// its limits.
func summarize(out io.Writer, pairs []pair) bool {
	spread := func(of func(pair) float64) (median, low, high float64) {
		var all []float64
		for _, p := range pairs {
			all = append(all, of(p))
		}
		slices.Sort(all)
		n := len(all)
		return (all[(n-1)/2] + all[n/2]) / 2, all[0], all[n-1]
	}
	fmt.Fprintln(out, "\nPair by pair                          median       min       max")
	show := func(name string, of func(pair) float64) float64 {
		median, low, high := spread(of)
		fmt.Fprintf(out, "  %-33s %8.3f  %8.3f  %8.3f\n", name, median, low, high)
		return median
	}
	show("CPU µs a request, bare", func(p pair) float64 { return p.bare.cpuMicros() })
	show("CPU µs a request, lb", func(p pair) float64 { return p.lb.cpuMicros() })
	cpu := show("CPU a request, lb / bare", func(p pair) float64 { return p.lb.cpuMicros() / p.bare.cpuMicros() })
	show("requests a second, lb / bare", func(p pair) float64 { return p.lb.perSec / p.bare.perSec })
	extra := show("allocations a request, lb - bare", func(p pair) float64 { return p.lb.allocs - p.bare.allocs })
	show("bytes a request, lb - bare", func(p pair) float64 { return p.lb.bytes - p.bare.bytes })

	ok := cpu <= maxCPURatio && extra <= maxExtra
	verdict := "WITHIN the limits"
	if !ok {
		verdict = "OVER a limit"
	}
	fmt.Fprintf(out, "\n%s: CPU ratio %.3f (at most %.1f), %.1f more allocations (at most %d)\n",
		verdict, cpu, maxCPURatio, extra, maxExtra)
	for _, p := range pairs {
		if min(p.bare.idle, p.lb.idle) < 0.03 || max(p.bare.foreign, p.lb.foreign) > 0.1 {
			fmt.Fprintln(out, "NOISY: in some run cpu 1 had no idle time left, or others used cpu 0; trust the allocations only.")
			break
		}
	}
	return ok
}
