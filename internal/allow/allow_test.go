package allow

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// names is a resolver that knows these.
type names map[string][]string

func (n names) LookupNetIP(ctx context.Context, _, host string) ([]netip.Addr, error) {
	if host == "slow.test" {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	texts, ok := n[host]
	if !ok {
		return nil, errors.New("no such host")
	}
	var found []netip.Addr
	for _, text := range texts {
		found = append(found, netip.MustParseAddr(text))
	}
	return found, nil
}

var dns = names{
	"server1":          {"10.0.0.7"},
	"my_worker-1":      {"::ffff:172.18.0.4"}, // as the Go resolver writes IPv4 addresses
	"Server1.Test.":    {"fd00::7", "192.168.1.7"},
	"localhost":        {"127.0.0.1", "::1"},
	"metadata.test":    {"169.254.169.254"},
	"a9fe.test":        {"::ffff:a9fe:a9fe"},
	"nip.127.0.0.test": {"127.0.0.1"},
	"public.test":      {"203.0.113.7"},
	"both.test":        {"10.0.0.7", "100.100.100.200"},
	"zone.test":        {"fe80::1%eth0"},
	"zero.test":        {"0.0.0.0"},
	"self.test":        {"10.0.0.99"},
	"empty.test":       {},
}

// parse returns a list that listens as lb does by default, on a machine with
// two addresses.
func parse(t testing.TB, entries ...string) *List {
	t.Helper()
	l, err := Parse(entries)
	require.NoError(t, err)
	l.SetOwn([]netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9901"), netip.MustParseAddrPort("[::]:80"), netip.MustParseAddrPort("10.0.0.99:8000")},
		[]netip.Addr{netip.MustParseAddr("10.0.0.99"), netip.MustParseAddr("fd00::99"), netip.MustParseAddr("fe80::99%eth0")})
	return l
}

// What is listed here must not make a difference to what is never dialled.
var everything = []string{"0.0.0.0/0", "::/0"}

// The spellings in which an address may come, and what becomes of each: "" is
// allowed, else a part of the error.
func TestCheck(t *testing.T) {
	const (
		never  = "never dials"
		spell  = "is not a host name; write an IPv4 address as four decimal numbers"
		listed = "is not in registration.allow, which lists loopback, private"
		lb     = "a socket of lb itself"
	)
	defaults, all := parse(t, "loopback", "private"), parse(t, everything...)
	for address, want := range map[string]struct{ defaults, all string }{
		// Allowed by default.
		"10.0.0.7:8080":                       {},
		"172.16.0.1:1":                        {},
		"172.31.255.255:65535":                {},
		"192.168.1.7:8080":                    {},
		"127.0.0.1:8080":                      {},
		"127.8.8.8:8080":                      {},
		"[::1]:8080":                          {},
		"[0:0:0:0:0:0:0:1]:8080":              {},
		"[fd00::7]:8080":                      {},
		"[FC00::7]:8080":                      {},
		"[::ffff:10.0.0.7]:8080":              {},
		"[::ffff:a00:7]:8080":                 {},
		"[fd00::5efe:10.0.0.7]:8080":          {}, // ISATAP
		"server1:8080":                        {},
		"my_worker-1:8080":                    {},
		"Server1.Test.:8080":                  {},
		"localhost:8080":                      {},
		"nip.127.0.0.test:8080":               {},
		"127.0.0.1:80":                        {lb, lb}, // the data listener, on every address
		"127.0.0.1:9901":                      {lb, lb}, // the admin listener
		"127.0.0.2:9901":                      {},       // somebody else
		"localhost:80":                        {lb, lb},
		"[::1]:80":                            {lb, lb},
		"10.0.0.99:80":                        {lb, lb},
		"10.0.0.99:8000":                      {lb, lb},
		"10.0.0.98:80":                        {},
		"[fd00::99]:80":                       {lb, lb},
		"[::ffff:127.0.0.1]:9901":             {lb, lb},
		"[::ffff:7f00:1]:80":                  {lb, lb},
		"self.test:8000":                      {lb, lb},
		"[64:ff9b::127.0.0.1]:9901":           {listed, lb},
		"8.8.8.8:80":                          {listed, ""},
		"172.32.0.1:80":                       {listed, ""},
		"172.15.255.255:80":                   {listed, ""},
		"100.64.0.1:80":                       {listed, ""},
		"168.63.129.15:80":                    {listed, ""},
		"[2606:4700::1111]:443":               {listed, ""},
		"[::ffff:8.8.8.8]:80":                 {listed, ""},
		"[64:ff9b::10.0.0.7]:80":              {listed, ""},
		"[2002:a00:7::1]:80":                  {listed, ""},
		"[fd00::5efe:8.8.8.8]:80":             {"stands for 8.8.8.8, which " + listed, ""},
		"[fd00::200:5efe:8.8.8.8]:80":         {"stands for 8.8.8.8, which " + listed, ""},
		"public.test:80":                      {listed, ""},
		"169.254.169.254:80":                  {never, "the metadata service of a cloud"},
		"169.254.170.2:80":                    {never, "the metadata service of a cloud"},
		"169.254.0.23:80":                     {never, "link-local"},
		"100.100.100.200:80":                  {never, never},
		"168.63.129.16:80":                    {never, never},
		"192.0.0.192:80":                      {never, never},
		"[fd00:ec2::254]:80":                  {never, never},
		"[FD00:0EC2:0:0::0254]:80":            {never, never},
		"[fd00:ec2::23]:80":                   {never, never},
		"[fd20:ce::254]:80":                   {never, never},
		"[fd00:c1::a9fe:a9fe]:80":             {never, never},
		"[fd00:42::42]:80":                    {never, never},
		"[fd00:a9fe:a9fe::1]:80":              {never, never},
		"[fd00:100::100:200]:80":              {never, never},
		"[::ffff:a9fe:a9fe]:80":               {never, never},
		"[::ffff:169.254.169.254]:80":         {never, never},
		"[0:0:0:0:0:ffff:a9fe:a9fe]:80":       {never, never},
		"[::ffff:100.100.100.200]:80":         {never, never},
		"[::a9fe:a9fe]:80":                    {listed, "stands for 169.254.169.254, which is the metadata service"}, // compatible
		"[::ffff:0:169.254.169.254]:80":       {listed, never},                                                       // translated
		"[64:ff9b::169.254.169.254]:80":       {listed, never},
		"[64:ff9b::a9fe:a9fe]:80":             {listed, never},
		"[64:ff9b:1::a9fe:a9fe]:80":           {never, never},
		"[64:ff9b:1:a9fe:a9:fe00::]:80":       {never, never}, // as RFC 6052 writes it after 48 bits
		"[2002:a9fe:a9fe::1]:80":              {listed, never},
		"[2002:6464:64c8::]:80":               {listed, never},
		"[2001:0:808:808:0:0:f7f7:f7f7]:80":   {listed, ""},
		"[2001:0:a9fe:a9fe:0:0:f7f7:f7f7]:80": {listed, never}, // the Teredo server
		"[2001:0:808:808:0:0:5601:5601]:80":   {listed, never}, // the Teredo client
		"[2001:0:808:808::5efe:a9fe:a9fe]:80": {listed, never},
		"[2001:db8::5efe:a9fe:a9fe]:80":       {listed, never},
		"[2001:db8::200:5efe:169.254.1.1]:80": {listed, never},
		"[fe80::1]:80":                        {never, "link-local"},
		"[fe80::a9fe:a9fe]:80":                {never, "link-local"},
		"[febf::1]:80":                        {never, "link-local"},
		"0.0.0.0:80":                          {never, "unspecified"},
		"[::]:80":                             {never, "unspecified"},
		"[::ffff:0.0.0.0]:80":                 {never, "unspecified"},
		"0.0.0.1:80":                          {never, never},
		"[64:ff9b::]:80":                      {listed, "unspecified"},
		"224.0.0.1:80":                        {never, "multicast"},
		"239.255.255.255:80":                  {never, "multicast"},
		"[ff02::1]:80":                        {never, "multicast"},
		"255.255.255.255:80":                  {never, "broadcast"},
		"metadata.test:80":                    {"resolves to an address that is refused: 169.254.169.254:80 is the metadata", never},
		"a9fe.test:80":                        {never, never},
		"both.test:80":                        {never, never}, // one of them is enough
		"zero.test:80":                        {never, never},
		"zone.test:80":                        {"has a zone", "has a zone"},
		"empty.test:80":                       {ErrUnresolved.Error(), ErrUnresolved.Error()},
		"nobody.test:80":                      {ErrUnresolved.Error(), ErrUnresolved.Error()},

		// What some resolver or URL parser takes for an IPv4 address.
		"2130706433:80":         {spell, spell},
		"2852039166:80":         {spell, spell},
		"0x7f.1:80":             {spell, spell},
		"0x7f000001:80":         {spell, spell},
		"0xA9FEA9FE:80":         {spell, spell},
		"0XA9.0xfe.0xa9.0xfe:1": {spell, spell},
		"127.1:80":              {spell, spell},
		"127.0.1:80":            {spell, spell},
		"0177.0.0.1:80":         {spell, spell},
		"017700000001:80":       {spell, spell},
		"0:80":                  {spell, spell},
		"0x:80":                 {spell, spell},
		"127.0.0.01:80":         {spell, spell},
		"127.0.0.256:80":        {spell, spell},
		"127.0.0.1.:80":         {spell, spell},
		"1.2.3.4.5:80":          {spell, spell},
		"server.08:80":          {spell, spell},
		"server.0x1f:80":        {spell, spell},

		// No address at all.
		"":                                  {"is empty", "is empty"},
		"10.0.0.7":                          {"has no port", "has no port"},
		"server1":                           {"has no port", "has no port"},
		":8080":                             {"has no host", "has no host"},
		"8080":                              {"has no port", "has no port"},
		"10.0.0.7:":                         {"no usable port", "no usable port"},
		"10.0.0.7:0":                        {"no usable port", "no usable port"},
		"10.0.0.7:65536":                    {"no usable port", "no usable port"},
		"10.0.0.7:080":                      {"no usable port", "no usable port"},
		"10.0.0.7:+80":                      {"no usable port", "no usable port"},
		"10.0.0.7:-1":                       {"no usable port", "no usable port"},
		"10.0.0.7:http":                     {"no usable port", "no usable port"},
		"10.0.0.7:0x50":                     {"no usable port", "no usable port"},
		"10.0.0.7:80:80":                    {"an IPv6 address in brackets", "an IPv6 address in brackets"},
		"::1:80":                            {"an IPv6 address in brackets", "an IPv6 address in brackets"},
		"[::1]":                             {"is not an address", "is not an address"},
		"[127.0.0.1]:80":                    {"brackets are for these alone", "brackets are for these alone"},
		"[server1]:80":                      {"brackets are for these alone", "brackets are for these alone"},
		"[fe80::1%eth0]:80":                 {"has a %", "has a %"},
		"[fe80::1%25eth0]:80":               {"has a %", "has a %"},
		"169%2e254.169.254:80":              {"has a %", "has a %"},
		"http://10.0.0.7:80":                {"has a scheme", "has a scheme"},
		"file:///etc/passwd":                {"has a scheme", "has a scheme"},
		"gopher://10.0.0.7:80/":             {"has a scheme", "has a scheme"},
		"unix:/run/lb.sock":                 {"is a unix socket", "is a unix socket"},
		"user@10.0.0.7:80":                  {"and nothing else", "and nothing else"},
		"user:pw@10.0.0.7:80":               {"and nothing else", "and nothing else"},
		"10.0.0.7:80/path":                  {"and nothing else", "and nothing else"},
		"10.0.0.7:80?a":                     {"and nothing else", "and nothing else"},
		"10.0.0.7:80#169.254.169.254":       {"and nothing else", "and nothing else"},
		"10.0.0.7\\@169.254.169.254:1":      {"and nothing else", "and nothing else"},
		" 10.0.0.7:80":                      {"a blank or a control", "a blank or a control"},
		"10.0.0.7:80 ":                      {"a blank or a control", "a blank or a control"},
		"10.0.0.7:80\n":                     {"a blank or a control", "a blank or a control"},
		"10.0.0.7\x00.test:80":              {"a blank or a control", "a blank or a control"},
		"10.0.0.7\t:80":                     {"a blank or a control", "a blank or a control"},
		"10\u300200\u300200\u30027:80":      {"beyond ASCII", "beyond ASCII"},
		"１２７.0.0.1:80":                      {"beyond ASCII", "beyond ASCII"},
		"①②⑦.0.0.1:80":                      {"beyond ASCII", "beyond ASCII"},
		"sérver:80":                         {"beyond ASCII", "beyond ASCII"},
		"a\xff:80":                          {"beyond ASCII", "beyond ASCII"},
		"-server:80":                        {"is not a host name", "is not a host name"},
		"server-.test:80":                   {"is not a host name", "is not a host name"},
		"server..test:80":                   {"is not a host name", "is not a host name"},
		".server:80":                        {"is not a host name", "is not a host name"},
		".:80":                              {"is not a host name", "is not a host name"},
		"server1..:80":                      {"is not a host name", "is not a host name"},
		"*.test:80":                         {"is not a host name", "is not a host name"},
		"a,b:80":                            {"is not a host name", "is not a host name"},
		strings.Repeat("a", 64) + ":80":     {"is not a host name", "is not a host name"},
		strings.Repeat("a.", 126) + "ab:80": {"is not a host name", "is not a host name"},
		strings.Repeat("a", 9999):           {"is too long", "is too long"},
	} {
		for _, with := range []struct {
			list *List
			want string
		}{{defaults, want.defaults}, {all, want.all}} {
			err := with.list.Check(t.Context(), dns, address)
			if with.want == "" {
				require.NoError(t, err, "%.99q", address)
				continue
			}
			require.ErrorContains(t, err, with.want, "%.99q with %s", address, with.list.text)
			require.Less(t, len(err.Error()), 400, "whatever comes, the message is short")
			var refused *Refused
			judged := strings.Contains(err.Error(), "registration.allow") || strings.Contains(err.Error(), "has a zone")
			require.Equal(t, judged, errors.As(err, &refused), "%q: what may not be dialled is told from what is no address", address)
			require.Equal(t, strings.Contains(err.Error(), ErrUnresolved.Error()), errors.Is(err, ErrUnresolved))
		}
	}
}

// A resolver that does not answer keeps nobody longer than the caller wants.
func TestCheckHasADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := parse(t, "private").Check(ctx, dns, "slow.test:80")
		require.ErrorIs(t, err, ErrUnresolved)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

func TestAddress(t *testing.T) {
	for text, want := range map[string]struct {
		host string
		port uint16
	}{
		"10.0.0.7:8080":     {"10.0.0.7", 8080},
		"[fd00::7]:1":       {"fd00::7", 1},
		"My_Worker-1.a.:80": {"My_Worker-1.a.", 80},
		"0xg:80":            {"0xg", 80}, // no number
		"1a:80":             {"1a", 80},
		strings.Repeat(strings.Repeat("a", 49)+".", 5) + "bbb.:65535": {strings.Repeat(strings.Repeat("a", 49)+".", 5) + "bbb.", 65535},
	} {
		host, port, err := Address(text)
		require.NoError(t, err, text)
		require.Equal(t, want.host, host)
		require.Equal(t, want.port, port)
	}
}

func TestParse(t *testing.T) {
	for _, test := range []struct {
		entries []string
		yes, no []string
	}{
		{nil, nil, []string{"127.0.0.1", "10.0.0.1"}},
		{[]string{"loopback"}, []string{"127.0.0.1", "127.255.0.1", "::1"}, []string{"10.0.0.1", "fd00::1", "128.0.0.1"}},
		{[]string{"private"}, []string{"10.0.0.1", "fd00::1"}, []string{"127.0.0.1", "::1", "11.0.0.1", "fe00::1"}},
		{[]string{"203.0.113.7"}, []string{"203.0.113.7", "::ffff:203.0.113.7"}, []string{"203.0.113.8"}},
		{[]string{"::ffff:203.0.113.7"}, []string{"203.0.113.7"}, []string{"203.0.113.8"}},
		{[]string{"203.0.113.7/24"}, []string{"203.0.113.200"}, []string{"203.0.114.7"}}, // what is after the prefix does not count
		{[]string{"::ffff:203.0.113.0/120"}, []string{"203.0.113.200"}, []string{"203.0.114.7"}},
		{[]string{"2001:db8::/32"}, []string{"2001:db8:1::7"}, []string{"2001:db9::7", "203.0.113.7"}},
		{[]string{"::/0"}, []string{"2001:db8:1::7"}, []string{"203.0.113.7", "::ffff:203.0.113.7"}}, // IPv6 alone
		{[]string{"64:ff9b::/96"}, nil, []string{"64:ff9b::10.0.0.1"}},
		{[]string{"64:ff9b::/96", "private"}, []string{"64:ff9b::10.0.0.1"}, []string{"64:ff9b::8.8.8.8"}},
	} {
		l, err := Parse(test.entries)
		require.NoError(t, err)
		for _, a := range test.yes {
			require.NoError(t, l.Judge(netip.AddrPortFrom(netip.MustParseAddr(a), 80)), "%v", test.entries)
		}
		for _, a := range test.no {
			require.ErrorContains(t, l.Judge(netip.AddrPortFrom(netip.MustParseAddr(a), 80)), "registration.allow", "%v: %s", test.entries, a)
		}
	}
	for _, entry := range []string{"", "public", "Loopback", "10.0.0", "10.0.0.0/33", "10.0.0.0/", "fe80::1%eth0", "fe80::%eth0/64", "example.com", "10.0.0.0-10.0.0.9"} {
		_, err := Parse([]string{"private", entry})
		require.ErrorContains(t, err, "CIDR prefix", entry)
	}
}

// Sockets come and go at a reload, while others dial.
func TestSetOwn(t *testing.T) {
	l, err := Parse([]string{"loopback"})
	require.NoError(t, err)
	admin := netip.MustParseAddrPort("127.0.0.1:9901")
	require.NoError(t, l.Judge(admin), "nobody has said yet where lb listens")
	l.SetOwn([]netip.AddrPort{admin}, nil)
	require.Error(t, l.Judge(admin))
	l.SetOwn([]netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:9901")}, nil)
	require.Error(t, l.Judge(admin))
	require.Error(t, l.Judge(netip.MustParseAddrPort("[::1]:9901")), "which family an unspecified socket takes is not asked")
	l.SetOwn(nil, nil)
	require.NoError(t, l.Judge(admin))
}

func TestJudgeOddAddresses(t *testing.T) {
	l := parse(t, everything...)
	require.ErrorContains(t, l.Judge(netip.AddrPort{}), "is not an address")
	require.ErrorContains(t, l.Judge(netip.MustParseAddrPort("10.0.0.7:0")), "port 0")
	require.ErrorContains(t, l.Judge(netip.MustParseAddrPort("[fd00::1%eth0]:80")), "zone")
	require.ErrorContains(t, l.Judge(netip.MustParseAddrPort("[::ffff:10.0.0.7%eth0]:80")), "zone")
}

func TestJudgeDoesNotAllocate(t *testing.T) {
	l := parse(t, "loopback", "private", "64:ff9b::/96")
	for _, text := range []string{"10.0.0.7:80", "[fd00::7]:80", "[::ffff:10.0.0.7]:80", "[64:ff9b::a00:7]:80"} {
		ap := netip.MustParseAddrPort(text)
		require.Zero(t, testing.AllocsPerRun(100, func() {
			if l.Judge(ap) != nil {
				t.Error(text)
			}
		}), text)
	}
}

func BenchmarkJudge(b *testing.B) {
	l := parse(b, "loopback", "private")
	ap := netip.MustParseAddrPort("192.168.1.7:8080")
	b.ReportAllocs()
	for b.Loop() {
		_ = l.Judge(ap)
	}
}

// Whatever Address takes, lb, net.SplitHostPort and netip read the same way.
func FuzzAddress(f *testing.F) {
	for _, seed := range []string{"10.0.0.7:8080", "[::1]:1", "server1.:80", "0x7f.1:80", "[fe80::1%1]:80", "a:b:c", "127.1:1", "１:1", "[a]:1", "]:["} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		host, port, err := Address(text)
		if err != nil {
			require.Less(t, len(err.Error()), 500)
			return
		}
		require.NotZero(t, port)
		require.False(t, strings.ContainsAny(host, "%/?#@\\[] \x00"), host)
		if ip, err := netip.ParseAddr(host); err == nil {
			require.Empty(t, ip.Zone())
		} else {
			require.False(t, endsInNumber(host), host)
			require.NotContains(t, host, ":")
		}
	})
}
