package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// answer is a response, read to its end.
type answer struct {
	Status int
	Header http.Header
	Body   string
	Close  bool // the connection ends with it
}

// json decodes the body.
func (a answer) json(t testing.TB, v any) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(a.Body), v), a.Body)
}

// get asks for a URL, or for a path of the public listener.
func (d *daemon) get(url string) answer {
	d.t.Helper()
	return d.do(http.MethodGet, url, nil)
}

// do sends a request with fields given as name, value, name, value. It may be
// called from any goroutine; a failure is the test's, and the answer is empty.
func (d *daemon) do(method, url string, body io.Reader, fields ...string) answer {
	d.t.Helper()
	a, err := d.try(method, url, body, fields...)
	if err != nil {
		d.t.Errorf("%s %s: %v", method, url, err)
	}
	return a
}

// try is do for a request that may fail.
func (d *daemon) try(method, url string, body io.Reader, fields ...string) (answer, error) {
	return try(d.client, method, d.absolute(url), body, fields...)
}

func (d *daemon) absolute(url string) string {
	if strings.HasPrefix(url, "/") {
		return d.URL + url
	}
	return url
}

func try(client *http.Client, method, url string, body io.Reader, fields ...string) (answer, error) {
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		return answer{}, err
	}
	for i := 0; i < len(fields); i += 2 {
		if fields[i] == "Host" {
			req.Host = fields[i+1]
			continue
		}
		req.Header.Add(fields[i], fields[i+1])
	}
	res, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = res.Body.Close() }()
	content, err := io.ReadAll(res.Body)
	return answer{Status: res.StatusCode, Header: res.Header, Body: string(content), Close: res.Close}, err
}

// newClient returns a client that keeps connections, follows no redirect and
// leaves nothing behind.
func newClient(t testing.TB) *http.Client {
	transport := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{
		Transport: transport, Timeout: patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
