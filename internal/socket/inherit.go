package socket

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// The variables by which systemd says what it passes (sd_listen_fds(3)).
const (
	pidEnv   = "LISTEN_PID"
	countEnv = "LISTEN_FDS"
	namesEnv = "LISTEN_FDNAMES"
)

// firstFD is the first descriptor that systemd passes, the one that follows
// standard error.
const firstFD = 3

// Inherit returns the sockets that systemd passed to this process; none is no
// error. It takes the variables that tell of them out of the environment, and
// the sockets out of the descriptors that children get: none takes over what is
// not its own. It is called once, before anything else opens descriptors or
// starts children.
//
// The error lists everything that is wrong: variables that cannot be read, and
// descriptors that are not open, not a socket, or not one that listens for
// streams. Then no socket is held.
func Inherit() (*Set, error) {
	set, err := inherit(os.Getenv, firstFD)
	for _, name := range []string{pidEnv, countEnv, namesEnv} {
		err = errors.Join(err, os.Unsetenv(name))
	}
	return set, err
}

// inherit is Inherit with these variables, and with descriptors from first on.
func inherit(getenv func(string) string, first int) (*Set, error) {
	set := new(Set)
	if err := set.adopt(getenv, first); err != nil {
		_ = set.Unused()
		return nil, err
	}
	return set, nil
}

// adopt takes over what sd_listen_fds_with_names(3) would list.
func (s *Set) adopt(getenv func(string) string, first int) error {
	pid := getenv(pidEnv)
	if pid == "" {
		return nil
	}
	if n, err := strconv.Atoi(pid); err != nil || n <= 0 {
		return fmt.Errorf("%s is %q: expects a process id", pidEnv, pid)
	} else if n != os.Getpid() {
		return nil // for somebody before us who did not clear it
	}
	count, err := strconv.Atoi(getenv(countEnv))
	if err != nil || count < 0 {
		return fmt.Errorf("%s is %q: expects how many sockets are passed", countEnv, getenv(countEnv))
	}
	var names []string
	if text := getenv(namesEnv); text != "" {
		names = strings.Split(text, ":")
		if len(names) != count {
			return fmt.Errorf("%s has %d names for %d sockets: %q", namesEnv, len(names), count, text)
		}
	}
	var problems []error
	for i := range count {
		k := &socket{systemd: true}
		if names != nil {
			k.name = names[i]
		}
		if k.spare, err = listener(first + i); err != nil {
			problems = append(problems, fmt.Errorf("socket %d of %d from systemd, %q: %w", i+1, count, k.name, err))
			if errors.Is(err, syscall.EBADF) {
				break // nor are those after it, however many were said to be
			}
			continue
		}
		s.sockets = append(s.sockets, k)
	}
	return errors.Join(problems...)
}

// listener takes over a descriptor: a stream socket that listens. Any other is
// left as it is.
func listener(fd int) (net.Listener, error) {
	kind, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_TYPE)
	switch {
	case errors.Is(err, syscall.EBADF):
		return nil, fmt.Errorf("descriptor %d is not open: %w", fd, err)
	case errors.Is(err, syscall.ENOTSOCK):
		return nil, fmt.Errorf("descriptor %d is not a socket: %w", fd, err)
	case err != nil:
		return nil, fmt.Errorf("descriptor %d cannot be looked at: %w", fd, err)
	case kind != syscall.SOCK_STREAM:
		return nil, fmt.Errorf("descriptor %d is not a stream socket: write ListenStream= in the socket unit", fd)
	}
	if listens, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN); err != nil || listens == 0 {
		return nil, fmt.Errorf("descriptor %d does not listen: write Accept=no in the socket unit", fd)
	}
	file := os.NewFile(uintptr(fd), fmt.Sprint("inherited ", fd))
	l, err := net.FileListener(file) // on a descriptor of its own, which children do not get
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("descriptor %d cannot be listened on: %w", fd, err)
	}
	return l, nil
}
