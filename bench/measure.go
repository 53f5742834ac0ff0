package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// figures are the result of one measured run.
type figures struct {
	requests int
	cpu      time.Duration // of the proxy, user and system
	perSec   float64
	allocs   float64 // a request
	bytes    float64 // a request
	foreign  float64 // share of the proxy's processor that others used
	idle     float64 // share of the other processor that nobody used
}

func (f figures) cpuMicros() float64 {
	return float64(f.cpu.Microseconds()) / float64(f.requests)
}

const columns = "pair  proxy   requests      req/s  CPU µs/req  allocs/req  bytes/req  foreign on cpu 0  idle on cpu 1"

func (f figures) line(pair int, name string) string {
	return fmt.Sprintf("%4d  %-5s %10d %10.0f %11.2f %11.2f %10.0f %16.1f%% %13.1f%%",
		pair, name, f.requests, f.perSec, f.cpuMicros(), f.allocs, f.bytes, 100*f.foreign, 100*f.idle)
}

// measure sends requests to p until there were at least so many.
func (s *stage) measure(ctx context.Context, p *proxy, requests int) (f figures, err error) {
	// The first two readings differ by what a reading costs.
	first, err := p.allocations(ctx)
	if err != nil {
		return f, err
	}
	before, err := p.allocations(ctx)
	if err != nil {
		return f, err
	}
	reading := allocations{before.objects - first.objects, before.bytes - first.bytes}
	start, err := readClocks(p.pid)
	if err != nil {
		return f, err
	}
	began := time.Now()
	for f.requests < requests {
		n, err := s.wrk(ctx, p.url, s.options.seconds)
		if err != nil {
			return f, fmt.Errorf("%s: %w", p.name, err)
		}
		f.requests += n
	}
	took := time.Since(began)
	end, err := readClocks(p.pid)
	if err != nil {
		return f, err
	}
	after, err := p.allocations(ctx)
	if err != nil {
		return f, err
	}
	n := float64(f.requests)
	f.cpu = end.process - start.process
	f.perSec = n / took.Seconds()
	f.allocs = (after.objects - before.objects - reading.objects) / n
	f.bytes = (after.bytes - before.bytes - reading.bytes) / n
	f.foreign = max(0, (end.own.busy-start.own.busy-f.cpu).Seconds()) / took.Seconds()
	f.idle = (end.other.idle - start.other.idle).Seconds() / took.Seconds()
	return f, nil
}

type clocks struct {
	process    time.Duration
	own, other processorTime
}

func readClocks(pid int) (c clocks, err error) {
	if c.process, err = cpuTime(pid); err != nil {
		return c, err
	}
	if c.own, err = processor(proxyCPU); err != nil {
		return c, err
	}
	c.other, err = processor(otherCPU)
	return c, err
}

var (
	wrkRequests = regexp.MustCompile(`(?m)^\s+(\d+) requests in `)
	wrkTrouble  = regexp.MustCompile(`(?m)^\s*(Socket errors|Non-2xx).*$`)
)

// wrk runs the client once and returns the number of answers it got.
func (s *stage) wrk(ctx context.Context, url string, seconds int) (int, error) {
	args := []string{"-t1", fmt.Sprintf("-c%d", s.options.connections), fmt.Sprintf("-d%ds", seconds)}
	if s.options.pause > 0 {
		args = append(args, "-s", filepath.Join(s.dir, pauseScript))
	}
	cmd := s.pinned(ctx, otherCPU, "wrk", append(args, url)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("wrk: %w\n%s", err, out)
	}
	if trouble := wrkTrouble.Find(out); trouble != nil {
		return 0, fmt.Errorf("wrk: %s", strings.TrimSpace(string(trouble)))
	}
	m := wrkRequests.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("wrk says nothing about requests:\n%s", out)
	}
	n, err := strconv.Atoi(string(m[1]))
	if err == nil && n == 0 {
		err = errors.New("wrk: no request was answered")
	}
	return n, err
}

// traceAll counts the system calls of each proxy in a run of its own, because
// being traced slows a process down several times.
func (s *stage) traceAll(ctx context.Context, out io.Writer) error {
	fmt.Fprintln(out, "\nSystem calls a request (strace -c -f, a run of its own):")
	for _, p := range s.proxies {
		calls, err := s.trace(ctx, p)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		fmt.Fprintf(out, "  %-5s %s\n", p.name, calls)
	}
	return nil
}

func (s *stage) trace(ctx context.Context, p *proxy) (string, error) {
	file := filepath.Join(s.dir, p.name+".strace")
	cmd := s.pinned(ctx, proxyCPU, "strace", "-c", "-f", "-q", "-p", strconv.Itoa(p.pid), "-o", file)
	if err := cmd.Start(); err != nil {
		return "", err
	}
	n, wrkErr := s.tracedRun(ctx, p)
	_ = cmd.Process.Signal(syscall.SIGINT) // it detaches and writes its table
	_ = cmd.Wait()                         // ends by the signal it was sent
	if wrkErr != nil {
		return "", wrkErr
	}
	table, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("strace could not attach: %w", err)
	}
	return callsPerRequest(string(table), n), nil
}

// tracedRun waits until the tracer is there and sends requests.
func (s *stage) tracedRun(ctx context.Context, p *proxy) (int, error) {
	deadline := time.Now().Add(5 * time.Second)
	for !traced(p.pid) {
		if time.Now().After(deadline) {
			return 0, errors.New("strace could not attach (is ptrace allowed?)")
		}
		time.Sleep(10 * time.Millisecond)
	}
	return s.wrk(ctx, p.url, 3)
}

// traced reports whether every thread of a process has a tracer.
func traced(pid int) bool {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, file := range files {
		status, err := os.ReadFile(file)
		if err != nil || strings.Contains(string(status), "TracerPid:\t0\n") {
			return false
		}
	}
	return len(files) > 0
}

// callsPerRequest reads strace's table: % time, seconds, usecs/call, calls,
// errors if any, name.
func callsPerRequest(table string, requests int) string {
	var parts []string
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) < 4 {
			continue
		}
		calls, err := strconv.Atoi(f[3])
		if err != nil {
			continue
		}
		if each := float64(calls) / float64(requests); each >= 0.005 {
			parts = append(parts, fmt.Sprintf("%s %.2f", f[len(f)-1], each))
		}
	}
	return strings.Join(parts, ", ")
}
