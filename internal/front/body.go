package front

import (
	"errors"
	"io"
	"net/http"
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
}

// withheld reports whether the client still waits for leave to send the body.
// After a final answer nobody can say whether what comes next is that body.
func (b *body) withheld() bool { return b.awaited && !b.begun.Load() }

func (b *body) Read(p []byte) (int, error) {
	b.begun.Store(true)
	_ = b.control.SetReadDeadline(time.Now().Add(b.idle)) // fails only on a connection that is gone
	n, err := b.ReadCloser.Read(p)
	b.read.Add(int64(n))
	if errors.Is(err, io.EOF) {
		b.ended.Store(true)
		// Left standing, the deadline would end the request while the backend
		// is still at work on it.
		_ = b.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

// abandon bounds how long net/http goes on reading what the handler left of
// the body.
func (b *body) abandon() {
	if !b.ended.Load() {
		_ = b.control.SetReadDeadline(time.Now().Add(b.idle))
	}
}
