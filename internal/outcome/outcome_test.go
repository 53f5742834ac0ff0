package outcome_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"lb/internal/outcome"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFromStatus(t *testing.T) {
	for status, want := range map[int]outcome.Class{
		101: outcome.Success, 200: outcome.Success, 204: outcome.Success, 301: outcome.Success,
		404: outcome.Success, 429: outcome.Success, 499: outcome.Success,
		500: outcome.Failure, 503: outcome.Failure, 599: outcome.Failure, 999: outcome.Failure,
		// What the client chose: with "BREW /" it must not open a breaker.
		501: outcome.Success, 505: outcome.Success, 502: outcome.Failure, 504: outcome.Failure, 506: outcome.Failure,
	} {
		require.Equal(t, outcome.Outcome{Class: want, Status: status}, outcome.FromStatus(status))
	}
}

// Errors that no socket brings, or not at will.
func TestFromErrorOfMarkedErrors(t *testing.T) {
	for _, test := range []struct {
		err  error
		want outcome.Class
	}{
		{fmt.Errorf("%w: status 000", outcome.ErrInvalidAnswer), outcome.Invalid},
		{fmt.Errorf("gave up: %w", outcome.ErrTimeout), outcome.Timeout},
		{fmt.Errorf("reading: %w", context.DeadlineExceeded), outcome.Timeout},
		{fmt.Errorf("reading: %w", context.Canceled), outcome.ClientGone},
		{fmt.Errorf("reading: %w", net.ErrClosed), outcome.Reset},
		{fmt.Errorf("reading: %w", io.ErrUnexpectedEOF), outcome.Reset},
		{errors.New("http: server closed idle connection"), outcome.Reset},                              // net/http does not export it
		{&net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ETIMEDOUT)}, outcome.Timeout}, // the kernel gave up
		{errors.New("something new"), outcome.Invalid},
		// Whatever ended a dial, nothing was sent.
		{fmt.Errorf("trying: %w", &outcome.DialError{Address: "a:1", Err: context.DeadlineExceeded}), outcome.Unsent},
		{&outcome.DialError{Address: "a:1", Err: io.EOF}, outcome.Unsent},
	} {
		got := outcome.FromError(test.err)
		require.Equal(t, test.want, got.Class, "%v", test.err)
		require.Equal(t, test.err, got.Err, "the log gets the error itself")
		require.Zero(t, got.Status)
	}
}

func TestDialErrorNamesTheAddress(t *testing.T) {
	err := &outcome.DialError{Address: "server1:8080", Err: io.EOF}
	require.Equal(t, "dial server1:8080: EOF", err.Error())
	require.ErrorIs(t, err, io.EOF)
}

func TestCodesOfClasses(t *testing.T) {
	for class, want := range map[outcome.Class]outcome.Code{
		outcome.Unsent: outcome.NoBackend, outcome.Starved: outcome.NoBackend,
		outcome.Reset: outcome.BackendReset, outcome.Cut: outcome.BackendReset,
		outcome.Invalid: outcome.BackendInvalid, outcome.Timeout: outcome.BackendTimeout,
		outcome.ClientGone: outcome.ClientClosed, outcome.ClientFault: outcome.BadRequest,
	} {
		require.Equal(t, want, outcome.CodeOf(class), class)
	}
}

func TestClassNames(t *testing.T) {
	seen := make(map[string]bool)
	for i, name := range outcome.Names {
		require.Equal(t, name, outcome.Class(i).String())
		require.Regexp(t, `^[a-z_]+$`, name, "class %d as a metric label", i)
		require.False(t, seen[name], name)
		seen[name] = true
	}
	require.Equal(t, "client_gone", outcome.ClientGone.String())
	require.Equal(t, "refused", outcome.Refused.String())
}

// The words and statuses that scripts rely on.
func TestCodes(t *testing.T) {
	for code, status := range map[outcome.Code]int{
		"bad_request": 400, "no_route": 404, "method_not_allowed": 405, "body_too_large": 413, "header_too_large": 431,
		"backend_reset": 502, "backend_invalid": 502, "backend_timeout": 504, "no_backend": 503, "overloaded": 503,
		"unauthorized": 401, "forbidden": 403, "misdirected_host": 421, "client_closed": 499,
		"not_found": 404, "instance_not_found": 404, "ambiguous_instance": 409,
		"config_invalid": 422, "config_version_not_found": 404, "config_not_writable": 409,
		"storage_unavailable": 503, "internal_error": 500,
	} {
		require.Equal(t, status, code.Status(), code)
		require.NotEmpty(t, code.Title(), code)
	}
	require.Equal(t, 500, outcome.Code("no such code").Status())
}

func TestErrorText(t *testing.T) {
	err := &outcome.Error{Code: outcome.NoBackend, Detail: "nobody is there"}
	require.Equal(t, "no_backend: nobody is there", err.Error())
	err.Err = io.EOF
	require.Equal(t, "no_backend: nobody is there: EOF", err.Error())
	require.ErrorIs(t, err, io.EOF)
}
