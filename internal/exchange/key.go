package exchange

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/textproto"
	"net/url"
	"strings"

	"github.com/cespare/xxhash/v2"
)

// KeySource says what of a request the policies that hash spread by. The zero
// value is nothing.
type KeySource struct {
	kind keyKind
	name string // of the field, cookie or parameter
}

type keyKind uint8

const (
	keyNone keyKind = iota
	keyHeader
	keyCookie
	keyQuery
	keyPath
	keyHost
	keyClient
)

// ClientKey spreads by the client's whole address, as far as trusted peers tell.
var ClientKey = KeySource{kind: keyClient}

const keyForms = "write one of header:NAME, cookie:NAME, query:NAME, path, host"

// ParseKeySource reads header:NAME, cookie:NAME, query:NAME, path or host. The
// error says what would be right.
func ParseKeySource(text string) (KeySource, error) {
	kind, name, named := strings.Cut(text, ":")
	var k KeySource
	switch kind {
	case "header":
		k = KeySource{keyHeader, textproto.CanonicalMIMEHeaderKey(name)}
	case "cookie":
		k = KeySource{keyCookie, name}
	case "query":
		k = KeySource{keyQuery, name}
	case "path":
		k.kind = keyPath
	case "host":
		k.kind = keyHost
	default:
		return KeySource{}, fmt.Errorf("no key %q; %s", text, keyForms)
	}
	wantsName := k.kind <= keyQuery
	switch {
	case wantsName && name == "":
		return KeySource{}, fmt.Errorf("%q lacks the name; write one such as %s:user", text, kind)
	case !wantsName && named:
		return KeySource{}, fmt.Errorf("%s takes no name; write %s", kind, kind)
	case k.name == "Host":
		return KeySource{}, errors.New("the Host field is not among the others; write host")
	}
	return k, nil
}

// of returns the key of a request: the hash of what k names, the same in every
// process. A request that lacks it gets a random key, so that such requests
// spread evenly.
func (k KeySource) of(x *Exchange, v View) uint64 {
	value := ""
	switch k.kind {
	case keyHeader:
		value = v.Lookup(k.name)
	case keyCookie:
		value = cookieIn(v.Lookup("Cookie"), k.name)
	case keyQuery:
		value = parameterIn(x.Target.RawQuery, k.name)
	case keyPath:
		value = x.Target.Path
	case keyHost:
		value = x.Host
	case keyClient:
		if x.Client.IsValid() {
			whole := x.Client.As16()
			return xxhash.Sum64(whole[:])
		}
	}
	if value == "" {
		return rand.Uint64()
	}
	return xxhash.Sum64String(value)
}

// cookieIn returns the value of the first cookie of that name in a Cookie field,
// as browsers write it (RFC 6265 §4.2.1), without quotes around it.
func cookieIn(field, name string) string {
	for pair := range strings.SplitSeq(field, ";") {
		if called, value, _ := strings.Cut(strings.Trim(pair, " \t"), "="); called == name {
			if n := len(value); n > 1 && value[0] == '"' && value[n-1] == '"' {
				value = value[1 : n-1]
			}
			return value
		}
	}
	return ""
}

// parameterIn returns the value of the first parameter of that name in a query.
func parameterIn(query, name string) string {
	for pair := range strings.SplitSeq(query, "&") {
		if called, value, _ := strings.Cut(pair, "="); unescaped(called) == name {
			return unescaped(value)
		}
	}
	return ""
}

// unescaped decodes a part of a query. What has an escape that is none counts
// as it stands. It allocates only if there is something to decode.
func unescaped(part string) string {
	if strings.IndexByte(part, '%') < 0 && strings.IndexByte(part, '+') < 0 {
		return part
	}
	if decoded, err := url.QueryUnescape(part); err == nil {
		return decoded
	}
	return part
}
