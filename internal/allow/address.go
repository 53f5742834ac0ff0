package allow

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
)

// Address reads the address that a backend names: host:port, where the host is
// an IPv4 address of four decimal numbers, an IPv6 address in brackets, or a
// host name, and the port is from 1 to 65535. A host name has labels of letters,
// digits, '-' and '_' (which the names of compose services have), and perhaps a
// dot at its end. host comes without brackets, as it was written.
//
// Whatever somebody might read as another address than lb does is an error: an
// IPv4 address in hex, in octal, as one number or with fewer than four, zones,
// URLs, escapes, and characters beyond ASCII. It says what to write instead.
func Address(text string) (host string, port uint16, err error) {
	if why := notHostPort(text); why != "" {
		return "", 0, fmt.Errorf("%s %s", quote(text), why)
	}
	host, digits, err := net.SplitHostPort(text)
	switch {
	case err != nil && strings.Count(text, ":") > 1:
		return "", 0, fmt.Errorf("%s is not an address; write host:port, an IPv6 address in brackets, such as [fd00::7]:8080", quote(text))
	case err != nil:
		return "", 0, fmt.Errorf("%s has no port; write host:port", quote(text))
	case host == "":
		return "", 0, fmt.Errorf("%s has no host; write host:port", quote(text))
	}
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || n == 0 || digits[0] == '0' {
		return "", 0, fmt.Errorf("%s has no usable port; write a number from 1 to 65535", quote(text))
	}
	if why := notHost(host, text[0] == '['); why != "" {
		return "", 0, fmt.Errorf("%s %s", quote(host), why)
	}
	return host, uint16(n), nil
}

// notHostPort says what makes text something else than host:port, or "".
func notHostPort(text string) string {
	switch {
	case text == "":
		return "is empty; write host:port"
	case len(text) > len("[]:65535")+maxName+1:
		return "is too long; a host name has at most 253 bytes"
	case strings.HasPrefix(text, "unix:"):
		return "is a unix socket, and only host:port can be registered"
	case strings.Contains(text, "://"):
		return "has a scheme; write host:port alone"
	case strings.ContainsFunc(text, func(r rune) bool { return r > unicode.MaxASCII }):
		return "has characters beyond ASCII; write a name in its xn-- form, and digits and dots as ASCII has them"
	case strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return "has a blank or a control character; write host:port alone"
	case strings.Contains(text, "%"):
		return "has a %, which is a zone or an escape; write host:port without"
	case strings.ContainsAny(text, `/?#@\`):
		return "is not an address; write host:port and nothing else"
	}
	return ""
}

// maxName is how long a host name may be, in bytes, without a dot at its end
// (RFC 1035: 255 on the wire, with a byte before each label and one at the end).
const maxName = 253

// notHost says why host is neither an IP address nor a host name, or "".
func notHost(host string, brackets bool) string {
	ip, err := netip.ParseAddr(host)
	switch {
	case brackets && (err != nil || !ip.Is6()):
		return "is not an IPv6 address; brackets are for these alone"
	case err == nil:
		return ""
	case endsInNumber(host):
		return "is not a host name; write an IPv4 address as four decimal numbers, such as 10.0.0.7"
	case !hostName(host):
		return "is not a host name; write letters, digits, - and _ in labels joined by dots"
	}
	return ""
}

// endsInNumber reports whether some resolver or URL parser might take host for
// an IPv4 address: the last label is a number (WHATWG URL, "ends in a number").
func endsInNumber(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	last := host[strings.LastIndexByte(host, '.')+1:]
	hex, prefixed := strings.CutPrefix(last, "0x")
	return prefixed && strings.Trim(hex, "0123456789abcdef") == "" || last != "" && strings.Trim(last, "0123456789") == ""
}

func hostName(host string) bool {
	host = strings.TrimSuffix(host, ".")
	if len(host) > maxName {
		return false
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.ContainsFunc(label, notInName) {
			return false
		}
	}
	return true
}

func notInName(r rune) bool {
	return r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
}

// quote writes a user's text for a message, cut where it is long.
func quote(text string) string {
	const most = 64
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return strconv.Quote(text)
}
