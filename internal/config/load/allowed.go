package load

import (
	"errors"
	"fmt"
	"net/netip"

	"lb/internal/allow"
	"lb/internal/config"
)

// neverDialled reports the entries of registration.allow that allow nothing,
// because their addresses are refused whatever is listed.
func neverDialled(c *config.Config) (problems config.Problems) {
	for i, entry := range c.Registration.Allow {
		p, err := netip.ParsePrefix(entry)
		if a, bad := netip.ParseAddr(entry); bad == nil && a.Zone() == "" {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			continue // a word, or the validator's to report
		}
		if why := refused(p); why != "" {
			problems = append(problems, config.Problem{
				Path: fmt.Sprintf("registration.allow[%d]", i), Message: config.Quote(entry) + " " + why, Suggestion: "take it out",
			})
		}
	}
	return problems
}

// refused says why no address of p is dialled even if everything is listed, or
// "". It asks for the first, the one in the middle and the last: the ranges that
// are refused are so far apart that no prefix has these three in them and
// others not.
func refused(p netip.Prefix) (why string) {
	everything, err := allow.Parse([]string{"0.0.0.0/0", "::/0"})
	if err != nil {
		return ""
	}
	first := p.Masked().Addr()
	middle, last := first.AsSlice(), first.AsSlice()
	for bit := p.Bits(); bit < first.BitLen(); bit++ {
		last[bit/8] |= 0x80 >> (bit % 8)
	}
	if bit := p.Bits(); bit < first.BitLen() {
		middle[bit/8] |= 0x80 >> (bit % 8)
	}
	for _, raw := range [][]byte{last, middle, first.AsSlice()} {
		a, _ := netip.AddrFromSlice(raw)
		bad := (*allow.Refused)(nil)
		if !errors.As(everything.Judge(netip.AddrPortFrom(a, 1)), &bad) {
			return ""
		}
		why = bad.Why
	}
	return why
}
