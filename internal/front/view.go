package front

import (
	"net/http"
	"net/netip"
	"strings"

	"lb/internal/field"
)

// view shows an *http.Request to exchange.
type view struct {
	r    *http.Request
	peer netip.Addr
}

func (v *view) reset(r *http.Request) {
	*v = view{r: r}
	if r != nil {
		if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil { // not on a unix socket
			v.peer = ap.Addr().Unmap().WithZone("")
		}
	}
}

func (v *view) Method() string   { return v.r.Method }
func (v *view) Target() string   { return v.r.RequestURI }
func (v *view) Host() string     { return v.r.Host }
func (v *view) Peer() netip.Addr { return v.peer }

func (v *view) Lookup(name string) string {
	values := v.r.Header[name]
	switch {
	case len(values) == 0 || field.Named(v.r.Header["Connection"], name):
		return ""
	case len(values) == 1:
		return values[0]
	}
	return strings.Join(values, ", ")
}

func (v *view) Fields() int {
	n := 0
	for _, values := range v.r.Header {
		n += len(values)
	}
	return n
}
