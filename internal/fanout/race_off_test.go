//go:build !race

package fanout

const raced = false
