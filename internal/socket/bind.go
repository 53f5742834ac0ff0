package socket

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const unixPrefix = "unix:"

// bind listens on an address anew.
func bind(ctx context.Context, address string) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // costs on each connection, and no backend asks for it
	path, isUnix := strings.CutPrefix(address, unixPrefix)
	if !isUnix {
		return lc.Listen(ctx, "tcp", address)
	}
	l, err := lc.Listen(ctx, "unix", path)
	if errors.Is(err, syscall.EADDRINUSE) && abandoned(ctx, path) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		l, err = lc.Listen(ctx, "unix", path)
	}
	return l, err
}

// abandoned reports whether nobody listens on the socket file at path: a
// process that was killed leaves it behind. (A dial to a file of another kind
// is refused too.)
func abandoned(ctx context.Context, path string) bool {
	if info, err := os.Lstat(path); err != nil || info.Mode().Type() != fs.ModeSocket {
		return false
	}
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		_ = c.Close()
		return false
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// same reports whether a socket that is bound to have will do for address.
func same(ctx context.Context, address string, have net.Addr) bool {
	if path, isUnix := strings.CutPrefix(address, unixPrefix); isUnix {
		u, ok := have.(*net.UnixAddr)
		return ok && filepath.Clean(u.Name) == filepath.Clean(path)
	}
	host, port, err := net.SplitHostPort(address)
	t, ok := have.(*net.TCPAddr)
	if !ok || err != nil || port != strconv.Itoa(t.Port) {
		return false
	}
	bound := t.AddrPort().Addr().Unmap()
	if host == "" {
		return bound.IsUnspecified()
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap() == bound || ip.IsUnspecified() && bound.IsUnspecified()
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	return err == nil && slices.ContainsFunc(ips, func(ip netip.Addr) bool { return ip.Unmap() == bound })
}

// choosesPort reports whether address lets the system choose the port.
func choosesPort(address string) bool {
	_, port, err := net.SplitHostPort(address)
	return err == nil && port == "0" && !strings.HasPrefix(address, unixPrefix)
}
