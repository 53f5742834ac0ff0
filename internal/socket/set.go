// Package socket opens the sockets that lb listens on, or takes over those that
// systemd has opened for it. It also tells systemd how lb is doing.
package socket

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
)

// Set is the listening sockets of this process, open ones and such that were
// inherited and that nobody has asked for yet. Safe for concurrent use; a bind
// makes other calls wait. The zero Set has inherited nothing.
type Set struct {
	mu      sync.Mutex
	sockets []*socket
}

// socket is one listening socket.
type socket struct {
	name, address string       // as they were asked for; name is "" if systemd gave none
	systemd       bool         // it comes from there, and so does its file
	spare         net.Listener // inherited, and nobody has asked for it; else nil
	handles       []*handle    // what Listen returned and is not closed
}

// handle is a socket as Listen returns it. A socket that was asked for twice has
// two, which accept beside each other.
type handle struct {
	net.Listener
	set    *Set
	socket *socket
}

// Listen returns a listener on address, host:port or unix:/path, for the
// listener of that name:
//
//   - a socket of this Set that is open for the same text already. It is opened
//     once more, and none of its connections is lost when the older one is
//     closed: so a reload replaces who accepts;
//   - an inherited socket, if it is bound to that address; :80, [::]:80 and
//     0.0.0.0:80 count as the same, and a host name stands for what it resolves
//     to;
//   - else a new one. The file of a unix socket on which nobody listens any more
//     is replaced, any other is left alone and an error.
//
// Port 0 is another port for each name. An inherited socket with that name and
// another address is an error, too: what may listen where is judged in the
// configuration. The file of a unix socket goes when the last listener on it is
// closed, unless it is systemd's.
func (s *Set) Listen(ctx context.Context, name, address string) (net.Listener, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.sockets {
		if len(k.handles) > 0 && k.address == address && (k.name == name || !choosesPort(address)) {
			return s.again(k)
		}
	}
	if k := s.inherited(ctx, address); k != nil {
		l := k.spare
		k.name, k.address, k.spare = name, address, nil
		return s.handle(k, l), nil
	}
	for _, k := range s.sockets {
		if k.spare != nil && k.name == name {
			return nil, fmt.Errorf("the socket %q from systemd is bound to %s and not to %s: make ListenStream= of its unit and the configuration agree",
				name, k.spare.Addr(), address)
		}
	}
	l, err := bind(ctx, address)
	if err != nil {
		return nil, err
	}
	k := &socket{name: name, address: address}
	s.sockets = append(s.sockets, k)
	return s.handle(k, l), nil
}

// inherited returns the spare socket on that address, nil if there is none.
func (s *Set) inherited(ctx context.Context, address string) *socket {
	for _, k := range s.sockets {
		if k.spare != nil && same(ctx, address, k.spare.Addr()) {
			return k
		}
	}
	return nil
}

// again opens a socket that is open once more.
func (s *Set) again(k *socket) (net.Listener, error) {
	file, err := duplicate(k.handles[0].Listener)
	if err != nil {
		return nil, err
	}
	l, err := net.FileListener(file)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, err
	}
	return s.handle(k, l), nil
}

func (s *Set) handle(k *socket, l net.Listener) net.Listener {
	h := &handle{Listener: l, set: s, socket: k}
	k.handles = append(k.handles, h)
	return h
}

// Close ends accepting through this handle. Connections that wait to be accepted
// go to the other handles of the socket, or to systemd, which keeps what it has
// passed; without any, the kernel resets them.
func (h *handle) Close() error {
	h.set.mu.Lock()
	defer h.set.mu.Unlock()
	k := h.socket
	if i := slices.Index(k.handles, h); i >= 0 {
		k.handles = slices.Delete(k.handles, i, i+1)
		if len(k.handles) == 0 {
			h.set.sockets = slices.DeleteFunc(h.set.sockets, func(other *socket) bool { return other == k })
		}
	}
	if u, ok := h.Listener.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(!k.systemd && len(k.handles) == 0)
	}
	return h.Listener.Close()
}

// Unused closes the inherited sockets that nobody has asked for, and says which
// they were: their addresses, and the names that systemd gave them.
//
// systemd goes on listening on what it passed: connections to such a socket wait
// until its unit is stopped.
func (s *Set) Unused() (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sockets = slices.DeleteFunc(s.sockets, func(k *socket) bool {
		if k.spare == nil {
			return false
		}
		name := k.spare.Addr().String()
		if k.name != "" {
			name = fmt.Sprintf("%s (%s)", k.name, name)
		}
		names = append(names, name)
		_ = k.spare.Close() // it never accepted: there is nothing to lose
		return true
	})
	return names
}

// duplicate returns another descriptor for the socket of l.
//
// Not by its method File: the socket would block for a moment while
// net.FileListener looks at that, and an Accept of l that begins in this moment
// does not end when l is closed.
func duplicate(l net.Listener) (*os.File, error) {
	with, ok := l.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("a %T cannot be opened once more", l)
	}
	raw, err := with.SyscallConn()
	if err != nil {
		return nil, err
	}
	var copied int
	failed := raw.Control(func(fd uintptr) {
		syscall.ForkLock.RLock() // no child that starts now gets it by accident
		defer syscall.ForkLock.RUnlock()
		if copied, err = syscall.Dup(int(fd)); err == nil {
			syscall.CloseOnExec(copied)
		}
	})
	if err := errors.Join(failed, err); err != nil {
		return nil, fmt.Errorf("duplicating the socket %s: %w", l.Addr(), err)
	}
	return os.NewFile(uintptr(copied), l.Addr().String()), nil
}
