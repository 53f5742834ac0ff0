package app

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// listener accepts the connections of one listener of the data plane: it
// counts them, hijacked ones included, bounds their number, and puts a
// deadline on every write.
type listener struct {
	net.Listener
	writeIdle time.Duration
	slots     chan struct{} // nil without a limit
	done      chan struct{}
	closing   sync.Once

	open atomic.Int64
	mu   sync.Mutex
	all  map[*conn]struct{}
}

func newListener(l net.Listener, writeIdle time.Duration, limit int) *listener {
	own := &listener{Listener: l, writeIdle: writeIdle, done: make(chan struct{}), all: make(map[*conn]struct{})}
	if limit > 0 {
		own.slots = make(chan struct{}, limit)
	}
	return own
}

// Accept returns the next connection, once there is a slot for it.
func (l *listener) Accept() (net.Conn, error) {
	if l.slots != nil {
		select {
		case l.slots <- struct{}{}:
		case <-l.done:
			return nil, net.ErrClosed
		}
	}
	c, err := l.Listener.Accept()
	if err != nil {
		l.release()
		return nil, err
	}
	own := &conn{Conn: c, from: l}
	l.mu.Lock()
	l.all[own] = struct{}{}
	l.mu.Unlock()
	l.open.Add(1)
	return own, nil
}

// Close stops accepting; open connections go on.
func (l *listener) Close() error {
	l.closing.Do(func() { close(l.done) })
	return l.Listener.Close()
}

// closeConns cuts every connection, tunnels too.
func (l *listener) closeConns() {
	l.mu.Lock()
	all := make([]*conn, 0, len(l.all))
	for c := range l.all {
		all = append(all, c)
	}
	l.mu.Unlock()
	for _, c := range all {
		_ = c.Close()
	}
}

func (l *listener) release() {
	if l.slots != nil {
		<-l.slots
	}
}

// conn is a client's connection.
type conn struct {
	net.Conn
	from   *listener
	closed atomic.Bool
}

// Write sends p, with the listener's write_idle as the longest it may take.
func (c *conn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.from.writeIdle)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// CloseWrite ends lb's side alone, so that a last answer is not lost to a reset
// when the client is still sending.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// Close closes the connection and gives its slot back, once.
func (c *conn) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		c.from.mu.Lock()
		delete(c.from.all, c)
		c.from.mu.Unlock()
		c.from.open.Add(-1)
		c.from.release()
	}
	return c.Conn.Close()
}
