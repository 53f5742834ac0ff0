package transport

import (
	"net"
	"net/http/httptrace"
	"runtime"
	"sync/atomic"
	"time"
)

// backendConn is a connection to a backend that knows whether somebody is
// waiting for its next byte.
type backendConn struct {
	net.Conn
	reading, closed atomic.Bool
}

func (c *backendConn) Read(p []byte) (int, error) {
	c.reading.Store(true)
	n, err := c.Conn.Read(p)
	c.reading.Store(false)
	return n, err
}

func (c *backendConn) Close() error {
	c.closed.Store(true)
	return c.Conn.Close()
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
