package main

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// fsyncTimes measures the disk itself: it writes one page after the other into
// a file that is there already, as SQLite writes its log, and syncs each.
func fsyncTimes(dir string) (took []time.Duration, err error) {
	const page, pages = 4096, 200
	f, err := os.Create(filepath.Join(dir, "fsync"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	if _, err := f.Write(make([]byte, page*pages)); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	fd := int(f.Fd())
	for i := range pages {
		began := time.Now()
		if _, err := f.WriteAt(make([]byte, page), int64(i)*page); err != nil {
			return nil, err
		}
		if err := syscall.Fdatasync(fd); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
	}
	return took, nil
}

// fsyncFigures shows the disk's own time beside what hangs on it.
func fsyncFigures(took []time.Duration) []figure {
	ms := milliseconds(took)
	return []figure{told("the disk's own fsync, p50", median(ms), "ms"), told("the disk's own fsync, p99", quantile(ms, 0.99), "ms")}
}

// slowDisk returns the command that runs another one on a disk whose syncs take
// 10 ms longer, and writes a line for each into log. It is strace that
// delays the system call: nothing in lb knows. -D leaves the process a child of
// ours.
func slowDisk(log string) []string {
	const syncs = "fsync,fdatasync"
	return []string{"strace", "-D", "-f", "--seccomp-bpf", "-qq", "-ttt", "-o", log, "-e", "signal=none",
		"-e", "trace=" + syncs, "-e", "inject=" + syncs + ":delay_exit=10000"}
}

// countSyncs counts the syncs of a log of slowDisk's between two instants.
func countSyncs(log io.Reader, from, to time.Time) (n int, err error) {
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		// 4711 1700000000.123456 fdatasync(5) = 0 (DELAYED)
		f := strings.Fields(lines.Text())
		if len(f) < 3 || !strings.HasPrefix(f[2], "fsync(") && !strings.HasPrefix(f[2], "fdatasync(") {
			continue // the end of one that another thread's came between
		}
		seconds, err := strconv.ParseFloat(f[1], 64)
		if err != nil {
			return 0, err
		}
		if at := time.UnixMicro(int64(seconds * 1e6)); !at.Before(from) && at.Before(to) {
			n++
		}
	}
	return n, lines.Err()
}
