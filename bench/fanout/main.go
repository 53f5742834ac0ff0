// Command fanout measures how far the durable fan-out reaches, over the real lb
// with local clients and backends: what it measures and how to read it stands
// in README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

type options struct {
	only  string
	json  string
	lb    string
	dir   string
	full  bool
	check bool
	limit time.Duration
}

// measures are in the order in which they are made.
var measures = []struct {
	name string
	run  func(context.Context, *stage) ([]figure, error)
}{
	{"batch", batch},
	{"latency", latency},
	{"restart", restart},
	{"memory", memory},
	{"neighbour", neighbour},
}

func main() {
	var names []string
	for _, m := range measures {
		names = append(names, m.name)
	}
	var o options
	flag.StringVar(&o.only, "only", "", "measure these alone, with commas between: "+strings.Join(names, ", "))
	flag.StringVar(&o.json, "json", "", "write the figures to this file as well")
	flag.StringVar(&o.lb, "lb", "", "measure this binary of lb instead of building ./cmd/lb")
	flag.StringVar(&o.dir, "dir", "", "put the storage below this directory, whose disk is measured; the default is the system's for temporary files")
	flag.BoolVar(&o.full, "full", false, "measure memory at 1,000,000 pending instead of 100,000, which takes some minutes more")
	flag.BoolVar(&o.check, "check", false, "exit with 1 if a figure misses its limit")
	flag.DurationVar(&o.limit, "limit", 15*time.Minute, "give up after so long")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	err := run(ctx, o, names)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench/fanout: "+err.Error())
		os.Exit(1)
	}
}

var errMissed = errors.New("a figure misses its limit")

func run(ctx context.Context, o options, names []string) error {
	if flag.NArg() > 0 {
		return errors.New("no arguments, please; see -help")
	}
	chosen := names
	if o.only != "" {
		chosen = strings.Split(o.only, ",")
	}
	for _, name := range chosen {
		if !slices.Contains(names, name) {
			return fmt.Errorf("-only %s: there is no such measure, but %s", name, strings.Join(names, ", "))
		}
	}
	s, err := newStage(ctx, o)
	if err != nil {
		return err
	}
	defer s.close()
	r := newReport(ctx)
	r.header(os.Stdout)
	for _, m := range measures {
		if !slices.Contains(chosen, m.name) {
			continue
		}
		began := time.Now()
		figures, err := m.run(ctx, s)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		r.add(os.Stdout, m.name, time.Since(began), figures)
	}
	if o.json != "" {
		if err := r.write(o.json); err != nil {
			return err
		}
	}
	if o.check && r.missed() {
		return errMissed
	}
	return nil
}
