//go:build !race

// The race detector makes sync.Pool drop what it is given, at random.

package main

import "testing"

// TestAllocations holds lb to its limit in every test run; the command measures
// the same with real processes.
func TestAllocations(t *testing.T) {
	for _, head := range heads {
		t.Run(head.name, func(t *testing.T) {
			var allocs [2]float64
			for i, p := range proxies {
				allocs[i] = measureAllocs(t, p, head.text)
			}
			t.Logf("allocations a request: bare %.1f, lb %.1f", allocs[0], allocs[1])
			if extra := allocs[1] - allocs[0]; extra > maxExtra {
				t.Errorf("lb allocates %.1f times more a request than a bare proxy; the limit is %d", extra, maxExtra)
			}
		})
	}
}
