package front

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// tunnel is the client's connection after an upgrade, as httputil pumps through
// it: it gives early bytes first, counts, and can be asked to end.
//
// A tunnel is over when either direction is, as long as nobody asks it to end:
// then each side is told, and may still answer.
type tunnel struct {
	net.Conn
	early   *bufio.Reader
	in, out atomic.Int64
	ending  atomic.Bool
	over    chan struct{}   // closed when the backend has said everything, after that
	life    context.Context // ends with Close
	finish  context.CancelFunc

	mu     sync.Mutex // held while something is sent to the client
	frames frames     // what was sent
	left   bool       // the client was told 1001: nothing may follow
}

func newTunnel(c net.Conn, early *bufio.Reader) *tunnel {
	t := &tunnel{Conn: c, early: early, over: make(chan struct{})}
	t.life, t.finish = context.WithCancel(context.Background())
	return t
}

// errOver ends both directions at httputil.
var errOver = errors.New("the tunnel is over")

func (t *tunnel) Read(p []byte) (int, error) {
	var r io.Reader = t.Conn
	if n := t.early.Buffered(); n > 0 {
		r, p = t.early, p[:min(n, len(p))]
	}
	n, err := r.Read(p)
	t.in.Add(int64(n))
	return n, err
}

// WriteTo pumps from the client to the backend, which httputil hands over here:
// asked to end, the tunnel tells it so by a half-close.
func (t *tunnel) WriteTo(backend io.Writer) (int64, error) {
	if c, ok := backend.(io.Closer); ok { // it may be stuck, too
		defer context.AfterFunc(t.life, func() { _ = c.Close() })()
	}
	n, err := io.Copy(backend, struct{ io.Reader }{t})
	if !t.ending.Load() || !errors.Is(err, os.ErrDeadlineExceeded) {
		if err == nil {
			err = errOver
		}
		return n, err
	}
	_ = t.SetReadDeadline(time.Time{})
	if t.farewell() {
		// The client answers with a close frame, and by that the backend hears of
		// the end in its own language.
		more, err := io.Copy(backend, struct{ io.Reader }{t})
		n += more
		if err != nil {
			return n, err
		}
	}
	if half, ok := backend.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
		return n, errOver
	}
	select {
	case <-t.over:
	case <-t.life.Done():
	}
	// Until the client has closed too: closing with something unread would send a
	// reset, and that may overtake what the client has not read yet.
	_, _ = io.Copy(io.Discard, t.Conn)
	return n, errOver
}

// Write sends a piece of what the backend says.
func (t *tunnel) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.left {
		return len(p), nil // the client has been told that nothing follows
	}
	n, err := t.Conn.Write(p)
	t.out.Add(int64(n))
	t.frames.follow(p[:n])
	if err == nil && t.ending.Load() {
		t.leave()
	}
	return n, err
}

// farewell tells the client 1001, now or behind the frame that is under way, and
// reports whether that can be.
func (t *tunnel) farewell() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.leave()
	return !t.frames.lost
}

// goingAway is a close frame with status 1001 (RFC 6455 §5.5.1, §7.4.1).
var goingAway = []byte{0x88, 2, 1001 >> 8, 1001 & 0xff}

// leave sends the close frame if a frame may begin here. Called with mu held.
func (t *tunnel) leave() {
	if t.left || !t.frames.mayBegin() {
		return
	}
	t.left = true
	n, _ := t.Conn.Write(goingAway) // who is gone shows when it is read from
	t.out.Add(int64(n))
}

// CloseWrite is httputil's word that the backend has said everything.
func (t *tunnel) CloseWrite() error {
	if !t.ending.Load() {
		return errOver
	}
	defer close(t.over)
	half, ok := t.Conn.(interface{ CloseWrite() error })
	if !ok {
		return errOver
	}
	t.farewell()
	return half.CloseWrite()
}

// Close closes the connection, and the backend's.
func (t *tunnel) Close() error {
	t.finish()
	return t.Conn.Close()
}

// end asks the tunnel to end, and closes it when the time for that is over.
func (t *tunnel) end(within time.Duration) {
	if t.ending.Swap(true) {
		return
	}
	time.AfterFunc(within, func() { _ = t.Close() })
	_ = t.SetReadDeadline(time.Unix(1, 0)) // any time that is past: WriteTo goes on from there
}

// tunnels are those of one listener.
type tunnels struct {
	mu     sync.Mutex
	all    map[*tunnel]struct{}
	within time.Duration // how long a tunnel may take to end; 0: none is to end
}

func (s *tunnels) add(t *tunnel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = make(map[*tunnel]struct{})
	}
	s.all[t] = struct{}{}
	if s.within > 0 {
		t.end(s.within)
	}
}

func (s *tunnels) remove(t *tunnel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, t)
}

func (s *tunnels) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
}

func (s *tunnels) end(within time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.within = within
	for t := range s.all {
		t.end(within)
	}
}
