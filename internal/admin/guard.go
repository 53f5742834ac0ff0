package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"lb/internal/outcome"
)

// guard decides who may ask.
type guard struct {
	hosts  map[string]bool   // normalised
	secret [sha256.Size]byte // hash of the token
	closed bool              // a token is needed
}

func newGuard(opts Options) guard {
	g := guard{
		hosts:  make(map[string]bool, len(opts.Hosts)),
		secret: sha256.Sum256([]byte(opts.Token)),
		closed: opts.Token != "",
	}
	for _, h := range opts.Hosts {
		if name := hostname(h); name != "" {
			g.hosts[name] = true
		}
	}
	return g
}

// check returns why r is refused, nil when it may go on. Open says that the
// path needs no token.
func (g *guard) check(r *http.Request, open bool) *outcome.Error {
	switch {
	case !g.knows(r.Host):
		// A web page that had its own name resolve to this address (DNS
		// rebinding) still sends its own name.
		return &outcome.Error{Code: outcome.MisdirectedHost,
			Detail: "Host is neither loopback nor listed in admin.hosts"}
	case foreign(r):
		return &outcome.Error{Code: outcome.Forbidden,
			Detail: "the request comes from a page of another origin"}
	case unclean(r.URL):
		return &outcome.Error{Code: outcome.BadRequest,
			Detail: "the path has an empty or a dot segment, a backslash, a NUL or an encoded slash"}
	case g.closed && !open && !g.authorized(r.Header.Values("Authorization")):
		return &outcome.Error{Code: outcome.Unauthorized,
			Detail: "send the admin token: Authorization: Bearer …"}
	}
	return nil
}

// knows reports whether the value of Host names loopback or a listed host.
func (g *guard) knows(host string) bool {
	name := hostname(host)
	if name == "localhost" || g.hosts[name] {
		return true
	}
	ip, err := netip.ParseAddr(name)
	return err == nil && ip.IsLoopback()
}

// hostname returns host without port, brackets, case and the root's dot; an
// address in its one canonical form.
func hostname(host string) string {
	if _, err := netip.ParseAddr(host); err != nil { // an IPv6 address has colons, not a port
		host = (&url.URL{Host: host}).Hostname()
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().String()
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// foreign reports whether a browser sent r for a page that is not lb's own.
func foreign(r *http.Request) bool {
	for _, site := range r.Header.Values("Sec-Fetch-Site") {
		if strings.EqualFold(site, "cross-site") {
			return true
		}
	}
	return slices.ContainsFunc(r.Header.Values("Origin"), func(origin string) bool {
		// "null", which sandboxed pages send, has no host, and r.Host has one.
		u, err := url.Parse(origin)
		return err != nil || !strings.EqualFold(u.Host, r.Host)
	})
}

// unclean reports whether a path may mean different things to different
// readers. Nothing is cleaned here and nothing redirected: it is refused.
func unclean(u *url.URL) bool {
	if !strings.HasPrefix(u.Path, "/") ||
		strings.ContainsAny(u.Path, "\\\x00") ||
		strings.Contains(u.Path, "//") ||
		strings.Contains(strings.ToLower(u.RawPath), "%2f") {
		return true
	}
	for segment := range strings.SplitSeq(u.Path, "/") {
		if segment == "." || segment == ".." {
			return true
		}
	}
	return false
}

// authorized reports whether the Authorization fields carry the token: there
// is exactly one, and hashes of equal length are compared in constant time.
func (g *guard) authorized(fields []string) bool {
	if len(fields) != 1 {
		return false
	}
	scheme, token, _ := strings.Cut(fields[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return false
	}
	sum := sha256.Sum256([]byte(strings.TrimLeft(token, " ")))
	return subtle.ConstantTimeCompare(sum[:], g.secret[:]) == 1
}
