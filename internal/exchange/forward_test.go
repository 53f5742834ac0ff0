package exchange

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestForward(t *testing.T) {
	forged := []string{
		"X-Forwarded-For", "1.1.1.1, 10.0.0.9", "X-Forwarded-Host", "bank.example", "X-Forwarded-Proto", "https", "X-Request-Id", "chosen-by-the-client",
	}
	for _, test := range []struct {
		name   string
		peer   netip.Addr
		unix   bool // trust unix sockets
		fields []string
		want   Forward
		client string // the client that lb counts with
		made   bool   // the request id is lb's own
	}{
		{
			name: "a stranger", peer: stranger,
			want: Forward{For: "203.0.113.9", Host: "h", Proto: "http"}, client: "203.0.113.9", made: true,
		},
		{
			name: "a stranger who claims to be somebody", peer: stranger, fields: forged,
			want: Forward{For: "203.0.113.9", Host: "h", Proto: "http"}, client: "203.0.113.9", made: true,
		},
		{
			name: "a trusted peer without a word", peer: insider,
			want: Forward{For: "10.1.2.3", Host: "h", Proto: "http", Trusted: true}, client: "10.1.2.3", made: true,
		},
		{
			name: "a trusted peer is believed and added to the list", peer: insider, fields: forged,
			want: Forward{
				For: "1.1.1.1, 10.0.0.9, 10.1.2.3", Host: "bank.example", Proto: "https",
				RequestID: "chosen-by-the-client", Trusted: true,
			},
			client: "1.1.1.1",
		},
		{
			name: "a trusted peer whose words go no further", peer: insider,
			fields: append([]string{"Connection", "close, x-forwarded-for, X-FORWARDED-HOST,x-forwarded-proto, x-request-id"}, forged...),
			want:   Forward{For: "10.1.2.3", Host: "h", Proto: "http", Trusted: true}, client: "10.1.2.3", made: true,
		},
		{
			name: "IPv4 that came over an IPv6 socket", peer: netip.MustParseAddr("::ffff:10.1.2.3"), fields: forged,
			want: Forward{
				For: "1.1.1.1, 10.0.0.9, 10.1.2.3", Host: "bank.example", Proto: "https",
				RequestID: "chosen-by-the-client", Trusted: true,
			},
			client: "1.1.1.1",
		},
		{
			name: "a stranger over an IPv6 socket", peer: netip.MustParseAddr("::ffff:203.0.113.9"), fields: forged,
			want: Forward{For: "203.0.113.9", Host: "h", Proto: "http"}, client: "203.0.113.9", made: true,
		},
		{
			name: "IPv6", peer: netip.MustParseAddr("fd00::7"), fields: []string{"X-Forwarded-For", "2001:db8::1"},
			want: Forward{For: "2001:db8::1, fd00::7", Host: "h", Proto: "http", Trusted: true}, client: "2001:db8::1", made: true,
		},
		{
			name: "a unix socket that is not trusted", fields: forged,
			want: Forward{Host: "h", Proto: "http"}, client: "invalid IP", made: true,
		},
		{
			name: "a unix socket that is trusted", unix: true, fields: forged,
			want: Forward{
				For: "1.1.1.1, 10.0.0.9", Host: "bank.example", Proto: "https",
				RequestID: "chosen-by-the-client", Trusted: true,
			},
			client: "1.1.1.1",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, options{backends: 1})
			w.listener.TrustUnix = test.unix
			r := ask("GET /app", test.fields...)
			r.peer = test.peer
			x, _ := w.begin(r)
			if test.made {
				require.Regexp(t, "^[0-9a-f]{32}$", x.Forward.RequestID)
				x.Forward.RequestID = ""
			}
			require.Equal(t, test.want, x.Forward)
			require.Equal(t, test.client, x.Client.String())
		})
	}
}

// The client is the right-most hop that nobody vouches for.
func TestClientBehindTrustedPeers(t *testing.T) {
	for list, want := range map[string]string{
		"198.51.100.7":                             "198.51.100.7",
		"1.1.1.1, 198.51.100.7":                    "198.51.100.7", // 1.1.1.1 is what the client said of itself
		"1.1.1.1,198.51.100.7,10.0.0.1":            "198.51.100.7",
		"10.9.9.9, 198.51.100.7, 10.0.0.1, fd00::": "198.51.100.7", // even if it says it came from inside
		" 198.51.100.7 ,\t10.0.0.1 ":               "198.51.100.7",
		"::ffff:198.51.100.7, ::ffff:10.0.0.1":     "198.51.100.7",
		"2001:db8::1, 10.0.0.1":                    "2001:db8::1",
		"10.0.0.1, 10.0.0.2":                       "10.0.0.1", // all are trusted: the first
		"":                                         "10.1.2.3",
		"unknown":                                  "10.1.2.3",
		"198.51.100.7, unknown":                    "10.1.2.3", // behind nonsense nothing counts
		"198.51.100.7, unknown, 10.0.0.5":          "10.0.0.5",
		"198.51.100.7,":                            "10.1.2.3",
		",,,":                                      "10.1.2.3",
		"198.51.100.7:8080":                        "10.1.2.3",
		"010.0.0.1":                                "10.1.2.3", // not an address since Go 1.17, and read differently elsewhere
		"0x7f.1":                                   "10.1.2.3",
	} {
		w := newWorld(t, options{backends: 1})
		r := ask("GET /app", "X-Forwarded-For", list)
		r.peer = insider
		x, _ := w.begin(r)
		require.Equal(t, want, x.Client.String(), "%q", list)
	}
}

func TestRequestIDs(t *testing.T) {
	for id, kept := range map[string]bool{
		"a":                            true,
		"7f3c:1/2+3=":                  true,
		"\"quoted\"":                   true,
		strings.Repeat("x", 128):       true,
		strings.Repeat("x", 129):       false,
		"":                             false,
		"a b":                          false,
		"a, b":                         false, // two lines of the field
		"a\tb":                         false,
		"a\x7fb":                       false,
		"naïve":                        false,
		"\x1b[31mred":                  false,
		"line\r\nInjected: x":          false,
		strings.Repeat("x", 127) + " ": false,
	} {
		w := newWorld(t, options{backends: 1})
		r := ask("GET /app", "X-Request-Id", id)
		r.peer = insider
		x, _ := w.begin(r)
		if kept {
			require.Equal(t, id, x.Forward.RequestID)
		} else {
			require.Regexp(t, "^[0-9a-f]{32}$", x.Forward.RequestID, "%q", id)
		}
	}
	w := newWorld(t, options{backends: 1})
	seen := make(map[string]bool)
	for range 1000 {
		x, _ := w.begin(ask("GET /app"))
		require.False(t, seen[x.Forward.RequestID], "no id is given twice")
		seen[x.Forward.RequestID] = true
	}
}

func TestWithheld(t *testing.T) {
	for name, want := range map[string]struct{ untrusted, trusted bool }{
		"Forwarded":            {true, false},
		"X-Forwarded-For":      {true, false},
		"X-Forwarded-Host":     {true, false},
		"X-Forwarded-Proto":    {true, false},
		"X-Forwarded-Port":     {true, false},
		"X-Forwarded-Prefix":   {true, false},
		"X-Forwarded-Uri":      {true, false},
		"X-Forwarded-Anything": {true, false},
		"x-forwarded-for":      {true, false},
		"X-FORWARDED-FOR":      {true, false},
		"X-Real-Ip":            {true, false},
		"x-real-ip":            {true, false},
		"X_forwarded_for":      {true, true},
		"X_Forwarded-Host":     {true, true},
		"X-Forwarded_proto":    {true, true},
		"X_real_ip":            {true, true},
		"X-Real_Ip":            {true, true},
		"Content_length":       {true, true},
		"CONTENT_LENGTH":       {true, true},
		"Transfer_encoding":    {true, true},
		"X_request_id":         {true, true},
		"X-Request_id":         {true, true},
		"X-Request-Id":         {false, false}, // replaced, not withheld
		"X-Forwardedfor":       {false, false},
		"X-Forwarded":          {false, false},
		"Forwarded-For":        {false, false},
		"Forwarded_for":        {false, false},
		"X_auth_user":          {false, false},
		"X-Real-Ip-Country":    {false, false},
		"Content-Type":         {false, false},
		"Content-Length":       {false, false},
		"Content_type":         {false, false},
		"Cookie":               {false, false},
		"Te":                   {false, false},
		"Authorization":        {false, false},
		"User_agent":           {false, false},
	} {
		require.Equal(t, want.untrusted, Withheld(name, false), "%s from a stranger", name)
		require.Equal(t, want.trusted, Withheld(name, true), "%s from a trusted peer", name)
	}
}

// Whoever folds case and joins words by either sign reads no word of lb's own
// in what a stranger may send.
func FuzzWithheld(f *testing.F) {
	for _, name := range []string{"X_Forwarded_For", "x-real_ip", "Forwarded", "Content_Length", "X-Request_Id", "Cookie"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if name == "" {
			return // no field has no name
		}
		for i := range len(name) {
			if name[i] <= ' ' || name[i] > '~' {
				return
			}
		}
		variable := strings.ReplaceAll(strings.ToUpper(name), "-", "_") // as CGI and WSGI call it
		spoken := variable == "FORWARDED" || variable == "X_REAL_IP" ||
			strings.HasPrefix(variable, "X_FORWARDED_") && variable != "X_FORWARDED_"
		if spoken {
			require.True(t, Withheld(name, false), name)
		}
		if strings.Contains(name, "_") {
			spoken = spoken || variable == "CONTENT_LENGTH" || variable == "TRANSFER_ENCODING" || variable == "X_REQUEST_ID"
		}
		require.Equal(t, spoken, Withheld(name, false), name)
	})
}
