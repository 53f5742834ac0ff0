//go:build race

package fanout

// raced tells that the race detector is in. It dies (SIGSEGV in its own
// runtime) of bubbles with many thousands of timers: large tests are smaller.
const raced = true
