package route

import (
	"errors"
	"net/netip"
	"strings"
)

var errHost = errors.New("the Host field is not a host name with an optional port")

// NormalizeHost returns a Host field without port, trailing dot and upper
// case, and an IPv6 address in its shortest form, in brackets. It refuses what is not a host (RFC 3986 §3.2.2),
// so that no two readers can see two hosts in it. An empty field stays empty.
func NormalizeHost(field string) (string, error) {
	host := field
	if strings.HasPrefix(host, "[") {
		end := strings.IndexByte(host, ']')
		if end < 0 || !port(host[end+1:]) || strings.IndexByte(host, '%') >= 0 { // a zone means something on one machine only
			return "", errHost
		}
		a, err := netip.ParseAddr(host[1:end])
		if err != nil || !a.Is6() {
			return "", errHost
		}
		return "[" + a.String() + "]", nil
	}
	if colon := strings.IndexByte(host, ':'); colon >= 0 {
		if !port(host[colon:]) {
			return "", errHost
		}
		host = host[:colon]
	}
	for i := range len(host) {
		c := host[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte("-_.~!$&'()*+,;=%", c) >= 0:
		default:
			return "", errHost
		}
	}
	return strings.ToLower(strings.TrimSuffix(host, ".")), nil
}

// port reports whether s is empty or a colon with digits, or none, behind it.
func port(s string) bool {
	return s == "" || s[0] == ':' && strings.Trim(s[1:], "0123456789") == ""
}

// canonicalHosts returns the hosts of a rule as NormalizeHost gives those of
// requests. What is no host stays as it is and matches nothing.
func canonicalHosts(hosts []string) []string {
	var out []string
	for _, h := range hosts {
		if strings.Count(h, ":") > 1 && h[0] != '[' {
			h = "[" + h + "]"
		}
		if normal, err := NormalizeHost(h); err == nil {
			h = normal
		}
		out = append(out, h)
	}
	return out
}
