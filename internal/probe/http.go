package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"regexp"
	"strings"
)

// UserAgent is the User-Agent of the HTTP and gRPC checks.
const UserAgent = "lb-health-check"

const (
	// maxHead bounds a response head, all interim heads before it included.
	maxHead = 64 << 10
	// maxBody bounds how much of a response body is looked at.
	maxBody = 64 << 10
)

// Field is one field of a request head.
type Field struct{ Name, Value string }

// HTTPOptions say what an HTTP check asks and which answer it wants.
type HTTPOptions struct {
	// Method is GET unless set.
	Method string
	// Path is the request target with its query, sent byte for byte; / unless
	// set.
	Path string
	// Fields are added to the request. Host replaces the backend's address,
	// User-Agent replaces lb's own.
	Fields []Field
	// Statuses are the accepted ones, DefaultStatuses if empty.
	Statuses Statuses
	// Body must match within the first 64 KiB of the response body; nil looks
	// at no body.
	Body *regexp.Regexp
	// Port is asked instead of the address's own unless it is 0.
	Port int
	// Allow judges the address that is connected to; nil: any will do.
	Allow Allow
}

// HTTP finds a backend well if it answers one HTTP/1.1 request as wanted, on a
// connection made for it: that proves that the backend still accepts. It
// follows no redirect, asks no proxy and wants no compression. It writes and
// reads the connection itself rather than by http.Transport, which is made to
// keep connections and starts two goroutines for each.
type HTTP struct {
	method   string
	before   string // the request up to the value of Host
	after    string // and from there to its end
	host     string // "" is the address
	statuses Statuses
	body     *regexp.Regexp
	port     int
	allow    Allow
}

var (
	// RFC 9110 §5.6.2.
	token = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
	// RFC 9110 §5.5, the older obs-text too.
	fieldValue = regexp.MustCompile(`^[\t\x20-\x7e\x{80}-\x{10ffff}]*$`)
	// What stands in a request line as it is; net/url would not let more pass.
	target = regexp.MustCompile(`^/[\x21-\x7e]*$`)
	// Fields that frame the message or rule the connection.
	ours = regexp.MustCompile(`(?i)^(connection|content-length|transfer-encoding|trailer|te|expect|upgrade|keep-alive|proxy-connection)$`)
)

// NewHTTP returns the check, or an error that says which option to change.
func NewHTTP(o HTTPOptions) (*HTTP, error) {
	c := &HTTP{method: o.Method, statuses: o.Statuses, body: o.Body, port: o.Port, allow: o.Allow}
	if c.method == "" {
		c.method = http.MethodGet
	}
	if c.statuses == (Statuses{}) {
		c.statuses = DefaultStatuses
	}
	path := o.Path
	if path == "" {
		path = "/"
	}
	switch {
	case !token.MatchString(c.method) || c.method == http.MethodConnect:
		return nil, fmt.Errorf("%q is not a method that a check can use: write GET or HEAD", line(c.method))
	case c.method == http.MethodHead && c.body != nil:
		return nil, errors.New("a response to HEAD has no body to match: use GET")
	case !target.MatchString(path):
		return nil, fmt.Errorf("%q is not a path: write one that begins with / and escapes blanks and all beyond ASCII as %%XX", line(path))
	}
	if err := c.setFields(o.Fields); err != nil {
		return nil, err
	}
	c.before = c.method + " " + path + " HTTP/1.1\r\nHost: "
	return c, nil
}

// setFields fills in the part of the request that follows the value of Host.
func (c *HTTP) setFields(fields []Field) error {
	agent := UserAgent
	var rest strings.Builder
	for _, f := range fields {
		switch {
		case !token.MatchString(f.Name):
			return fmt.Errorf("%q is not a field name: write letters, digits and -", line(f.Name))
		case ours.MatchString(f.Name):
			return fmt.Errorf("the field %s is lb's to set: take it out", f.Name)
		case !fieldValue.MatchString(f.Value):
			return fmt.Errorf("the value of the field %s has control characters: take them out", f.Name)
		case strings.EqualFold(f.Name, "Host"):
			c.host = f.Value
		case strings.EqualFold(f.Name, "User-Agent"):
			agent = f.Value
		default:
			rest.WriteString(f.Name + ": " + f.Value + "\r\n")
		}
	}
	switch c.method {
	case http.MethodPost, http.MethodPut, http.MethodPatch:
		rest.WriteString("Content-Length: 0\r\n") // RFC 9110 §8.6
	}
	c.after = "\r\nUser-Agent: " + agent + "\r\n" + rest.String() + "Connection: close\r\n\r\n"
	return nil
}

// Probe implements Check.
func (c *HTTP) Probe(ctx context.Context, address string) error {
	return failure(ctx, c.ask(ctx, address))
}

func (c *HTTP) ask(ctx context.Context, address string) error {
	conn, err := dial(ctx, address, c.port, c.allow)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()

	host := c.host
	if host == "" {
		host = address
	}
	return c.exchange(conn, host)
}

// exchange sends the request on conn and judges the response.
func (c *HTTP) exchange(conn net.Conn, host string) error {
	// A backend may answer and hang up before it has read the request. So the
	// answer counts, and a failed write only if there is none.
	_, writeErr := io.WriteString(conn, c.before+host+c.after)
	in := &io.LimitedReader{R: conn, N: maxHead}
	res, err := c.readHead(bufio.NewReader(in))
	switch {
	case err != nil && in.N <= 0:
		return errors.New("the response head is over 64 KiB")
	case err != nil && writeErr != nil:
		return writeErr
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("connection closed before a whole response head came")
	case err != nil:
		return err
	}
	defer func() {
		_ = conn.Close() // first, because closing a body reads what is left of it
		_ = res.Body.Close()
	}()
	in.N = math.MaxInt64
	return c.judge(res)
}

// readHead reads the final response head. Interim ones before it are skipped.
func (c *HTTP) readHead(in *bufio.Reader) (*http.Response, error) {
	req := &http.Request{Method: c.method} // tells whether a body follows
	for {
		res, err := http.ReadResponse(in, req)
		if err != nil {
			return nil, err
		}
		if res.ProtoMajor != 1 {
			return nil, fmt.Errorf("answers %s, wants HTTP/1.1", res.Proto)
		}
		interim := res.StatusCode/100 == 1 && res.StatusCode != http.StatusSwitchingProtocols
		if !interim {
			return res, nil
		}
	}
}

// judge returns why the response is not what is wanted.
func (c *HTTP) judge(res *http.Response) error {
	if !c.statuses.Contains(res.StatusCode) {
		return fmt.Errorf("status %d, wants %s", res.StatusCode, c.statuses)
	}
	if c.body == nil {
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	if err != nil {
		return fmt.Errorf("the response body broke off: %w", err)
	}
	if !c.body.Match(body) {
		return fmt.Errorf("the response body does not match %q", c.body)
	}
	return nil
}
