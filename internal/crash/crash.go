// Package crash names the places where a crash would hurt most, so that tests
// can end the process exactly there. At does nothing, and costs nothing,
// unless the program is built with the tag "crashpoints". In such a build two
// variables say what happens:
//
//   - LB_CRASH=name:n kills the process, as kill -9 does, when it comes to that
//     point for the nth time.
//   - LB_CRASH_HITS=file appends the name of each point that is reached to the
//     file, a line a time.
package crash
