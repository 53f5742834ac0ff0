package e2e

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// faultProxy stands between lb and a backend, and spoils what the backend
// says, or that it can be reached at all.
type faultProxy struct {
	Addr string
	// Struck counts the answers that were spoiled, Misused the bytes that came
	// over a connection after lb must have given it up.
	Struck, Misused atomic.Int64

	t       testing.TB
	backend string
	running sync.WaitGroup

	mu       sync.Mutex
	fault    fault
	listener net.Listener // nil while nobody accepts
	conns    map[*net.TCPConn]bool
}

// fault passes an answer on, or what it makes of it, and reports whether the
// connection goes on.
type fault func(p *faultProxy, c *net.TCPConn, head, body []byte) bool

// startFaultProxy runs a proxy to a backend until the test's end. At first it
// passes everything.
func startFaultProxy(t testing.TB, backend string) *faultProxy {
	t.Helper()
	p := &faultProxy{Addr: deadAddress(t), t: t, backend: backend, conns: make(map[*net.TCPConn]bool)}
	p.listen()
	t.Cleanup(func() {
		p.unlisten()
		p.hangUp()
		p.running.Wait()
	})
	return p
}

// strike spoils every answer from now on; nil passes them again.
func (p *faultProxy) strike(f fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
}

// listen accepts, again at the same address.
func (p *faultProxy) listen() {
	p.t.Helper()
	l, err := net.Listen("tcp", p.Addr)
	require.NoError(p.t, err)
	p.mu.Lock()
	p.listener = l
	p.mu.Unlock()
	p.running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conn := c.(*net.TCPConn)
			if p.keep(l, conn) {
				p.running.Go(func() { p.carry(conn) })
			}
		}
	})
}

// keep notes a connection, or closes it if l accepts no more.
func (p *faultProxy) keep(l net.Listener, c *net.TCPConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != l {
		_ = c.Close()
		return false
	}
	p.conns[c] = true
	return true
}

// unlisten lets the kernel refuse new connections.
func (p *faultProxy) unlisten() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil {
		_ = p.listener.Close()
		p.listener = nil
	}
}

// hangUp closes the connections that there are.
func (p *faultProxy) hangUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

// die is what a dead process looks like: all connections end and new ones are
// refused.
func (p *faultProxy) die() {
	p.unlisten()
	p.hangUp()
}

// vanish is what a dead machine looks like: nothing answers, not to requests
// over the connections that there are and not to new ones.
func (p *faultProxy) vanish() {
	p.strike(silence)
	p.unlisten()
	fillBacklog(p.t, p.Addr)
}

// carry serves one connection of lb's over one to the backend.
func (p *faultProxy) carry(c *net.TCPConn) {
	defer func() {
		_ = c.Close()
		p.mu.Lock()
		delete(p.conns, c)
		p.mu.Unlock()
	}()
	backend, err := net.Dial("tcp", p.backend)
	if err != nil {
		return
	}
	defer func() { _ = backend.Close() }()
	requests, answers := bufio.NewReader(c), bufio.NewReader(backend)
	for {
		req, err := http.ReadRequest(requests)
		if err != nil {
			return
		}
		if err := req.Write(backend); err != nil {
			return
		}
		head, body, err := readAnswer(answers, req)
		if err != nil || !p.answer(c, head, body) {
			return
		}
	}
}

func readAnswer(r *bufio.Reader, req *http.Request) (head, body []byte, err error) {
	res, err := http.ReadResponse(r, req)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = res.Body.Close() }()
	all, err := httputil.DumpResponse(res, true)
	head, body, _ = bytes.Cut(all, []byte("\r\n\r\n"))
	return append(head, "\r\n\r\n"...), body, err
}

func (p *faultProxy) answer(c *net.TCPConn, head, body []byte) bool {
	p.mu.Lock()
	f := p.fault
	p.mu.Unlock()
	if f == nil {
		return write(c, head, body)
	}
	p.Struck.Add(1)
	return f(p, c, head, body)
}

func write(w io.Writer, all ...[]byte) bool {
	_, err := w.Write(bytes.Join(all, nil))
	return err == nil
}

// silence answers nothing.
func silence(_ *faultProxy, c *net.TCPConn, _, _ []byte) bool {
	_, _ = io.Copy(io.Discard, c) // until lb gives up
	return false
}

// resetBefore answers with a reset.
func resetBefore(_ *faultProxy, c *net.TCPConn, _, _ []byte) bool {
	_ = c.SetLinger(0)
	return false
}

// resetMidway resets the connection after the head and half of the body.
func resetMidway(_ *faultProxy, c *net.TCPConn, head, body []byte) bool {
	write(c, head, body[:len(body)/2])
	_ = c.SetLinger(0)
	return false
}

// finBefore says that nothing comes, and goes on listening.
func finBefore(p *faultProxy, c *net.TCPConn, _, _ []byte) bool {
	_ = c.CloseWrite()
	p.listenOn(c)
	return false
}

// finMidway ends after the head and half of the body, and goes on listening.
func finMidway(p *faultProxy, c *net.TCPConn, head, body []byte) bool {
	write(c, head, body[:len(body)/2])
	_ = c.CloseWrite()
	p.listenOn(c)
	return false
}

// nonsense answers with what is no HTTP, and goes on listening.
func nonsense(p *faultProxy, c *net.TCPConn, _, _ []byte) bool {
	write(c, []byte("\x00\x01 what a day\r\n\r\n"))
	p.listenOn(c)
	return false
}

// listenOn counts what still comes over a connection that is of no more use.
func (p *faultProxy) listenOn(c *net.TCPConn) {
	n, _ := io.Copy(io.Discard, c)
	p.Misused.Add(n)
}

// late passes answers on after a while.
func late(by time.Duration) fault {
	return func(_ *faultProxy, c *net.TCPConn, head, body []byte) bool {
		<-time.After(by)
		return write(c, head, body)
	}
}

// dripHead sends the head in single bytes, one each so often.
func dripHead(every time.Duration) fault {
	return func(_ *faultProxy, c *net.TCPConn, head, body []byte) bool {
		return drip(c, head, every) && write(c, body)
	}
}

// dripBody sends the body in single bytes, one each so often.
func dripBody(every time.Duration) fault {
	return func(_ *faultProxy, c *net.TCPConn, head, body []byte) bool {
		return write(c, head) && drip(c, body, every)
	}
}

func drip(c *net.TCPConn, all []byte, every time.Duration) bool {
	for i := range all {
		<-time.After(every)
		if !write(c, all[i:i+1]) {
			return false
		}
	}
	return true
}

// fillBacklog makes dials to an address hang: it listens there with a queue
// that is full, and accepts nothing.
func fillBacklog(t testing.TB, address string) {
	t.Helper()
	at, err := net.ResolveTCPAddr("tcp", address)
	require.NoError(t, err)
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = syscall.Close(fd) })
	require.NoError(t, syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1))
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte(at.IP.To4()), Port: at.Port}))
	require.NoError(t, syscall.Listen(fd, 0))
	for {
		conn, err := net.DialTimeout("tcp", address, 100*time.Millisecond)
		if err != nil {
			return // no room for one more
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
}
