//go:build !race

package e2e

// raceFlag builds the daemon as the tests themselves were built.
const raceFlag = "-race=false"
