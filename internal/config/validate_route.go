package config

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

func (v *validator) routes() {
	names := v.names("routes")
	matches := make(map[string]int)
	for i, r := range v.config.Routes {
		at := fmt.Sprintf("routes[%d]", i)
		names(at+".name", r.Name)
		v.action(at, r)
		v.match(at+".match", r.Match)
		key := matchKey(r.Match)
		if first, taken := matches[key]; taken {
			v.warn(at+".match", "", "never reached: routes[%d] %s has the same match", first, Quote(v.config.Routes[first].Name))
		} else {
			matches[key] = i
		}
		if r.Proxy != nil {
			v.proxy(at+".proxy", r.Proxy)
		}
		if r.Fanout != nil {
			v.fanout(at+".fanout", r.Fanout)
			v.fanoutMethods(at+".match.methods", r.Match.Methods)
			v.segments(at+".fanout.order_by.path_segment", r.Fanout.OrderBy.PathSegment, r.Match.Path)
		}
		if r.Respond != nil {
			v.respond(at+".respond", r.Respond)
		}
	}
}

// unreached warns of pools that no route leads to.
func (v *validator) unreached() {
	used := make(map[string]bool)
	for _, r := range v.config.Routes {
		if r.Proxy != nil {
			used[r.Proxy.Pool] = true
		}
		if r.Fanout != nil {
			used[r.Fanout.Pool] = true
		}
	}
	for i, p := range v.config.Pools {
		if used[p.Name] {
			continue
		}
		follows := "nobody can reach it"
		if p.Registration && v.config.Registration.Enabled {
			// Only pools that registration makes bring a route along.
			follows = "backends register there, and who calls them gets 404: a configured pool has the routes of the configuration only"
		}
		v.warn(fmt.Sprintf("pools[%d]", i), "add a route to it", "no route uses %s: %s", Quote(p.Name), follows)
	}
}

// action judges that a route does exactly one thing.
func (v *validator) action(at string, r Route) {
	var actions []string
	for _, a := range []struct {
		name string
		set  bool
	}{
		{"proxy", r.Proxy != nil}, {"fanout", r.Fanout != nil}, {"metrics", r.Metrics}, {"respond", r.Respond != nil},
	} {
		if a.set {
			actions = append(actions, a.name)
		}
	}
	switch {
	case len(actions) == 0:
		v.fail(at, "add one of proxy, fanout, metrics and respond", "the route does nothing")
	case len(actions) > 1:
		v.fail(at, "a route does exactly one thing", "has %s", strings.Join(actions, " and "))
	case r.Required && r.Proxy == nil && r.Fanout == nil:
		v.fail(at+".required", "take it out", "only a route with a pool can be required")
	}
}

var methodBytes = strings.ReplaceAll(nameBytes, "-", "") + "!#$%&'*+-.^`|~"

func (v *validator) match(at string, m Match) {
	for i, host := range m.Hosts {
		v.advise(fmt.Sprintf("%s.hosts[%d]", at, i), checkHost(host))
	}
	seen := make(map[string]bool)
	for i, method := range m.Methods {
		path, upper := fmt.Sprintf("%s.methods[%d]", at, i), strings.ToUpper(method)
		switch {
		case !only(method, methodBytes):
			v.fail(path, "write one such as GET", "%s is not a method", Quote(method))
		case upper == "CONNECT" || upper == "TRACE":
			v.fail(path, "such requests are always answered 405", "method %s cannot be routed", upper)
		case upper != method:
			v.fail(path, fmt.Sprintf("write %q", upper), "methods are upper case, and %s is not", Quote(method))
		case seen[method]:
			v.fail(path, "", "%s is in the list twice", method)
		}
		seen[method] = true
	}
	if m.Path != "" && m.PathPrefix != "" {
		v.fail(at+".path_prefix", "keep one of them", "path and path_prefix cannot both be given")
	}
	v.path(at+".path", m.Path)
	v.path(at+".path_prefix", m.PathPrefix)
}

var escape = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)

// path judges a path that requests are compared with. What could never be
// equal to a request's decoded path is a problem. It reports whether the path is
// without one.
func (v *validator) path(at, path string) bool {
	switch {
	case path == "":
		return true
	case strings.Contains(path, "://"):
		v.fail(at, "write the path alone, and the host under hosts", "%s is a URL", Quote(path))
	case path[0] != '/':
		v.fail(at, fmt.Sprintf("write %s", Quote("/"+path)), "%s does not begin with /", Quote(path))
	case strings.ContainsAny(path, "?#"):
		v.fail(at, fmt.Sprintf("write %s", Quote(path[:strings.IndexAny(path, "?#")])), "%s has a query or a fragment", Quote(path))
	case escape.MatchString(path):
		v.fail(at, "write it decoded, as it is compared", "%s has a percent-escape", Quote(path))
	case strings.ContainsFunc(path, func(r rune) bool { return r == '\\' || r < ' ' || r == 0x7f }):
		v.fail(at, "such requests are always answered 400", "%s has a backslash or a control character", Quote(path))
	case dotted(path):
		v.fail(at, "such requests are always answered 400", "%s has a . or .. segment", Quote(path))
	case path == "/.lb" || strings.HasPrefix(path, "/.lb/"):
		v.fail(at, "choose another path", "/.lb/ is reserved for lb itself")
	default:
		return true
	}
	return false
}

func dotted(path string) bool {
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "." || segment == ".." {
			return true
		}
	}
	return false
}

// matchKey is equal for two matches that take the same requests.
func matchKey(m Match) string {
	hosts, methods := make([]string, len(m.Hosts)), slices.Clone(m.Methods)
	for i, h := range m.Hosts {
		hosts[i] = strings.TrimSuffix(strings.ToLower(h), ".")
	}
	if slices.Contains(methods, "GET") {
		methods = append(methods, "HEAD")
	}
	slices.Sort(hosts)
	slices.Sort(methods)
	return fmt.Sprintf("%q %q %q %q", slices.Compact(hosts), slices.Compact(methods), m.Path, m.PathPrefix)
}

// pool judges a route's reference to a pool.
func (v *validator) pool(path, name string) {
	switch {
	case name == "":
		v.fail(path, "write the name of a pool", "is missing")
	case !v.pools[name]:
		v.fail(path, DidYouMean(name, v.poolNames), "no pool %s", Quote(name))
	}
}

func (v *validator) proxy(at string, p *Proxy) {
	v.pool(at+".pool", p.Pool)
	v.positive(at+".timeout", p.Timeout)
	if p.Retry.Attempts < 0 || p.Retry.Attempts > 10 {
		v.fail(at+".retry.attempts", "", "must be from 0 to 10, and is %d", p.Retry.Attempts)
	}
	seen := make(map[string]bool)
	for i, on := range p.Retry.On {
		path := fmt.Sprintf("%s.retry.on[%d]", at, i)
		status, err := strconv.Atoi(on)
		switch {
		case seen[on]:
			v.fail(path, "", "%s is in the list twice", Quote(on))
		case on == "reset":
		case err != nil || len(on) != 3 || status < 400 || status > 599:
			suggestion := "write reset or a status from 400 to 599"
			if Suggest(on, []string{"reset"}) != "" {
				suggestion = `did you mean "reset"?`
			}
			v.fail(path, suggestion, "%s cannot be retried on", Quote(on))
		}
		seen[on] = true
	}
}

func (v *validator) fanout(at string, f *Fanout) {
	v.pool(at+".pool", f.Pool)
	if len(f.Success) == 0 {
		v.fail(at+".success", "write at least one status, such as [201]", "is empty: no delivery could ever succeed")
	}
	v.statuses(at+".success", f.Success, 200, 299)
	v.statuses(at+".reject", f.Reject, 400, 599)
	v.statuses(at+".already", f.Already, 400, 599)
	v.oneOf(at+".ack", "ack", f.Ack, "all", "first", "quorum")
	v.notNegative(at+".wait", f.Wait)
	v.positive(at+".attempt_timeout", f.AttemptTimeout)
	v.positive(at+".backoff.base", f.Backoff.Base)
	v.positive(at+".backoff.cap", f.Backoff.Cap)
	v.notNegative(at+".backoff.jitter", f.Backoff.Jitter)
	v.positive(at+".backoff.max_age", f.Backoff.MaxAge)
	if f.Backoff.Cap > 0 && f.Backoff.Base > f.Backoff.Cap {
		v.fail(at+".backoff.base", "", "must not be more than cap, which is %s, and is %s", f.Backoff.Cap, f.Backoff.Base)
	}
	v.orderBy(at+".order_by", f.OrderBy)
	v.least(at+".backoff.max_attempts", f.Backoff.MaxAttempts, 1)
	v.positiveSize(at+".max_body", f.MaxBody)
	v.least(at+".max_pending", f.MaxPending, 1)
	v.positiveSize(at+".max_pending_bytes", f.MaxPendingBytes)
	if f.MaxPendingBytes > 0 && f.MaxBody > f.MaxPendingBytes {
		v.fail(at+".max_body", "", "must not be more than max_pending_bytes, which is %s, and is %s", f.MaxPendingBytes, f.MaxBody)
	}
}

// orderBy judges what of a request orders its write.
func (v *validator) orderBy(at string, o OrderBy) {
	var keys []string
	if o.Field != nil {
		keys = append(keys, "field")
		if *o.Field == "" {
			v.fail(at+".field", "write the name of a field of the body, such as username", "is empty")
		}
	}
	if o.Header != nil {
		keys = append(keys, "header")
		v.orderHeader(at+".header", *o.Header)
	}
	if o.JSON != nil {
		keys = append(keys, "json")
		v.pointer(at+".json", *o.JSON)
	}
	if o.PathSegment != nil {
		keys = append(keys, "path_segment")
		v.least(at+".path_segment", *o.PathSegment, 1)
	}
	if len(keys) > 1 {
		v.fail(at, "writes are ordered by exactly one thing", "has %s", strings.Join(keys, " and "))
	}
}

func (v *validator) orderHeader(at, name string) {
	lower := strings.ToLower(name)
	switch {
	case name == "":
		v.fail(at, "write the name of a header field, such as X-User", "is empty")
	case !only(name, methodBytes): // a token, as a method is
		v.fail(at, "write one such as X-User", "%s is not the name of a header field", Quote(name))
	case slices.Contains(ownFields, lower) || lower == "host":
		v.fail(at, "write one that tells whose write it is, such as X-User", "%s says how a request is carried, not what it is about", name)
	case lower == "idempotency-key" || lower == "x-request-id":
		v.fail(at, "write one that tells whose write it is, such as X-User", "%s is another for each write, and would order none", name)
	}
}

// segments judges that a path that has no other form has the n-th segment.
func (v *validator) segments(at string, n *int, path string) {
	if has := strings.Count(path, "/"); n != nil && path != "" && *n > has {
		v.fail(at, fmt.Sprintf("write %d or less, or match a path_prefix", has), "match.path has no segment %d: every write would be refused", *n)
	}
}

// badEscape is a tilde that stands neither for itself nor for a slash.
var badEscape = regexp.MustCompile(`~([^01]|$)`)

// pointer judges a JSON pointer (RFC 6901).
func (v *validator) pointer(at, pointer string) {
	switch {
	case pointer == "":
		v.fail(at, "write a JSON pointer such as /user/id", "is empty")
	case pointer[0] != '/':
		v.fail(at, fmt.Sprintf("write %s", Quote("/"+pointer)), "%s does not begin with /", Quote(pointer))
	case badEscape.MatchString(pointer):
		v.fail(at, "write ~ itself as ~0, and / within a name as ~1", "%s has a ~ that begins no escape", Quote(pointer))
	}
}

// fanoutMethods judges that a fan-out takes writes only.
func (v *validator) fanoutMethods(path string, methods []string) {
	if len(methods) == 0 {
		v.fail(path, "write those that change something, such as [POST]", "a fan-out needs methods")
	}
	for i, method := range methods {
		if m := strings.ToUpper(method); m == "GET" || m == "HEAD" || m == "OPTIONS" {
			v.fail(fmt.Sprintf("%s[%d]", path, i), "send reads to one backend with proxy", "a fan-out repeats writes, and %s is none", m)
		}
	}
}

func (v *validator) respond(at string, r *Respond) {
	switch {
	case r.Status == 0:
		v.fail(at+".status", "write one from 200 to 599", "is missing")
	case r.Status < 200 || r.Status > 599:
		v.fail(at+".status", "", "must be from 200 to 599, and is %d", r.Status)
	case (r.Status == 204 || r.Status == 304) && r.Body != "":
		v.fail(at+".body", "take it out", "a response %d has no body", r.Status)
	}
}
