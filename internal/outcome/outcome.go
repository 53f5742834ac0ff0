// Package outcome is the only place that turns an error or a status into a
// class, and a class into the code, the status and the words a client gets.
// Everything else (retries, counters, the access log) reads what stands here.
package outcome

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
)

// Class says how one attempt at a backend, or a whole request, ended.
type Class uint8

const (
	// Undecided is the zero value: nothing has happened yet.
	Undecided Class = iota
	// Success is a response with a status below 500, or with 501 or 505: they
	// speak of the request's method and version, which the client chose.
	Success
	// Failure is a response with any other status of 500 or above.
	Failure
	// Unsent is a dial that failed because of the backend: refused,
	// unreachable, unresolved, or over the connect timeout. Nothing was sent.
	Unsent
	// Starved is a dial that failed because lb itself lacked descriptors,
	// ports or memory. Nothing was sent, and the backend is not to blame.
	Starved
	// Reset is a connection that ended before a whole response head came.
	Reset
	// Invalid is an answer that is not HTTP, or not one to this request.
	Invalid
	// Timeout is a response head that did not come in time.
	Timeout
	// Cut is a response that broke off after its head had been passed on.
	Cut
	// ClientGone is a client that left before its answer was whole.
	ClientGone
	// ClientFault is a request that lb refused or whose body broke off.
	ClientFault
	// Refused is a request that lb answered with an error of its own without
	// asking a backend.
	Refused
	// Withdrawn is an attempt that lb cut because its backend was unregistered
	// by force.
	Withdrawn
	classes
)

// Names are the names of the classes by their number, as they stand in the
// `outcome` label of the metrics.
var Names = [classes]string{
	"undecided", "success", "failure", "unsent", "starved", "reset", "invalid",
	"timeout", "cut", "client_gone", "client_fault", "refused", "withdrawn",
}

// String returns the class's name.
func (c Class) String() string { return Names[c] }

// Judgement is what the end of an attempt says about its backend.
type Judgement uint8

const (
	// Neither says nothing: lb or the client ended the attempt, or nothing was
	// sent. Failed dials are connect ejection's to judge.
	Neither Judgement = iota
	// Good is a backend that does its work.
	Good
	// Bad is one that answers badly, or not at all.
	Bad
)

// Judgement returns what c says about the backend. It is what breakers and
// error rates go by.
func (c Class) Judgement() Judgement {
	switch c {
	case Success:
		return Good
	case Failure, Reset, Invalid, Timeout, Cut:
		return Bad
	}
	return Neither
}

// Outcome is how an attempt or a request ended.
type Outcome struct {
	Class Class
	// Status is the backend's status, 0 without a response.
	Status int
	// Err is the error, for the log; nil with a response.
	Err error
	// Uploading says of a Timeout that lb was waiting for the client's body: the
	// backend had no whole request to answer, and is not to blame.
	Uploading bool
}

// FromStatus classifies a response by its status.
func FromStatus(status int) Outcome {
	if status >= 500 && status != 501 && status != 505 {
		return Outcome{Class: Failure, Status: status}
	}
	return Outcome{Class: Success, Status: status}
}

// DialError is a dial that failed, with its address. It wraps the cause.
type DialError struct {
	Address string
	Err     error
}

func (e *DialError) Error() string { return "dial " + e.Address + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *DialError) Unwrap() error { return e.Err }

// ErrInvalidAnswer marks answers that the carrier itself found to be nonsense.
var ErrInvalidAnswer = errors.New("invalid answer")

// ErrWithdrawn marks attempts that were cut with their backend.
var ErrWithdrawn = errors.New("the backend was unregistered by force")

// ErrTimeout marks attempts that were ended because their time was over.
var ErrTimeout = errors.New("time over")

// FromError classifies the error of an attempt that brought no response. Who
// calls it has already excluded what the client caused: a client that left or
// a request body that broke off.
func FromError(err error) Outcome {
	return Outcome{Class: classOf(err), Err: err}
}

func classOf(err error) Class {
	var dial *DialError
	if errors.As(err, &dial) {
		if starved(dial.Err) {
			return Starved
		}
		return Unsent
	}
	var netErr net.Error
	switch {
	case errors.Is(err, ErrWithdrawn):
		return Withdrawn
	case errors.Is(err, ErrInvalidAnswer):
		return Invalid
	case errors.Is(err, ErrTimeout), errors.Is(err, context.DeadlineExceeded):
		return Timeout
	case errors.Is(err, context.Canceled):
		return ClientGone
	case errors.As(err, &netErr) && netErr.Timeout():
		return Timeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return Reset
	}
	var errno syscall.Errno
	if errors.As(err, &errno) || errors.As(err, &netErr) {
		return Reset
	}
	// net/http exports neither the error for a kept connection that the
	// backend closed, nor its own broken-pipe wrapper.
	if strings.Contains(err.Error(), "server closed idle connection") {
		return Reset
	}
	return Invalid
}

// starved reports whether a dial failed for want of something on this side.
func starved(err error) bool {
	var dns *net.DNSError
	unresolved := errors.As(err, &dns)
	for _, e := range []syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM,
		syscall.EADDRNOTAVAIL, syscall.EADDRINUSE, syscall.EAGAIN,
	} {
		// The resolver needs a socket too. It keeps only the text of what
		// went wrong.
		if errors.Is(err, e) || unresolved && strings.HasSuffix(dns.Err, ": "+e.Error()) {
			return true
		}
	}
	return false
}
