package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"strings"
	"time"

	"lb/internal/admin"
	"lb/internal/config"
	"lb/internal/config/load"
	"lb/internal/outcome"
)

const (
	// adminEnv names the variable with the admin listener's address, tokenEnv
	// the one with its token.
	adminEnv = "LB_ADMIN"
	tokenEnv = "LB_ADMIN_TOKEN"

	adminTimeout   = 5 * time.Second // for most requests, to the end of the answer
	maxAdminAnswer = 16 << 20        // bytes
)

// adminAddress returns where the admin listener is: what the flag says, else
// the environment, else the configuration, else, without one, the default.
func adminAddress(flag, file string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	if address := os.Getenv(adminEnv); address != "" {
		return address, nil
	}
	c, _, err := load.File(file, load.Options{})
	switch {
	case errors.Is(err, load.ErrNoConfig):
		c = config.Default()
	case err != nil:
		return "", configError(err)
	}
	if c.Admin.Address == "" {
		return "", errors.New("the configuration has no admin listener: admin.address is empty")
	}
	return c.Admin.Address, nil
}

// adminClient talks to the admin listener of one daemon.
type adminClient struct {
	address string // as the user wrote it
	token   string // never shown; empty sends none
	http    http.Client
}

// reply is what came back for a request.
type reply struct {
	code   int
	status string // the code with its reason
	body   []byte
}

// newAdminClient returns a client of the admin listener at an address,
// host:port or unix:/path.
func newAdminClient(address, token string) (*adminClient, error) {
	network, at := "tcp", address
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, at = "unix", path
	} else {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, fmt.Errorf("the admin listener's address is host:port or unix:/path, not %q", address)
		}
		if host == "" || host == "0.0.0.0" || host == "::" {
			at = net.JoinHostPort("localhost", port) // a daemon on every address is asked on this machine's
		}
	}
	return &adminClient{address: address, token: token, http: http.Client{
		Timeout: adminTimeout,
		// The admin listener redirects nobody: whoever does is something else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, at)
			},
		},
	}}, nil
}

// ask sends a request without a body and reads what comes back into answer.
// Errors are without control characters, on one line but for what has several
// problems.
func (c *adminClient) ask(ctx context.Context, method, path string, answer any) error {
	got, err := c.send(ctx, method, path)
	switch {
	case err != nil:
		return err
	case got.code != http.StatusOK:
		return c.refusal(got)
	}
	if err := json.Unmarshal(got.body, answer); err != nil {
		return c.stranger(got)
	}
	return nil
}

// send sends a request without a body and reads the whole answer.
func (c *adminClient) send(ctx context.Context, method, path string) (*reply, error) {
	// Whatever the address, this is a name that the daemon always answers to.
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	if method != http.MethodGet {
		if name := localUser(); name != "" {
			req.Header.Set(admin.OperatorField, name)
		}
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreached(err)
	}
	defer func() { _ = res.Body.Close() }() // all that matters has been read
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAdminAnswer+1))
	if err != nil {
		return nil, c.unreached(err)
	}
	if len(body) > maxAdminAnswer {
		return nil, fmt.Errorf("the answer of %s is longer than %s", c.address, config.Size(maxAdminAnswer))
	}
	return &reply{code: res.StatusCode, status: res.Status, body: body}, nil
}

// unreached turns the error of a request into one that says what to check.
func (c *adminClient) unreached(err error) error {
	var dial *net.OpError
	var timeout net.Error
	switch {
	case errors.As(err, &dial) && dial.Op == "dial":
		return fmt.Errorf("cannot connect to the admin listener at %s: %w; is lb running, and is admin.address in its configuration %s?",
			c.address, dial.Err, c.address)
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("%s has not answered within %v", c.address, c.http.Timeout)
	}
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err // without the URL, which says localhost
	}
	return fmt.Errorf("no whole answer from %s: %s", c.address, visible(err.Error()))
}

// refusal turns an answer that is no success into an error.
func (c *adminClient) refusal(got *reply) error {
	var problem struct {
		Code   outcome.Code
		Detail string
		Errors []outcome.FieldError
	}
	if err := json.Unmarshal(got.body, &problem); err != nil || problem.Code == "" {
		return c.stranger(got)
	}
	switch {
	case problem.Code == outcome.Unauthorized && c.token == "":
		problem.Detail = "the daemon wants its admin token: put it into " + tokenEnv
	case problem.Code == outcome.Unauthorized:
		problem.Detail = "what " + tokenEnv + " holds is not the daemon's admin token"
	case problem.Code == outcome.AmbiguousInstance:
		problem.Detail = strings.TrimSuffix(problem.Detail, "; say which") + "; say which with --pool"
	}
	lines := []string{fmt.Sprintf("%d %s: %s", got.code, visible(string(problem.Code)), visible(problem.Detail))}
	for _, e := range problem.Errors {
		lines = append(lines, visible(e.Detail)) // which says where, as in lb check
	}
	return errors.New(strings.Join(lines, "\n"))
}

// stranger tells of an answer that lb would not give.
func (c *adminClient) stranger(got *reply) error {
	return fmt.Errorf("%s answered %s, but not as an admin listener of this version does; is that the right address?",
		c.address, visible(got.status))
}

// localUser returns the name of the user who runs this, as far as it can be
// sent; "" if nobody knows it.
func localUser() string {
	me, err := user.Current()
	if err != nil {
		return ""
	}
	name := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, me.Username)
	return name[:min(len(name), admin.MaxOperatorBytes)]
}
