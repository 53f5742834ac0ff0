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
	read    atomic.Int64
	ended   atomic.Bool
}

func (b *body) Read(p []byte) (int, error) {
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
