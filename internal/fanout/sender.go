package fanout

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"time"

	"lb/internal/backend"
	"lb/internal/field"
	"lb/internal/outcome"
	"lb/internal/transport"
)

// maxDrain is how much of a response body beyond MaxAnswerBody is read and
// thrown away to keep the connection; one that is longer still is closed.
const maxDrain = 64 << 10

// HTTPSender makes attempts over the backends' transports. It follows no
// redirect and repeats nothing.
type HTTPSender struct{ transports *transport.Set }

// NewHTTPSender returns a Sender over the transports in set; each backend it
// is asked for must be there.
func NewHTTPSender(set *transport.Set) *HTTPSender { return &HTTPSender{set} }

// Send makes one attempt. The time it may take is ctx's.
func (s *HTTPSender) Send(ctx context.Context, b *backend.Backend, r Request) (Response, error) {
	req, err := newRequest(b.Address, r)
	if err != nil {
		return Response{}, err
	}
	resp, connected, err := s.transports.For(b).RoundTripOnce(req.WithContext(ctx))
	if err != nil {
		if ctx.Err() != nil && !connected {
			return Response{}, &outcome.DialError{Address: b.Address, Err: err}
		}
		return Response{}, err
	}
	// An answer proves as much as a dial: with a kept connection there may be
	// no dial for a long time.
	b.DialSucceeded()
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return Response{}, fmt.Errorf("%w: 101 to a request that asked for no upgrade", outcome.ErrInvalidAnswer)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxAnswerBody))
	if err != nil {
		return Response{}, err // cut: whoever gets half an answer has none
	}
	if len(body) == MaxAnswerBody {
		_, _ = io.CopyN(io.Discard, resp.Body, maxDrain)
	}
	return Response{
		Status:     resp.StatusCode,
		Fields:     endToEnd(resp.Header),
		Body:       body,
		RetryAfter: retryAfter(resp.Header.Get("Retry-After"), time.Now()),
	}, nil
}

// newRequest builds the request of one attempt. GetBody stays nil: with it,
// and an Idempotency-Key, net/http would send again what only the engine may.
func newRequest(address string, r Request) (*http.Request, error) {
	u, err := requestURL(address, r.Target)
	if err != nil {
		return nil, err
	}
	header := make(http.Header, len(r.Fields)+3)
	for _, f := range r.Fields {
		name := textproto.CanonicalMIMEHeaderKey(f.Name)
		header[name] = append(header[name], f.Value)
	}
	if header["User-Agent"] == nil {
		header["User-Agent"] = []string{""} // else net/http names itself
	}
	// The body is here: asking for leave to send it would cost a round trip.
	delete(header, "Expect")
	header["Idempotency-Key"] = []string{r.Key}
	header["X-Lb-Fanout-Id"] = []string{r.FanoutID}
	req := &http.Request{
		Method: r.Method, URL: u, Host: r.Host, Header: header,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	if r.Host == "" {
		req.Host = "/" // net/http would name the URL's; for what is no host it sends an empty one
	}
	if len(r.Body) > 0 {
		req.Body = io.NopCloser(bytes.NewReader(r.Body))
		req.ContentLength = int64(len(r.Body))
	}
	return req, nil
}

// requestURL returns a URL that net/http writes as target, byte for byte.
func requestURL(address, target string) (*url.URL, error) {
	path, query, asked := strings.Cut(target, "?")
	u := &url.URL{Scheme: "http", Host: address, RawQuery: query, ForceQuery: asked}
	if !strings.HasPrefix(path, "//") {
		u.Opaque = path
		return u, nil
	}
	// An opaque part that begins with // would leave as http://…; a path that
	// does is fine, as long as net/url need not escape anything in it.
	var err error
	if u.Path, err = url.PathUnescape(path); err != nil {
		return nil, err
	}
	if u.RawPath = path; u.EscapedPath() != path {
		return nil, fmt.Errorf("the path %q cannot be sent as it is", path)
	}
	return u, nil
}

// endToEnd returns h's end-to-end fields, by name, without the Content-Length
// that is made anew; the values of one name keep their order.
func endToEnd(h http.Header) []Field {
	fields := make([]Field, 0, len(h))
	for name, values := range h {
		if name == "Content-Length" || field.HopByHop(name, h["Connection"]) {
			continue
		}
		for _, v := range values {
			fields = append(fields, Field{name, v})
		}
	}
	slices.SortStableFunc(fields, func(a, b Field) int { return strings.Compare(a.Name, b.Name) })
	return fields
}
