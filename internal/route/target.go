package route

import (
	"errors"
	"fmt"
	"strings"
)

// Target is a request target taken apart. All parts but Path are substrings of
// what the client sent.
type Target struct {
	// Authority is the host of an absolute-form target, else empty.
	Authority string
	// RawPath is the path as the client wrote it.
	RawPath string
	// RawQuery is what follows the first question mark, and HasQuery whether
	// there was one: "/x?" has an empty query.
	RawQuery string
	HasQuery bool
	// Path is the one form that decides: escapes decoded once, but for %2F,
	// which is data and not a separator.
	Path string
	// EncodedSlash reports a %2F in the path.
	EncodedSlash bool
}

// What ParseTarget refuses, each with the words that the client reads.
var (
	errFragment   = errors.New("the request target has a fragment (#); clients keep that to themselves")
	errNotOrigin  = errors.New("the request target must begin with a slash")
	errScheme     = errors.New("the request target's scheme must be http or https")
	errUserinfo   = errors.New("the request target's authority must not hold user information")
	errBackslash  = errors.New("the path has a backslash")
	errNUL        = errors.New("the path has a NUL byte")
	errDotSegment = errors.New("the path has a . or .. segment; send the path it stands for")
	errOverlong   = errors.New("the path has an overlong UTF-8 form of an ASCII character")
	errSlashes    = errors.New("a path that begins with // must not hold characters that need escaping")
)

// ParseTarget takes a request target apart and refuses what two parsers could
// read differently: RFC 9112 §3.2 for the forms, RFC 3986 §6.2.2 for the path.
// It allocates only where the path holds escapes.
func ParseTarget(raw string) (Target, error) {
	var t Target
	if strings.IndexByte(raw, '#') >= 0 {
		return t, errFragment
	}
	if raw == "" || raw[0] != '/' {
		rest, err := cutScheme(raw)
		if err != nil {
			return t, err
		}
		end := strings.IndexAny(rest, "/?")
		if end < 0 {
			end = len(rest)
		}
		t.Authority, raw = rest[:end], rest[end:]
		if t.Authority == "" {
			return t, errNotOrigin
		}
		if strings.IndexByte(t.Authority, '@') >= 0 {
			return t, errUserinfo
		}
	}
	t.RawPath, t.RawQuery, t.HasQuery = strings.Cut(raw, "?")
	if t.RawPath == "" { // absolute form may leave the path out (RFC 9112 §3.2.1)
		t.RawPath = "/"
	}
	if strings.HasPrefix(t.RawPath, "//") && needsEscape(t.RawPath) {
		return t, errSlashes
	}
	var err error
	t.Path, t.EncodedSlash, err = canonical(t.RawPath)
	return t, err
}

func cutScheme(raw string) (string, error) {
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok {
		return "", errNotOrigin
	}
	if !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
		return "", errScheme
	}
	return rest, nil
}

// canonical returns the deciding form of a path.
func canonical(raw string) (path string, encodedSlash bool, err error) {
	path = raw
	if strings.IndexByte(raw, '%') >= 0 {
		if path, encodedSlash, err = decode(raw); err != nil {
			return "", false, err
		}
	}
	switch {
	case strings.IndexByte(path, '\\') >= 0:
		return "", false, errBackslash
	case strings.IndexByte(path, 0) >= 0:
		return "", false, errNUL
	case overlong(path):
		return "", false, errOverlong
	case dotSegment(path):
		return "", false, errDotSegment
	}
	return path, encodedSlash, nil
}

// decode resolves the escapes of a path once, but for %2F. The separators that
// %2F would make still count when dot segments are looked for.
func decode(raw string) (path string, encodedSlash bool, err error) {
	var b strings.Builder
	b.Grow(len(raw))
	for i := 0; i < len(raw); i++ {
		if raw[i] != '%' {
			b.WriteByte(raw[i])
			continue
		}
		if i+2 >= len(raw) || !isHex(raw[i+1]) || !isHex(raw[i+2]) {
			return "", false, fmt.Errorf("the path has an invalid escape at %q", raw[i:min(len(raw), i+3)])
		}
		c := unhex(raw[i+1])<<4 | unhex(raw[i+2])
		i += 2
		if c == '/' {
			encodedSlash = true
			b.WriteString("%2F")
			continue
		}
		b.WriteByte(c)
	}
	path = b.String()
	if encodedSlash && dotSegment(strings.ReplaceAll(path, "%2F", "/")) {
		return "", false, errDotSegment
	}
	return path, encodedSlash, nil
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// unhex returns the value of a hexadecimal digit.
func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c | 0x20 - 'a' + 10
}

// dotSegment reports whether a segment of the path is "." or "..".
func dotSegment(path string) bool {
	for i := range len(path) {
		if path[i] != '.' || i > 0 && path[i-1] != '/' {
			continue
		}
		rest := path[i+1:]
		if rest != "" && rest[0] == '.' {
			rest = rest[1:]
		}
		if rest == "" || rest[0] == '/' {
			return true
		}
	}
	return false
}

// overlong reports a UTF-8 sequence that spells an ASCII character in more
// than one byte (RFC 3629 §3 forbids it; old decoders accept it as a slash).
func overlong(path string) bool {
	for i := range len(path) {
		rest := path[i:]
		switch c := path[i]; {
		case c < 0x80:
		case c == 0xC0 || c == 0xC1:
			if len(rest) > 1 && rest[1]&0xC0 == 0x80 {
				return true
			}
		case c == 0xE0:
			if len(rest) > 2 && (rest[1] == 0x80 || rest[1] == 0x81) && rest[2]&0xC0 == 0x80 {
				return true
			}
		case c == 0xF0:
			if len(rest) > 3 && rest[1] == 0x80 && (rest[2] == 0x80 || rest[2] == 0x81) && rest[3]&0xC0 == 0x80 {
				return true
			}
		}
	}
	return false
}

// needsEscape reports a byte that net/url would write as an escape. Such a
// path cannot leave byte for byte when it begins with two slashes, because
// net/url's verbatim form reads those as an authority.
func needsEscape(path string) bool {
	for i := range len(path) {
		c := path[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte("-_.~!$&'()*+,;=:@/%[]", c) >= 0:
		default:
			return true
		}
	}
	return false
}
