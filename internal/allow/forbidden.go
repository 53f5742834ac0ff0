package allow

import "net/netip"

// forbidden is what is never dialled, the narrower first.
var forbidden = []struct {
	prefix netip.Prefix
	what   string
}{
	// Metadata services hand out credentials to whoever asks from the machine.
	// Most clouds have theirs at 169.254.169.254, which is link-local.
	{prefix("169.254.169.254/32"), metadata},
	// Amazon ECS and EKS: task metadata and pod identity (ECS and EKS guides,
	// "Task metadata endpoint", "EKS Pod Identity").
	{prefix("169.254.170.0/24"), metadata},
	// Amazon EC2 and EKS over IPv6: fd00:ec2::254 and ::23, and the range that
	// the VPC guide ("Route tables") says is for Amazon's services alone.
	{prefix("fd00:ec2::/32"), metadata},
	// Google Compute Engine, IPv6-only machines ("Access VM metadata").
	{prefix("fd20:ce::254/128"), metadata},
	// Azure's platform address ("What is IP address 168.63.129.16?").
	{prefix("168.63.129.16/32"), metadata},
	// Alibaba Cloud ECS ("View instance metadata"), IPv4 and IPv6.
	{prefix("100.100.100.200/32"), metadata},
	{prefix("fd00:100::100:200/128"), metadata},
	// Oracle Cloud Infrastructure over IPv6 ("Instance metadata service"), and
	// Oracle Cloud Infrastructure Classic.
	{prefix("fd00:c1::a9fe:a9fe/128"), metadata},
	{prefix("192.0.0.192/32"), metadata},
	// Scaleway and Akamai (Linode): the data sources of cloud-init's manual.
	{prefix("fd00:42::42/128"), metadata},
	{prefix("fd00:a9fe:a9fe::1/128"), metadata},

	{prefix("0.0.0.0/32"), "unspecified"},
	{prefix("::/128"), "unspecified"},
	{prefix("0.0.0.0/8"), `an address of "this network" (RFC 791)`},
	{prefix("169.254.0.0/16"), "link-local"}, // RFC 3927
	{prefix("fe80::/10"), "link-local"},      // RFC 4291
	{prefix("224.0.0.0/4"), "multicast"},     // RFC 5771
	{prefix("ff00::/8"), "multicast"},        // RFC 4291
	{prefix("255.255.255.255/32"), "broadcast"},
	// RFC 8215: where in such an address the IPv4 address stands is known to the
	// translator alone (RFC 6052 has five layouts), so it cannot be judged.
	{prefix("64:ff9b:1::/48"), "an address that only a local NAT64 can read"},
}

const metadata = "the metadata service of a cloud"

// Prefixes of IPv6 addresses in which an IPv4 address stands.
var (
	compatible = prefix("::/96")           // RFC 4291, deprecated
	translated = prefix("::ffff:0:0:0/96") // RFC 2765, obsolete
	nat64      = prefix("64:ff9b::/96")    // RFC 6052
	sixToFour  = prefix("2002::/16")       // RFC 3056
	teredo     = prefix("2001::/32")       // RFC 4380
)

// embedded returns the IPv4 addresses that stand in an IPv6 address that is not
// IPv4-mapped; those that are not valid are none.
func embedded(a netip.Addr) (found [3]netip.Addr) {
	b := a.As16()
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte(b[i : i+4])) }
	switch {
	case a.IsLoopback():
	case compatible.Contains(a), translated.Contains(a), nat64.Contains(a):
		found[0] = at(12)
	case sixToFour.Contains(a):
		found[0] = at(2)
	case teredo.Contains(a): // the client's, with its bits turned over, and its server's
		found[0] = netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]})
		found[1] = at(4)
	}
	// ISATAP (RFC 5214) is told by the last eight bytes, whatever is before.
	if isatap := [4]byte(b[8:12]); isatap == [4]byte{0, 0, 0x5e, 0xfe} || isatap == [4]byte{2, 0, 0x5e, 0xfe} {
		found[2] = at(12)
	}
	return found
}

func prefix(text string) netip.Prefix { return netip.MustParsePrefix(text) }

func prefixes(texts ...string) []netip.Prefix {
	list := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		list[i] = prefix(text)
	}
	return list
}
