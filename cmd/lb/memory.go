package main

import (
	"os"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

const (
	// gcPercent lets the heap grow to five times what is live before it is
	// collected. What is live in a proxy is small and what it throws away is
	// not: with Go's default of 100 it collects every few megabytes.
	gcPercent = 400
	// memoryShare of the container's memory, or else the machine's, is where
	// the collector stops being generous, whatever gcPercent says.
	memoryShare = 0.8
)

// tuneMemory sets the garbage collector up for a proxy, where GOGC and
// GOMEMLIMIT do not say otherwise.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	// Leaves a GOMEMLIMIT alone that is set. Where nobody knows how much
	// memory there is, there is no limit, as by default.
	_, _ = memlimit.Set(
		memlimit.WithRatio(memoryShare),
		memlimit.WithProvider(memlimit.ApplyFallback(memlimit.FromCgroup, memlimit.FromSystem)),
	)
}
