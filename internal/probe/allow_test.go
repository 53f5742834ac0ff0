package probe

import (
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// Whoever names the backend does not choose what lb connects to.
func TestAllowIsAskedOfEachAddressThatIsProbed(t *testing.T) {
	var connections, judged atomic.Int32
	address := serve(t, func(net.Conn) { connections.Add(1) })
	_, port, err := net.SplitHostPort(address)
	require.NoError(t, err)
	other, err := net.LookupPort("tcp", port)
	require.NoError(t, err)
	refuse := func(at netip.AddrPort) error {
		judged.Add(1)
		if !at.Addr().IsLoopback() || int(at.Port()) != other {
			return errors.New("is not what was dialled")
		}
		return errors.New("is not allowed by registration.allow")
	}
	for name, c := range map[string]Check{
		"tcp":                 TCP{Allow: refuse},
		"http":                newHTTP(t, HTTPOptions{Allow: refuse}),
		"grpc":                GRPC{Allow: refuse},
		"tcp at another port": TCP{Port: other, Allow: refuse},
	} {
		for _, host := range []string{"127.0.0.1", "localhost"} {
			at := net.JoinHostPort(host, port)
			if name == "tcp at another port" {
				at = net.JoinHostPort(host, "1")
			}
			judged.Store(0)
			require.Contains(t, probe(t, c, at, ample), "is not allowed by registration.allow", "%s of %s", name, at)
			require.NotZero(t, judged.Load())
		}
	}
	require.Zero(t, connections.Load())
	require.Empty(t, probe(t, TCP{Allow: func(netip.AddrPort) error { return nil }}, address, ample))
}
