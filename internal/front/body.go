package front

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// body is a client's request body with a deadline on each read.
type body struct {
	io.ReadCloser
	control *http.ResponseController
	idle    time.Duration
	awaited bool // the client sends nothing before it is told to go on: Expect
	read    atomic.Int64
	begun   atomic.Bool
	ended   atomic.Bool

	mu          sync.Mutex // held while a deadline is set
	interrupted bool       // nobody takes the rest
	over        bool       // the connection is the next request's
}

// withheld reports whether the client still waits for leave to send the body.
// After a final answer nobody can say whether what comes next is that body.
func (b *body) withheld() bool { return b.awaited && !b.begun.Load() }

func (b *body) Read(p []byte) (int, error) {
	b.begun.Store(true)
	b.allowPause()
	n, err := b.ReadCloser.Read(p)
	b.read.Add(int64(n))
	if errors.Is(err, io.EOF) {
		b.end()
	}
	return n, err
}

// end notes that the body is whole. Left standing, the deadline would end the
// request while the backend is still at work on it.
func (b *body) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended.Store(true)
	_ = b.control.SetReadDeadline(time.Time{})
}

// allowPause gives the client the time for one pause, unless nobody would take
// what it sends then.
func (b *body) allowPause() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.interrupted {
		_ = b.control.SetReadDeadline(time.Now().Add(b.idle)) // fails only on a connection that is gone
	}
}

// Interrupt ends a read under way, and lets no other begin. Without it an
// answer would wait for a client that has paused.
func (b *body) Interrupt() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.over && !b.ended.Load() {
		b.interrupted = true
		_ = b.control.SetReadDeadline(time.Unix(1, 0)) // any time that is past
	}
}

// cutShort reports whether reading was interrupted.
func (b *body) cutShort() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.interrupted
}

// abandon bounds how long net/http goes on reading what the handler left of
// the body. With last the handler is about to return.
func (b *body) abandon(last bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = last
	if !b.ended.Load() {
		_ = b.control.SetReadDeadline(time.Now().Add(b.idle))
	}
}
