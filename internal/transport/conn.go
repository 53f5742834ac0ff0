package transport

import (
	"errors"
	"maps"
	"net"
	"net/http/httptrace"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// backendConn is a connection to a backend that knows whether somebody is
// waiting for its next byte.
type backendConn struct {
	net.Conn
	owner           *Transport
	reading, closed atomic.Bool
}

func (c *backendConn) Read(p []byte) (int, error) {
	c.reading.Store(true)
	n, err := c.Conn.Read(p)
	c.reading.Store(false)
	return n, c.owner.explain(err)
}

func (c *backendConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, c.owner.explain(err)
}

// CloseWrite ends lb's side of a tunnel alone.
func (c *backendConn) CloseWrite() error {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return c.owner.explain(half.CloseWrite())
}

func (c *backendConn) Close() error {
	c.closed.Store(true)
	c.owner.conns.remove(c)
	return c.Conn.Close()
}

// connections are those of one transport, in use or idle.
type connections struct {
	mu   sync.Mutex
	cut  bool // they were closed for good
	open map[*backendConn]struct{}
}

// add notes c. After cut there is nothing to note any more: false.
func (s *connections) add(c *backendConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cut {
		return false
	}
	if s.open == nil {
		s.open = make(map[*backendConn]struct{})
	}
	s.open[c] = struct{}{}
	return true
}

func (s *connections) remove(c *backendConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

// end lets nobody be added any more, and returns who is there.
func (s *connections) end() []*backendConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut = true
	return slices.Collect(maps.Keys(s.open))
}

// How long a kept connection may take to turn quiet. It takes microseconds.
const quietWithin = 50 * time.Millisecond

// waitUntilQuiet keeps a request from a kept connection that still holds bytes
// behind the last answer. net/http offers a connection for reuse and only then
// looks for such bytes; a request that comes in between would take them for
// its answer. Once a read of the connection waits for the backend, net/http's
// buffer is empty and all is well; if it was not, net/http closes the
// connection and the request goes out on another one.
func waitUntilQuiet(info httptrace.GotConnInfo) {
	c, ok := info.Conn.(*backendConn)
	if !ok || !info.Reused {
		return
	}
	var deadline time.Time
	for try := 0; !c.reading.Load() && !c.closed.Load(); try++ {
		if try < 100 {
			runtime.Gosched()
			continue
		}
		if deadline.IsZero() {
			deadline = time.Now().Add(quietWithin)
		} else if time.Now().After(deadline) {
			_ = c.Close()
			return
		}
		time.Sleep(20 * time.Microsecond)
	}
}
