package exchange

import (
	"strings"

	"lb/internal/route"
)

// address sets what the backend is asked for: the client's raw path, without the
// prefix that the route strips. The error is that of a path which then cannot
// leave byte for byte.
func (x *Exchange) address(v View) error {
	x.Upstream = x.Target.RawPath
	prefix := strings.TrimSuffix(x.Route.Strip, "/")
	if prefix == "" {
		return nil
	}
	x.Upstream = below(x.Target.RawPath, strings.Count(prefix, "/"))
	x.Prefix = prefix
	if x.Forward.Trusted {
		if prior := v.Lookup("X-Forwarded-Prefix"); prior != "" {
			x.Prefix = strings.TrimSuffix(prior, "/") + prefix
		}
	}
	if !strings.HasPrefix(x.Upstream, "//") {
		return nil
	}
	_, err := route.ParseTarget(x.Upstream)
	return err
}

// below returns what follows the first n segments of a raw path, at least "/".
// Segments are counted and not bytes, because the client may have escaped some
// of them; an escaped slash parts no segments, here as in the match.
func below(raw string, n int) string {
	for i := range len(raw) {
		if raw[i] != '/' {
			continue
		}
		if n == 0 {
			return raw[i:]
		}
		n--
	}
	return "/"
}
