// Package allow says which addresses lb may dial for a backend that named its
// own: only what the configuration lists, and never what could be turned against
// lb itself or against the machine it runs on. It dials nothing.
package allow

import (
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
)

// The words that stand for addresses.
const (
	loopback = "loopback"
	private  = "private"
)

// words are the entries that are neither an address nor a prefix.
var words = map[string][]netip.Prefix{
	loopback: prefixes("127.0.0.0/8", "::1/128"),
	private:  prefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"), // RFC 1918, RFC 4193
}

// List is what may be dialled. All methods may be called at the same time.
type List struct {
	text   string // as the user wrote it
	listed []netip.Prefix
	own    atomic.Pointer[own]
}

// Parse reads the entries of registration.allow: loopback (127.0.0.0/8, ::1),
// private (RFC 1918 and RFC 4193), IP addresses, and CIDR prefixes, whose bits
// after the prefix do not count. Without entries nothing may be dialled. The
// error says which entry is none of these.
func Parse(entries []string) (*List, error) {
	l := &List{text: strings.Join(entries, ", ")}
	for _, entry := range entries {
		listed, err := parseEntry(entry)
		if err != nil {
			return nil, err
		}
		l.listed = append(l.listed, listed...)
	}
	return l, nil
}

func parseEntry(entry string) ([]netip.Prefix, error) {
	if listed, ok := words[entry]; ok {
		return listed, nil
	}
	if a, err := netip.ParseAddr(entry); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return []netip.Prefix{netip.PrefixFrom(a, a.BitLen())}, nil
	}
	p, err := netip.ParsePrefix(entry)
	if err != nil {
		return nil, fmt.Errorf("%q is neither loopback nor private, nor an IP address, nor a CIDR prefix such as 10.0.0.0/8", entry)
	}
	if p.Addr().Is4In6() && p.Bits() >= mapped {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-mapped)
	}
	return []netip.Prefix{p}, nil
}

// mapped is how many bits of an IPv4-mapped address are before the IPv4 address.
const mapped = 96

// own is where lb itself listens.
type own struct {
	sockets map[netip.AddrPort]bool
	// wide are the ports of sockets that take every address of this machine,
	// local those addresses; loopback addresses belong to it anyway.
	wide  map[uint16]bool
	local map[netip.Addr]bool
}

// SetOwn says where lb itself listens now: no such socket may be dialled. One
// with an unspecified address stands for every loopback address and for local,
// the addresses of this machine's interfaces.
func (l *List) SetOwn(sockets []netip.AddrPort, local []netip.Addr) {
	o := &own{sockets: make(map[netip.AddrPort]bool), wide: make(map[uint16]bool), local: make(map[netip.Addr]bool)}
	for _, s := range sockets {
		if a := plain(s.Addr()); a.IsUnspecified() {
			o.wide[s.Port()] = true
		} else {
			o.sockets[netip.AddrPortFrom(a, s.Port())] = true
		}
	}
	for _, a := range local {
		o.local[plain(a)] = true
	}
	l.own.Store(o)
}

// plain is a without a zone, and an IPv4 address if it is a mapped one.
func plain(a netip.Addr) netip.Addr { return a.WithZone("").Unmap() }

func (o *own) has(a netip.Addr, port uint16) bool {
	return o != nil && (o.sockets[netip.AddrPortFrom(a, port)] || o.wide[port] && (a.IsLoopback() || o.local[a]))
}

// Refused is the error about an address that may not be dialled.
type Refused struct {
	// Address is the one that was judged; a name is resolved already.
	Address netip.AddrPort
	// Why says what is wrong with it, and which setting has a say.
	Why string
}

func (r *Refused) Error() string { return r.Address.String() + " " + r.Why }

// Judge reports whether ap may be dialled: nil, or a *Refused. An IPv4 address
// that stands in an IPv6 address is judged, too, since somebody on the way may
// unwrap it. What is allowed costs no allocation.
func (l *List) Judge(ap netip.AddrPort) error {
	if why := l.why(ap); why != "" {
		return &Refused{Address: ap, Why: why}
	}
	return nil
}

func (l *List) why(ap netip.AddrPort) string {
	a, port := ap.Addr(), ap.Port()
	switch {
	case !a.IsValid():
		return "is not an address"
	case a.Zone() != "":
		return "has a zone, which means something on one machine only, and is never dialled for a registered backend"
	case port == 0:
		return "has port 0, where nobody can listen"
	}
	a = a.Unmap()
	if why := l.whyAlone(a, port); why != "" {
		return why
	}
	if !a.Is6() {
		return ""
	}
	for _, inner := range embedded(a) {
		if !inner.IsValid() {
			continue
		}
		if why := l.whyAlone(inner, port); why != "" {
			return fmt.Sprintf("stands for %s, which %s", inner, why)
		}
	}
	return ""
}

// whyAlone judges one address, whatever stands in it.
func (l *List) whyAlone(a netip.Addr, port uint16) string {
	for _, f := range forbidden {
		if f.prefix.Contains(a) {
			return fmt.Sprintf("is %s, which lb never dials for a registered backend, whatever registration.allow lists", f.what)
		}
	}
	if l.own.Load().has(a, port) {
		return "is a socket of lb itself, which is never a backend, whatever registration.allow lists"
	}
	for _, p := range l.listed {
		if p.Contains(a) {
			return ""
		}
	}
	if len(l.listed) == 0 {
		return "is not in registration.allow, which lists nothing"
	}
	return "is not in registration.allow, which lists " + l.text
}
