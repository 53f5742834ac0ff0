//go:build race

package pool

// raceFactor is how many times slower everything is under the race detector.
const raceFactor = 10
