package config

import (
	"fmt"
	"net"
	"net/netip"
	"path"
	"strconv"
	"strings"
	"unicode"
)

// advice is a message with a suggestion, not yet tied to a place.
type advice struct{ message, suggestion string }

func advise(suggestion, format string, args ...any) *advice {
	return &advice{message: fmt.Sprintf(format, args...), suggestion: suggestion}
}

// socket is a parsed address of something that is bound or dialled: a host and
// a port, or the path of a unix socket.
type socket struct {
	host string // without brackets; empty: every interface
	port int
	unix string
}

// parseSocket reads host:port, :port and, where unix is true, unix:/path.
func parseSocket(address string, unix bool) (socket, *advice) {
	form := "host:port"
	if unix {
		form = "host:port, :port or unix:/path"
	}
	switch {
	case address == "":
		return socket{}, advise("write "+form, "is missing")
	case strings.HasPrefix(address, "unix:"):
		if !unix {
			return socket{}, advise("write host:port", "%s: unix sockets are not supported here yet", Quote(address))
		}
		return parseUnix(address)
	case strings.Contains(address, "://"):
		scheme, rest, _ := strings.Cut(address, "://")
		if !only(scheme, nameBytes+"+.") {
			return socket{}, advise("write "+form, "%s is not an address", Quote(address))
		}
		if strings.Contains(strings.Trim(rest, "/"), "/") {
			return socket{}, advise("write host:port, without scheme and path", "%s is not an address", Quote(address))
		}
		return socket{}, advise("write host:port without "+scheme+"://", "%s is not an address", Quote(address))
	case strings.ContainsAny(address, "/?#@"):
		return socket{}, advise("write host:port and nothing else", "%s is not an address", Quote(address))
	}
	return parseHostPort(address, form)
}

func parseUnix(address string) (socket, *advice) {
	file := strings.TrimPrefix(address, "unix:")
	switch {
	case strings.HasPrefix(file, "//"):
		return socket{}, advise("write unix:/path, with one slash", "%s is not an address", Quote(address))
	case !strings.HasPrefix(file, "/") || path.Clean(file) == "/" || strings.HasSuffix(file, "/") || strings.ContainsRune(file, 0):
		return socket{}, advise("write an absolute path such as unix:/run/lb.sock", "%s is not an address", Quote(address))
	case len(file) > 107:
		return socket{}, advise("a socket's path has at most 107 bytes", "%s is too long", Quote(address))
	}
	return socket{unix: path.Clean(file)}, nil
}

func parseHostPort(address, form string) (socket, *advice) {
	if digits(address) {
		return socket{}, advise("write :"+address, "%s is not an address", Quote(address))
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		if ip, e := netip.ParseAddr(strings.Trim(address, "[]")); e == nil && ip.Is6() {
			return socket{}, advise(fmt.Sprintf("write [%s]:PORT", ip), "%s has no port", Quote(address))
		}
		if !strings.Contains(address, ":") {
			return socket{}, advise("write "+form, "%s has no port", Quote(address))
		}
		return socket{}, advise("write "+form+", an IPv6 address in brackets", "%s is not an address", Quote(address))
	}
	n, err := strconv.Atoi(port)
	if !digits(port) || err != nil || n > 65535 || (len(port) > 1 && port[0] == '0') {
		return socket{}, advise("a port is a number from 0 to 65535", "%s has no usable port", Quote(address))
	}
	if host != "" {
		if _, err := netip.ParseAddr(host); err != nil && !hostName(host) {
			return socket{}, advise("", "%s is not a host name or an IP address", Quote(host))
		}
	}
	return socket{host: host, port: n}, nil
}

// loopback reports whether only this machine can reach the socket.
func (s socket) loopback() bool {
	if s.unix != "" || strings.EqualFold(s.host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(s.host)
	return err == nil && ip.Unmap().IsLoopback()
}

// collides reports whether s and t cannot be bound at the same time.
func (s socket) collides(t socket) bool {
	if s.unix != "" || t.unix != "" {
		return s.unix == t.unix
	}
	if s.port != t.port || s.port == 0 {
		return false
	}
	a, aIP := s.ip()
	b, bIP := t.ip()
	switch {
	case !aIP || !bIP:
		return strings.EqualFold(s.host, t.host) || aIP && a.IsUnspecified() || bIP && b.IsUnspecified()
	case a.IsUnspecified():
		return a.Is6() || b.Is4() || b.IsUnspecified()
	case b.IsUnspecified():
		return b.Is6() || a.Is4()
	}
	return a == b
}

// ip returns the address that the host stands for without asking a resolver.
func (s socket) ip() (netip.Addr, bool) {
	switch {
	case s.host == "":
		return netip.IPv6Unspecified(), true
	case strings.EqualFold(s.host, "localhost"):
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), true
	}
	ip, err := netip.ParseAddr(s.host)
	return ip.Unmap(), err == nil
}

// checkHost judges a Host value of a route or of the admin listener: a name or
// an IP address, and nothing else.
func checkHost(host string) *advice {
	switch {
	case host == "":
		return advise("write a host name, or leave the list out", "is empty")
	case strings.Contains(host, "://"):
		_, name, _ := strings.Cut(host, "://")
		return advise(fmt.Sprintf("write %q", strings.TrimRight(name, "/")), "%s has a scheme", Quote(host))
	case strings.Contains(host, "*"):
		return advise("", "%s: wildcard hosts are not supported yet", Quote(host))
	}
	if ip, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")); err == nil && ip.Zone() == "" {
		if ip.Is6() && host[0] != '[' {
			return advise(fmt.Sprintf("write \"[%s]\"", host), "an IPv6 address stands in brackets, and %s does not", Quote(host))
		}
		return nil
	}
	if _, port, err := net.SplitHostPort(host); err == nil && (digits(port) || port == "") {
		return advise(fmt.Sprintf("write %q", strings.TrimSuffix(host, ":"+port)), "%s has a port", Quote(host))
	}
	if !hostName(host) {
		suggestion := ""
		if strings.ContainsFunc(host, func(r rune) bool { return r > unicode.MaxASCII }) {
			suggestion = "write names beyond ASCII in their xn-- form"
		}
		return advise(suggestion, "%s is not a host name", Quote(host))
	}
	return nil
}

// hostName reports whether s can be a host name: labels of letters, digits, '-'
// and '_', joined by dots, perhaps with a dot at the end.
func hostName(s string) bool {
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		if len(label) > 63 || !only(label, nameBytes) {
			return false
		}
	}
	return true
}

const nameBytes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"

// only reports whether s is not empty and holds no byte outside of allowed.
func only(s, allowed string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune(allowed, r) })
}

func digits(s string) bool { return only(s, "0123456789") }
