// Command bench measures lb beside a bare httputil.ReverseProxy, pair by pair
// in one run: what it measures and how to read it stands in README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// The limits that the comparison is held to.
const (
	maxCPURatio = 1.2 // paired median of CPU time a request, lb / bare
	maxExtra    = 10  // allocations a request beyond the bare proxy's
)

type options struct {
	pairs       int
	seconds     int
	requests    int
	connections int
	pause       time.Duration
	unpinned    bool
	strace      bool
	check       bool
	lb          string
	out         string
	limit       time.Duration
}

func main() {
	var o options
	flag.IntVar(&o.pairs, "pairs", 5, "pairs of measured runs")
	flag.IntVar(&o.seconds, "seconds", 10, "length of one call of wrk")
	flag.IntVar(&o.requests, "requests", 200_000, "a measured run repeats wrk until it has so many requests")
	flag.IntVar(&o.connections, "connections", 64, "keep-alive connections of the client")
	flag.DurationVar(&o.pause, "pause", 0, "rest of a connection between two requests, in whole milliseconds: a second view, at about the same rate for both")
	flag.BoolVar(&o.unpinned, "unpinned", false, "use all processors for everything (a second view; the limits do not hold for it)")
	flag.BoolVar(&o.strace, "strace", false, "count system calls too, in a run of its own for each proxy")
	flag.BoolVar(&o.check, "check", false, "exit with 1 if lb is over a limit")
	flag.StringVar(&o.lb, "lb", "", "measure this binary of lb instead of building ./cmd/lb")
	flag.StringVar(&o.out, "o", "", "write the report to this file as well")
	flag.DurationVar(&o.limit, "limit", 30*time.Minute, "give up after so long")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	err := run(ctx, o)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: "+err.Error())
		os.Exit(1)
	}
}

var errLimits = errors.New("lb is over a limit")

func run(ctx context.Context, o options) (err error) {
	if flag.NArg() > 0 || o.pairs < 1 || o.seconds < 1 || o.requests < 1 || o.connections < 1 {
		return errors.New("no arguments, please, and every number at least 1; see -help")
	}
	var out io.Writer = os.Stdout
	if o.out != "" {
		if err := os.MkdirAll(filepath.Dir(o.out), 0o750); err != nil {
			return err
		}
		f, err := os.Create(o.out)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		out = io.MultiWriter(os.Stdout, f)
	}
	s, err := newStage(ctx, o)
	if err != nil {
		return err
	}
	defer s.close()
	printHeader(ctx, out, o)

	fmt.Fprintln(out, columns)
	for _, p := range s.proxies { // connections open, pools fill, the heap grows to its size
		if _, err := s.measure(ctx, p, o.requests/4); err != nil {
			return err
		}
	}
	var pairs []pair
	for i := range o.pairs {
		order := slices.Clone(s.proxies) // A B, B A, A B …: a drift hits both alike
		if i%2 == 1 {
			slices.Reverse(order)
		}
		figures := make(map[string]figures)
		for _, p := range order {
			f, err := s.measure(ctx, p, o.requests)
			if err != nil {
				return err
			}
			figures[p.name] = f
			fmt.Fprintln(out, f.line(i+1, p.name))
		}
		pairs = append(pairs, pair{figures["bare"], figures["lb"]})
	}
	ok := summarize(out, pairs)
	if o.strace {
		if err := s.traceAll(ctx, out); err != nil {
			return err
		}
	}
	if o.check && !ok {
		return errLimits
	}
	return nil
}
