package exchange

import (
	"math/rand/v2"
	"net/netip"
	"strings"
)

// Forward is what lb tells a backend about the client: plain values that each
// carrier writes into the fields named here. An empty value is not written.
type Forward struct {
	For       string // X-Forwarded-For
	Host      string // X-Forwarded-Host
	Proto     string // X-Forwarded-Proto
	RequestID string // X-Request-Id, also returned to the client
	// Trusted says that the peer is believed: what it says in further
	// X-Forwarded-* fields, Forwarded and X-Real-IP is passed on.
	Trusted bool
}

// forward fills in what the backend is told, and who the client is.
func (x *Exchange) forward(v View) {
	peer := v.Peer().Unmap() // 1.2.3.4 is one client, whatever the socket's family
	f := &x.Forward
	f.Trusted = x.Listener.trusts(peer)
	x.Client = peer
	f.Host, f.Proto = v.Host(), x.Listener.Scheme
	// One string, and one allocation, for a new id and the peer.
	var text [idLength + len("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")]byte
	made := string(peer.AppendTo(appendRequestID(text[:0]))) // an invalid peer is nothing
	f.For = made[idLength:]
	if f.Trusted {
		if prior := v.Lookup("X-Forwarded-For"); prior != "" {
			x.Client = x.Listener.clientIn(prior, peer)
			f.For = join(prior, f.For)
		}
		if h := v.Lookup("X-Forwarded-Host"); h != "" {
			f.Host = h
		}
		if p := v.Lookup("X-Forwarded-Proto"); p != "" {
			f.Proto = p
		}
		f.RequestID = requestIDFrom(v.Lookup("X-Request-Id"))
	}
	if f.RequestID == "" {
		f.RequestID = made[:idLength]
	}
}

const idLength = 32

// appendRequestID appends 128 random bits in lower-case hex. They name a
// request and guard nothing.
func appendRequestID(to []byte) []byte {
	const digits = "0123456789abcdef"
	for range idLength / 16 {
		for j, bits := 0, rand.Uint64(); j < 16; j, bits = j+1, bits>>4 {
			to = append(to, digits[bits&15])
		}
	}
	return to
}

func join(prior, peer string) string {
	if peer == "" {
		return prior
	}
	return prior + ", " + peer
}

// requestIDFrom keeps a trusted peer's id if it is fit to stand in a log line
// and a field: printable ASCII, at most 128 bytes.
func requestIDFrom(id string) string {
	if len(id) > 128 {
		return ""
	}
	for i := range len(id) {
		if id[i] <= ' ' || id[i] > '~' {
			return ""
		}
	}
	return id
}

// trusts reports whether a peer is believed. An IPv4 address comes unmapped.
func (l *Listener) trusts(a netip.Addr) bool {
	if !a.IsValid() {
		return l.TrustUnix
	}
	for _, p := range l.Trusted {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// clientIn returns the right-most address in an X-Forwarded-For list that is
// not itself trusted: what stands left of it was written by somebody nobody
// vouches for. Without one it is the left-most address, or the peer.
func (l *Listener) clientIn(list string, peer netip.Addr) netip.Addr {
	client := peer
	for list != "" {
		last := list
		if i := strings.LastIndexByte(list, ','); i >= 0 {
			last, list = list[i+1:], list[:i]
		} else {
			list = ""
		}
		a, err := netip.ParseAddr(strings.TrimSpace(last))
		if err != nil {
			break // whatever is left of nonsense is not to be believed
		}
		client = a.Unmap()
		if !l.trusts(client) {
			break
		}
	}
	return client
}

// Withheld reports whether a request field, in any case, is kept from the
// backends because lb says it itself or because the peer is not to be
// believed. Spelled with underscores it is always withheld: servers that map
// both spellings to one variable would take it for lb's own word.
func Withheld(name string, trusted bool) bool {
	switch name[0] | 0x20 { // most fields are told apart by their first letter
	case 'x', 'f', 'c', 't':
	default:
		return false
	}
	underscored := strings.IndexByte(name, '_') >= 0
	if trusted && !underscored {
		return false
	}
	switch {
	case equalFields(name, "Forwarded"), equalFields(name, "X-Real-IP"):
		return true
	case len(name) > len("X-Forwarded-") && equalFields(name[:len("X-Forwarded-")], "X-Forwarded-"):
		return true
	case underscored:
		return equalFields(name, "Content-Length") || equalFields(name, "Transfer-Encoding") ||
			equalFields(name, "X-Request-Id")
	}
	return false
}

// equalFields compares field names without regard to case and to whether their
// words are joined by hyphens or underscores.
func equalFields(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if fold(a[i]) != fold(b[i]) {
			return false
		}
	}
	return true
}

func fold(c byte) byte {
	if c == '_' {
		return '-'
	}
	if 'A' <= c && c <= 'Z' {
		c |= 0x20
	}
	return c
}
