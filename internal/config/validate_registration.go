package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"time"
)

// maxRegistered bounds what may be registered: what is above it is a slip.
const maxRegistered = 100_000

// registration judges how backends register themselves, whether they may now or
// not.
func (v *validator) registration() {
	const at = "registration"
	r := v.config.Registration
	if r.TTL < seconds(1) || r.TTL > Duration(24*time.Hour) {
		v.fail(at+".ttl", "", "must be from 1s to 24h, and is %s", r.TTL)
	}
	token := v.secret(at+".token_env", r.TokenEnv)
	v.routePrefix(at+".route_prefix", r.RoutePrefix)
	v.allow(at+".allow", r.Allow)
	v.within(at+".max_instances", r.MaxInstances, 1, maxRegistered)
	v.within(at+".max_pools", r.MaxPools, 1, maxRegistered)
	v.limits(at+".limits", r.Limits, true)
	if !r.Enabled {
		var silent Registration
		if silent.SetDefaults(); !reflect.DeepEqual(r, silent) {
			v.warn(at, "set registration.enabled to true, or take registration out", "it says how backends register, and none can: enabled is false")
		}
		for i, p := range v.config.Pools {
			if p.Registration {
				v.warn(fmt.Sprintf("pools[%d].registration", i), "set registration.enabled to true", "nobody can register, because registration is not enabled")
			}
		}
		return
	}
	if v.config.Admin.Address == "" {
		v.fail(at+".enabled", "set admin.address", "backends register on the admin listener, and there is none")
	}
	if len(r.Allow) == 0 {
		v.warn(at+".allow", "write [loopback, private], or addresses", "is empty: no backend can register")
	}
	if admin, _ := v.env(v.config.Admin.TokenEnv); token != "" && strings.TrimSpace(token) == strings.TrimSpace(admin) {
		v.warn(at+".token_env", "give backends a token of their own", "holds the admin token: who may register may do everything")
	}
}

// routePrefix judges where pools made by registration are served: before their
// name, so it ends with a slash.
func (v *validator) routePrefix(at, prefix string) {
	switch {
	case prefix == "":
		v.fail(at, "write one such as /call/", "is empty")
	case !v.path(at, prefix):
	case prefix == "/":
		v.fail(at, "write at least one segment, such as /call/", "is the whole path: whoever registers could take any route's place")
	case strings.Contains(prefix, "//"):
		v.fail(at, "take one slash out", "%s has an empty segment", Quote(prefix))
	case strings.Contains(prefix, "%"):
		v.fail(at, "write plain segments such as /call/", "%s has a %%", Quote(prefix))
	case !strings.HasSuffix(prefix, "/"):
		v.fail(at, fmt.Sprintf("write %s", Quote(prefix+"/")), "%s does not end with /", Quote(prefix))
	}
}

// allow judges the addresses that may be registered.
func (v *validator) allow(at string, entries []string) {
	seen := make(map[string]bool)
	for i, entry := range entries {
		path := fmt.Sprintf("%s[%d]", at, i)
		if seen[entry] {
			v.fail(path, "", "%s is in the list twice", Quote(entry))
		} else {
			v.advise(path, checkAllowed(entry))
		}
		seen[entry] = true
	}
}

// checkAllowed judges the form of one entry of Registration.Allow.
func checkAllowed(entry string) *advice {
	if entry == AllowLoopback || entry == AllowPrivate {
		return nil
	}
	p, err := netip.ParsePrefix(entry)
	if err != nil {
		ip, err := netip.ParseAddr(entry)
		if err != nil || ip.Zone() != "" {
			return unknownAddress(entry)
		}
		p = netip.PrefixFrom(ip, ip.BitLen())
	}
	if m := p.Masked(); m != p {
		return advise(fmt.Sprintf("write %s, or %s if that alone is meant", m, p.Addr()), "%s has bits beyond its length", Quote(entry))
	}
	return nil
}

func unknownAddress(entry string) *advice {
	words := []string{AllowLoopback, AllowPrivate}
	suggestion := "write loopback, private, an IP address or a CIDR prefix such as 10.0.0.0/8"
	if Suggest(entry, words) != "" {
		suggestion = DidYouMean(entry, words)
	}
	return advise(suggestion, "%s is no address that can be allowed", Quote(entry))
}
