package socket

import (
	"syscall"
	"time"
	"unsafe"
)

// monotonic reads CLOCK_MONOTONIC, which the service manager compares with its
// own; package time keeps it to itself.
func monotonic() time.Duration {
	const clockMonotonic = 1 // linux/time.h
	var now syscall.Timespec
	// It fails only for a clock that does not exist.
	_, _, _ = syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&now)), 0)
	return time.Duration(now.Nano())
}
