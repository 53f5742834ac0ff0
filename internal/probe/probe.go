// Package probe asks backends whether they are well: once (Check), and again
// and again (Loop). What the answers make of a backend is for internal/health
// to say.
package probe

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"lb/internal/outcome"
)

// Check asks one backend, at an address host:port, whether it is well. Nil says
// that it is. An error's text is the reason for operators: one line of at most
// 200 bytes without control characters. ctx bounds the whole probe: one that
// takes longer fails with ctx's cause. Safe for concurrent use.
type Check interface {
	Probe(ctx context.Context, address string) error
}

// ErrStarved marks probes that failed because lb itself lacked descriptors,
// ports, memory or processes: they say nothing about the backend.
var ErrStarved = errors.New("lb could not probe")

// starvedError is the text of a failure that is ErrStarved.
type starvedError string

func (e starvedError) Error() string { return string(e) }

// Is makes errors.Is find ErrStarved.
func (e starvedError) Is(target error) bool { return target == ErrStarved }

// Allow judges an address that is about to be connected to, also each of those
// that a name stands for at that moment: with an error the probe fails, and the
// error is the reason. Nil allows everything.
type Allow func(netip.AddrPort) error

// control implements net.Dialer.ControlContext.
func (a Allow) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	if a == nil {
		return nil
	}
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	return a(at)
}

// dial connects to address, or to another port of its host unless port is 0. It
// sends no keep-alives: no probe lives long enough for them.
func dial(ctx context.Context, address string, port int, allow Allow) (net.Conn, error) {
	if port != 0 {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		address = net.JoinHostPort(host, strconv.Itoa(port))
	}
	dialer := net.Dialer{KeepAlive: -1, ControlContext: allow.control}
	return dialer.DialContext(ctx, "tcp", address)
}

// failure turns what ended a probe into what Check promises to return.
func failure(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case over(ctx):
		return context.Cause(ctx)
	case starved(err):
		return starvedError(line(ErrStarved.Error() + ": " + err.Error()))
	default:
		return errors.New(line(err.Error()))
	}
}

// over reports whether ctx has ended. Sockets keep a deadline by timers of
// their own, which may be a moment ahead of ctx.
func over(ctx context.Context) bool {
	if ctx.Err() == nil {
		deadline, ok := ctx.Deadline()
		if !ok || time.Now().Before(deadline) {
			return false
		}
		<-ctx.Done()
	}
	return true
}

// starved reports whether err is for want of something on this side. outcome
// knows that of dials; a process that cannot be started lacks the same things.
func starved(err error) bool {
	return outcome.FromError(&outcome.DialError{Err: err}).Class == outcome.Starved
}

// maxReason bounds a reason in bytes: it stands in tables and in log lines.
const maxReason = 200

// line returns s as one line that is fit to be shown: what does not print is
// escaped as in Go, and what is too long is cut.
func line(s string) string {
	const cut = "…"
	s = strings.TrimSpace(s)
	var b strings.Builder
	for i, size := 0, 0; i < len(s); i += size {
		var r rune
		r, size = utf8.DecodeRuneInString(s[i:])
		piece := s[i : i+size]
		if !unicode.IsPrint(r) || r == utf8.RuneError && size == 1 {
			quoted := strconv.Quote(piece)
			piece = quoted[1 : len(quoted)-1]
		}
		if b.Len()+len(piece) > maxReason-len(cut) {
			b.WriteString(cut)
			break
		}
		b.WriteString(piece)
	}
	return b.String()
}
