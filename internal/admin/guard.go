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
	hosts           map[string]bool // normalised
	admin, register secret
}

// secret is a token of which only the hash is kept.
type secret struct {
	set bool // else nothing matches
	sum [sha256.Size]byte
}

func secretOf(token string) secret {
	return secret{set: token != "", sum: sha256.Sum256([]byte(token))}
}

// is compares in constant time: hashes have equal length, and nobody can steer
// how they begin.
func (s secret) is(sum [sha256.Size]byte) bool {
	return subtle.ConstantTimeCompare(sum[:], s.sum[:]) == 1 && s.set
}

// access says who may use a path.
type access uint8

const (
	// operators: who has the admin token.
	operators access = iota
	// registrants: who has the registration token or the admin token.
	registrants
	// everybody: no token is needed.
	everybody
)

// credential is what a client has proved to hold. It is named by the words that
// the audit trail has for it.
type credential string

const (
	nothing           credential = ""
	registrationToken credential = "registration token"
	adminToken        credential = "token"
)

func newGuard(opts Options) guard {
	g := guard{
		hosts:    make(map[string]bool, len(opts.Hosts)),
		admin:    secretOf(opts.Token),
		register: secretOf(opts.RegistrationToken),
	}
	for _, h := range opts.Hosts {
		if name := hostname(h); name != "" {
			g.hosts[name] = true
		}
	}
	return g
}

// check returns why r is refused at a path that is for some, nil when it may go
// on.
func (g *guard) check(r *http.Request, some access) *outcome.Error {
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
	case !g.admits(g.shown(r), some):
		// The same words everywhere: who has the wrong token does not learn
		// which paths there are.
		detail := "the token is wrong, or good for other paths only"
		if r.Header.Get("Authorization") == "" {
			detail = "send a token: Authorization: Bearer …"
		}
		return &outcome.Error{Code: outcome.Unauthorized, Detail: detail}
	}
	return nil
}

// admits reports whether what a client has shown is enough. Where no token is
// set, none is asked for; a registration token is asked for where it is set,
// also when the operators' paths are open.
func (g *guard) admits(shown credential, some access) bool {
	switch some {
	case everybody:
		return true
	case registrants:
		return shown != nothing || !g.admin.set && !g.register.set
	case operators:
		return shown == adminToken || !g.admin.set
	}
	return false
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

// shown returns what the Authorization field proves. There must be exactly one.
func (g *guard) shown(r *http.Request) credential {
	fields := r.Header.Values("Authorization")
	if len(fields) != 1 {
		return nothing
	}
	scheme, token, _ := strings.Cut(fields[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return nothing
	}
	sum := sha256.Sum256([]byte(strings.TrimLeft(token, " ")))
	admin, register := g.admin.is(sum), g.register.is(sum) // both, whatever the first says
	switch {
	case admin:
		return adminToken
	case register:
		return registrationToken
	}
	return nothing
}
