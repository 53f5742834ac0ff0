package front

import (
	"bufio"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"

	"lb/internal/exchange"
	"lb/internal/outcome"
	"lb/internal/problem"
)

// writer is the way to the client: it keeps the record up to date, and keeps
// net/http from adding what the backend did not say.
type writer struct {
	http.ResponseWriter
	x       *exchange.Exchange
	handler *Handler
	http10  bool  // the client speaks HTTP/1.0: no 1xx may go to it
	body    *body // the request's, nil if it has none
	length  int64 // Content-Length of the answer, -1 if unknown
	broken  error // the first error in writing to the client
	tunnel  *tunnel
}

// WriteHeader sends an interim or the final head.
func (w *writer) WriteHeader(status int) {
	if status < 200 && status != http.StatusSwitchingProtocols {
		// net/http itself sends 100 when the body is first read.
		if status != http.StatusContinue && !w.http10 {
			w.x.HeadSent.Store(true)
			w.ResponseWriter.WriteHeader(status)
		}
		return
	}
	h := w.Header()
	if id := w.x.Forward.RequestID; id != "" {
		h["X-Request-Id"] = []string{id}
	}
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // nothing is sniffed
	}
	if w.handler.drains() || w.early() {
		h.Set("Connection", "close")
	}
	w.length = -1
	if cl := h["Content-Length"]; len(cl) == 1 {
		if n, err := strconv.ParseInt(cl[0], 10, 64); err == nil {
			w.length = n
			if len(cl[0]) > 1 && cl[0][0] == '0' {
				h.Set("Content-Length", strconv.FormatInt(n, 10)) // one reader's 010 is another's 8
			}
		}
	}
	w.x.Status = status
	w.x.HeadSent.Store(true)
	w.ResponseWriter.WriteHeader(status)
}

// early reports an answer before the end of the request body that must not wait
// for that: net/http would read on before it sends the head. Such are answers
// to a body that a backend has begun to get, be they its own or about its
// failure; to a client that sends nothing until it hears; and those for which
// time ran out during a pause. The connection ends with such an answer, so that
// what is left of the body is not taken for a request. (net/http would also
// panic when it has read that rest and goes on to the next request.)
func (w *writer) early() bool {
	if w.body == nil || w.body.ended.Load() {
		return false
	}
	proxied := w.x.Backend != nil && (w.x.Failure == nil || w.body.begun.Load())
	if !proxied && !w.body.withheld() && !w.body.cutShort() {
		w.body.abandon(false) // net/http may wait for the rest, but not for ever
		return false
	}
	_ = w.body.control.EnableFullDuplex() // HTTP/1 always can
	return true
}

// Write sends a piece of the body. A piece that is not the last one does not
// wait in a buffer for the next: whoever streams means it.
func (w *writer) Write(p []byte) (int, error) {
	if w.x.Status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	n, err := w.ResponseWriter.Write(p)
	if w.x.Method != http.MethodHead {
		w.x.BytesOut += int64(n)
	}
	if err == nil && w.length >= 0 && w.x.BytesOut < w.length {
		err = http.NewResponseController(w.ResponseWriter).Flush()
	}
	w.note(err)
	return n, err
}

// FlushError sends what is buffered.
func (w *writer) FlushError() error {
	if w.x.Status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	err := http.NewResponseController(w.ResponseWriter).Flush()
	w.note(err)
	return err
}

// note keeps the first error in writing to the client.
func (w *writer) note(err error) {
	if err != nil && w.broken == nil && !errors.Is(err, http.ErrBodyNotAllowed) {
		w.broken = err
	}
}

// Hijack hands the connection to a tunnel. Bytes that the client has sent
// already are read first: httputil itself would lose them.
func (w *writer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return conn, rw, err
	}
	w.x.Status = http.StatusSwitchingProtocols
	w.x.HeadSent.Store(true)
	w.Header()["X-Request-Id"] = []string{w.x.Forward.RequestID} // httputil writes the head from here
	w.tunnel = newTunnel(conn, rw.Reader)
	w.handler.tunnels.add(w.tunnel)
	return w.tunnel, rw, nil
}

// Unwrap lets http.ResponseController reach the connection.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// refuse answers with an error of lb's own.
func (w *writer) refuse(e *outcome.Error) {
	w.x.Failure = e
	if len(w.x.Allow) > 0 {
		w.Header().Set("Allow", strings.Join(w.x.Allow, ", "))
	}
	problem.Write(w, e, w.x.Forward.RequestID)
}

// answer sends a whole answer. The Content-Type is the caller's to set.
func (w *writer) answer(status int, body []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // noted in broken
}

// json sends v, which always marshals, as an answer of lb's own.
func (w *writer) json(status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.answer(status, append(b, '\n'))
}
