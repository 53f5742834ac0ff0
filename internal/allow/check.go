package allow

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
)

// Resolver finds the addresses of a host name, as *net.Resolver does.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// ErrUnresolved is the error of Check, wrapped, about a host name that has no
// address, or none that could be found out before ctx was done.
var ErrUnresolved = errors.New("cannot be resolved")

// Check judges an address as a backend names it (see Address). A host name is
// resolved, and every address that it has must pass Judge: which one a dial
// takes is not known. The error is a *Refused if an address may not be dialled,
// ErrUnresolved in its chain if there is none to judge, and else says what is
// wrong with the text.
//
// What a name resolves to may be different a moment later. So each dial is
// judged again, and Check is there to tell the user early.
func (l *List) Check(ctx context.Context, r Resolver, address string) error {
	host, port, err := Address(address)
	if err != nil {
		return err
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return l.Judge(netip.AddrPortFrom(ip, port))
	}
	found, err := r.LookupNetIP(ctx, "ip", host)
	switch {
	case err != nil:
		return fmt.Errorf("%s %w: %w", quote(host), ErrUnresolved, err)
	case len(found) == 0:
		return fmt.Errorf("%s %w: it has no address", quote(host), ErrUnresolved)
	}
	for _, ip := range found {
		if err := l.Judge(netip.AddrPortFrom(ip.Unmap(), port)); err != nil {
			return fmt.Errorf("%s resolves to an address that is refused: %w", quote(host), err)
		}
	}
	return nil
}
