package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// sentField carries when the client sent a write, in nanoseconds since epoch.
const sentField = "X-Sent"

// epoch is when this process began to count: clients and backends share its
// clock.
var epoch = time.Now()

// backend is a server that accepts every write. Until revive it refuses
// connections, but its port is nobody else's.
type backend struct {
	id, address string
	file        *os.File
	server      *http.Server

	writes atomic.Int64
	mu     sync.Mutex
	first  time.Time       // when the first write came
	delays []time.Duration // from client to backend, since collect
}

func newBackend(id string) (*backend, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), id)
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return nil, err
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		return nil, err
	}
	b := &backend{id: id, address: fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port), file: file}
	b.server = &http.Server{Handler: b, ReadHeaderTimeout: time.Minute}
	return b, nil
}

// revive lets the backend accept connections.
func (b *backend) revive() error {
	if err := syscall.Listen(int(b.file.Fd()), 1024); err != nil {
		return err
	}
	l, err := net.FileListener(b.file)
	if err != nil {
		return err
	}
	go func() { _ = b.server.Serve(l) }() // ends with close
	return nil
}

func (b *backend) close() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = b.server.Shutdown(ctx)
	_ = b.server.Close()
	_ = b.file.Close()
}

func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		return
	}
	now := time.Now()
	sent, err := strconv.ParseInt(r.Header.Get(sentField), 10, 64)
	b.mu.Lock()
	if b.first.IsZero() {
		b.first = now
	}
	if err == nil { // those that were filled in have not been sent by a client
		b.delays = append(b.delays, now.Sub(epoch)-time.Duration(sent))
	}
	b.mu.Unlock()
	b.writes.Add(1)
	w.WriteHeader(http.StatusCreated)
}

// firstWrite returns when the first write came; zero if none has.
func (b *backend) firstWrite() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.first
}

// collect returns how long each write took from the client to the backend
// since the last call.
func (b *backend) collect() []time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	delays := b.delays
	b.delays = nil
	return delays
}

// newBackends returns three backends, of which so many accept connections.
func newBackends(up int) ([]*backend, error) {
	var all []*backend
	for i := range 3 {
		b, err := newBackend(fmt.Sprintf("server%d", i+1))
		if err == nil && i < up {
			err = b.revive()
		}
		if err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return all, nil
}
