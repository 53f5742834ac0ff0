package proxy

import (
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
)

// replayLimit is how much of a request body is kept for another attempt.
const replayLimit = 64 << 10

// body is the client's request body, read once and handed to one attempt after
// the other. The transport closes the body it is given, even when the dial
// failed and nothing was sent; here that closes the attempt's view alone.
type body struct {
	client io.Reader
	failed atomic.Pointer[error] // how reading from the client failed, if it did
	lost   atomic.Bool           // bytes were read that are not kept

	// Held while reading from the client, so that bytes which an attempt that
	// was given up is still waiting for reach the next one.
	mu     sync.Mutex
	length int64 // -1 if unknown
	keep   bool
	kept   []byte
	read   int   // bytes read from the client
	end    error // io.EOF or the failure, once there
}

// newBody returns the body of one request. It keeps what is read for another
// attempt if keep is set and the length (-1 if unknown) allows it.
func newBody(client io.Reader, length int64, keep bool) *body {
	return &body{client: client, length: length, keep: keep && length <= replayLimit}
}

// replayable reports whether another attempt can have the whole body.
func (b *body) replayable() bool { return b == nil || !b.lost.Load() }

// broken returns the error that reading from the client ended with, if any.
func (b *body) broken() error {
	if b == nil {
		return nil
	}
	if err := b.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// settled is broken after a read under way has returned. To be called only when
// that is about to happen.
func (b *body) settled() error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.broken()
}

// gather reads the body whole, if it is no larger than what is kept, because
// net/http notices that a client has left only once the body was read. Of one
// that does not say how long it is, it reads as much as is kept; one that says
// that it is larger stays unread. The error is the client's doing.
func (b *body) gather() error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.length > replayLimit || b.lost.Load() {
		return nil
	}
	b.keep = true
	for b.end == nil && b.read < replayLimit {
		b.kept = slices.Grow(b.kept, 512)
		room := b.kept[len(b.kept):cap(b.kept)]
		_, _ = b.fetch(room[:min(len(room), replayLimit-b.read)]) // the error is in end
	}
	return b.broken()
}

// attempt returns the body for one attempt, from its first byte.
func (b *body) attempt() io.ReadCloser { return &attemptBody{body: b} }

type attemptBody struct {
	body   *body
	at     int
	closed atomic.Bool
}

var errBytesLost = errors.New("an earlier attempt read more of the body than is kept")

func (a *attemptBody) Read(p []byte) (int, error) {
	b := a.body
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case a.closed.Load():
		return 0, http.ErrBodyReadAfterClose
	case a.at < len(b.kept):
		n := copy(p, b.kept[a.at:])
		a.at += n
		return n, nil
	case a.at < b.read:
		return 0, errBytesLost
	case b.end != nil:
		return 0, b.end
	}
	n, err := b.fetch(p)
	a.at += n
	return n, err
}

// fetch reads from the client into p. Called with mu held.
func (b *body) fetch(p []byte) (int, error) {
	n, err := b.client.Read(p)
	b.read += n
	if b.keep = b.keep && b.read <= replayLimit; b.keep {
		b.kept = append(b.kept, p[:n]...)
	} else if n > 0 {
		b.kept = nil
		b.lost.Store(true)
	}
	if err != nil {
		b.end = err
		if !errors.Is(err, io.EOF) {
			b.failed.Store(&err)
		}
	}
	return n, err
}

// Close ends this attempt's reading. It does not wait for a read under way.
func (a *attemptBody) Close() error {
	a.closed.Store(true)
	return nil
}
