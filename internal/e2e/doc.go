// Package e2e tests the promises that users of lb rely on: the real binary,
// run as a process, over real sockets on loopback. Nothing here looks inside
// the daemon, so the same files run against whatever carries the bytes in it.
//
// There is one file a promise. Tests wait for what they expect to see, with a
// deadline, and never for time to pass.
package e2e
