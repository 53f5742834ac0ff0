package load

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWhatIsNeverDialled(t *testing.T) {
	for prefix, never := range map[string]bool{
		"0.0.0.0/0":          false,
		"::/0":               false,
		"0.0.0.0/8":          true,
		"10.0.0.0/8":         false,
		"169.0.0.0/8":        false,
		"169.254.0.0/16":     true,
		"169.254.169.254/32": true,
		"168.63.129.16/32":   true,
		"168.63.129.16/31":   false,
		"224.0.0.0/4":        true,
		"224.0.0.0/3":        false,
		"fe80::/10":          true,
		"fe80::1/128":        true,
		"fe00::/8":           false,
		"fd00:ec2::254/128":  true,
		"fd00::/8":           false,
		"2002::/16":          false,
		"::/128":             true,
	} {
		require.Equal(t, never, refused(netip.MustParsePrefix(prefix)) != "", prefix)
	}
}
