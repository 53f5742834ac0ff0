package config

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"time"
	"unicode"
)

var checkTypes = []string{CheckHTTP, CheckTCP, CheckGRPC, CheckExec}

// Bounds on the texts of a check. None is a limit of a protocol: they keep a
// slip of the editor out of what is sent every two seconds.
const (
	maxCheckPath    = 8 << 10
	maxCheckBody    = 4 << 10
	maxCheckService = 256
	maxCheckCommand = 64 << 10
)

// health judges an active check. Every value is judged, whatever the type: the
// defaults pass, and what belongs to another type is a problem of its own.
func (v *validator) health(at string, h *Health) {
	v.oneOf(at+".type", "type", h.Type, checkTypes...)
	v.foreignKeys(at, h)
	v.checkPath(at+".path", h.Path)
	v.checkMethod(at+".method", h.Method)
	v.within(at+".port", h.Port, 0, 65535)
	v.checkHeaders(at+".headers", h.Headers)
	if _, err := ParseStatuses(h.Statuses); err != nil {
		v.fail(at+".statuses", `write statuses and ranges such as "200-299,401"`, "%s", err)
	}
	v.checkBody(at+".body", h)
	v.checkService(at+".service", h.Service)
	v.checkCommand(at+".command", h)
	v.checkTimes(at, h)
	v.within(at+".rise", h.Rise, 1, 100)
	v.within(at+".fall", h.Fall, 1, 100)
	v.oneOf(at+".initial", "initial state", h.Initial, InitialProbe, InitialUp, InitialDown)
}

// foreignKeys reports values that a check of this type does not use. A value
// that is the default may have been written or not, and does no harm.
func (v *validator) foreignKeys(at string, h *Health) {
	if !slices.Contains(checkTypes, h.Type) {
		return
	}
	var d Health
	d.SetDefaults()
	for _, key := range []struct {
		name  string
		set   bool
		types []string
	}{
		{"path", h.Path != d.Path, []string{CheckHTTP}},
		{"method", h.Method != d.Method, []string{CheckHTTP}},
		{"port", h.Port != d.Port, []string{CheckHTTP, CheckTCP, CheckGRPC}},
		{"headers", len(h.Headers) > 0, []string{CheckHTTP}},
		{"statuses", h.Statuses != d.Statuses, []string{CheckHTTP}},
		{"body", h.Body != d.Body, []string{CheckHTTP}},
		{"service", h.Service != d.Service, []string{CheckGRPC}},
		{"command", len(h.Command) > 0, []string{CheckExec}},
	} {
		if key.set && !slices.Contains(key.types, h.Type) {
			v.fail(at+"."+key.name, fmt.Sprintf("take it out, or write type: %s", key.types[0]),
				"belongs to type %s, and this is type %s", strings.Join(key.types, " or "), h.Type)
		}
	}
}

func (v *validator) checkPath(at, path string) {
	switch {
	case path == "":
		v.fail(at, `write "/" if that is meant`, "is empty")
	case len(path) > maxCheckPath:
		v.fail(at, fmt.Sprintf("a path has at most %d bytes", maxCheckPath), "%s is too long", Quote(path))
	case strings.Contains(path, "://"):
		v.fail(at, "write the path alone", "%s is a URL", Quote(path))
	case path[0] != '/':
		v.fail(at, fmt.Sprintf("write %s", Quote("/"+path)), "%s does not begin with /", Quote(path))
	case strings.Contains(path, "#"):
		v.fail(at, fmt.Sprintf("write %s", Quote(path[:strings.IndexByte(path, '#')])), "%s has a fragment", Quote(path))
	case strings.ContainsFunc(path, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		v.fail(at, "write a blank as %20", "%s has a blank or a control character", Quote(path))
	case strings.ContainsFunc(path, func(r rune) bool { return r > unicode.MaxASCII }):
		v.fail(at, "write each byte as %XX, as it is sent", "%s has characters beyond ASCII", Quote(path))
	default:
		if _, err := url.ParseRequestURI(path); err != nil {
			v.fail(at, "write % itself as %25", "%s has a %% that begins no escape", Quote(path))
		}
	}
}

func (v *validator) checkMethod(at, method string) {
	switch upper := strings.ToUpper(method); {
	case !only(method, methodBytes):
		v.fail(at, "write one such as GET", "%s is not a method", Quote(method))
	case upper == "CONNECT" || upper == "TRACE":
		v.fail(at, "write one such as GET", "method %s cannot be a check", upper)
	case upper != method:
		v.fail(at, fmt.Sprintf("write %q", upper), "methods are upper case, and %s is not", Quote(method))
	}
}

// ownFields are those that say how a request is carried; no check can set them.
var ownFields = []string{
	"connection", "content-length", "expect", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
	"te", "trailer", "transfer-encoding", "upgrade",
}

// secretFields hold what a configuration should not.
var secretFields = []string{"authorization", "cookie"}

func (v *validator) checkHeaders(at string, headers []HeaderValue) {
	for i, h := range headers {
		name, value := fmt.Sprintf("%s[%d].name", at, i), fmt.Sprintf("%s[%d].value", at, i)
		lower := strings.ToLower(h.Name)
		switch {
		case h.Name == "":
			v.fail(name, "write the name of a header field", "is missing")
		case !only(h.Name, methodBytes): // a token, as a method is
			v.fail(name, "write one such as X-Check", "%s is not the name of a header field", Quote(h.Name))
		case slices.Contains(ownFields, lower):
			v.fail(name, "take it out", "%s is set by lb itself", h.Name)
		case lower == "host" && !only(h.Value, nameBytes+".:[]"):
			v.fail(value, "write a host name, and a port if need be", "%s is not a host", Quote(h.Value))
		case slices.Contains(secretFields, lower):
			v.warn(value, "let the checked path ask for none", "a secret that stands in the file can be read by all who may see the configuration")
		}
		if strings.ContainsFunc(h.Value, unicode.IsControl) {
			v.fail(value, "", "%s has a control character", Quote(h.Value))
		}
	}
}

func (v *validator) checkBody(at string, h *Health) {
	switch {
	case h.Body == "":
		return
	case len(h.Body) > maxCheckBody:
		v.fail(at, fmt.Sprintf("a pattern has at most %d bytes", maxCheckBody), "%s is too long", Quote(h.Body))
		return
	case h.Type == CheckHTTP && h.Method == "HEAD":
		v.fail(at, "write method: GET", "an answer to HEAD has no body")
	}
	_, err := regexp.Compile(h.Body)
	if bad := (*syntax.Error)(nil); errors.As(err, &bad) {
		v.fail(at, "the syntax is that of RE2", "%s is not a regular expression: %s%s", Quote(h.Body), bad.Code, fragment(h.Body, bad.Expr))
	}
}

// fragment tells where in a pattern the part is that the parser complained
// about, if that is not all of it.
func fragment(pattern, part string) string {
	switch {
	case part == "" || part == pattern:
		return ""
	case strings.Count(pattern, part) == 1:
		return fmt.Sprintf(" at %s, byte %d", Quote(part), strings.Index(pattern, part)+1)
	}
	return " at " + Quote(part)
}

func (v *validator) checkService(at, service string) {
	switch {
	case len(service) > maxCheckService:
		v.fail(at, fmt.Sprintf("a service's name has at most %d bytes", maxCheckService), "%s is too long", Quote(service))
	case strings.ContainsFunc(service, unicode.IsControl):
		v.fail(at, "", "%s has a control character", Quote(service))
	}
}

// checkCommand judges the words of a command. Whether there is such a program
// is for the loader to find out.
func (v *validator) checkCommand(at string, h *Health) {
	if len(h.Command) == 0 {
		if h.Type == CheckExec {
			v.fail(at, "write the program and its arguments, such as [/usr/local/bin/check, --quick]", "is missing")
		}
		return
	}
	if h.Command[0] == "" {
		v.fail(at+"[0]", "write the program's whole path", "is empty")
	}
	size := 0
	for i, word := range h.Command {
		size += len(word) + 1
		if strings.ContainsRune(word, 0) {
			v.fail(fmt.Sprintf("%s[%d]", at, i), "", "%s has a NUL byte", Quote(word))
		}
	}
	if size > maxCheckCommand {
		v.fail(at, "put what is long into a script", "has %d bytes, and the most is %s", size, Size(maxCheckCommand))
	}
}

func (v *validator) checkTimes(at string, h *Health) {
	const least, most = Duration(100 * time.Millisecond), Duration(24 * time.Hour)
	if h.Interval < least || h.Interval > most {
		v.fail(at+".interval", "", "must be from 100ms to 24h, and is %s", h.Interval)
	} else if h.Type == CheckExec && h.Interval < seconds(1) {
		v.warn(at+".interval", "", "starts a program for each backend every %s", h.Interval)
	}
	v.positive(at+".timeout", h.Timeout)
	if h.Interval >= least && h.Timeout > h.Interval {
		v.fail(at+".timeout", fmt.Sprintf("write timeout: %s or less", h.Interval), "must not be longer than the interval, which is %s, and is %s", h.Interval, h.Timeout)
	}
}

func (v *validator) breaker(at string, b *Breaker) {
	v.least(at+".consecutive", b.Consecutive, 0)
	v.between(at+".ratio", b.Ratio, 0, 1)
	if b.Consecutive == 0 && b.Ratio == 0 {
		v.fail(at, "set one of them, or take the breaker out", "never opens: consecutive and ratio are both 0")
	}
	v.least(at+".min_requests", b.MinRequests, 1)
	if b.Window < seconds(1) {
		v.fail(at+".window", "", "must be at least 1s, and is %s", b.Window)
	}
	v.positive(at+".open", b.Open)
	if b.MaxOpen < b.Open {
		v.fail(at+".max_open", "", "must not be less than open, which is %s, and is %s", b.Open, b.MaxOpen)
	}
	v.within(at+".half_open", b.HalfOpen, 1, 1000)
	if !(b.MaxOpenShare > 0 && b.MaxOpenShare <= 1) {
		v.fail(at+".max_open_share", "", "must be above 0 and at most 1, and is %v", b.MaxOpenShare)
	}
}

func (v *validator) slowStart(at string, d Duration) {
	v.notNegative(at, d)
	if most := Duration(time.Hour); d > most {
		v.fail(at, "", "must be at most 1h, and is %s", d)
	}
}

// spared warns of what takes no backend of a pool out, because there are too
// few of them.
func (v *validator) spared(at string, p Pool) {
	switch n := len(p.Backends); {
	case p.Breaker == nil || n == 0:
	case n == 1:
		v.warn(at+".breaker", "", "a breaker never opens for the only backend of a pool")
	case p.Breaker.MaxOpenShare*float64(n) < 1:
		v.warn(at+".breaker.max_open_share", "", "no breaker ever opens: %v of %d backends is less than one", p.Breaker.MaxOpenShare, n)
	}
	if p.Lagging.Exclude && len(p.Backends) == 1 {
		v.warn(at+".lagging.exclude", "", "the only backend of a pool serves reads, lagging or not")
	}
}
