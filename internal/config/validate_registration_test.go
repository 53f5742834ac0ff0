package config

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRoutePrefix(t *testing.T) {
	const at = "registration.route_prefix: "
	for prefix, want := range map[string]string{
		"/":           at + `is the whole path: whoever registers could take any route's place; write at least one segment, such as /call/`,
		"/call/":      "",
		"/a/b-c_d/":   "",
		"/.lbx/":      "",
		"/...a/":      "",
		"":            at + `is empty; write one such as /call/`,
		"/call":       at + `"/call" does not end with /; write "/call/"`,
		"call/":       at + `"call/" does not begin with /; write "/call/"`,
		"//":          at + `"//" has an empty segment; take one slash out`,
		"/a//b/":      at + `"/a//b/" has an empty segment; take one slash out`,
		"/./":         at + `"/./" has a . or .. segment; such requests are always answered 400`,
		"/a/../b/":    at + `"/a/../b/" has a . or .. segment; such requests are always answered 400`,
		"/a%2Fb/":     at + `"/a%2Fb/" has a percent-escape; write it decoded, as it is compared`,
		"/50%/":       at + `"/50%/" has a %; write plain segments such as /call/`,
		"/.lb/":       at + `/.lb/ is reserved for lb itself; choose another path`,
		"/.lb/call/":  at + `/.lb/ is reserved for lb itself; choose another path`,
		"/a?b/":       at + `"/a?b/" has a query or a fragment; write "/a"`,
		`/a\b/`:       at + `"/a\\b/" has a backslash or a control character; such requests are always answered 400`,
		"http://h/a/": at + `"http://h/a/" is a URL; write the path alone, and the host under hosts`,
	} {
		c := valid()
		c.Registration.RoutePrefix = prefix
		problems, _ := Validate(c, environment(nil))
		require.Equal(t, want, problems.Error(), prefix)
	}
}

func TestAllow(t *testing.T) {
	const forms = "; write loopback, private, an IP address or a CIDR prefix such as 10.0.0.0/8"
	for entry, want := range map[string]string{
		"loopback":          "",
		"private":           "",
		"203.0.113.7":       "",
		"203.0.113.0/24":    "",
		"0.0.0.0/0":         "",
		"2001:db8::1":       "",
		"::ffff:10.0.0.1":   "",
		"":                  `"" is no address that can be allowed` + forms,
		"Loopback":          `"Loopback" is no address that can be allowed; did you mean "loopback"?`,
		"privat":            `"privat" is no address that can be allowed; did you mean "private"?`,
		"localhost":         `"localhost" is no address that can be allowed` + forms,
		"10.0.0.0/33":       `"10.0.0.0/33" is no address that can be allowed` + forms,
		"192.168.1.0/16":    `"192.168.1.0/16" has bits beyond its length; write 192.168.0.0/16, or 192.168.1.0 if that alone is meant`,
		"fd00::1/8":         `"fd00::1/8" has bits beyond its length; write fd00::/8, or fd00::1 if that alone is meant`,
		"fe80::1%eth0":      `"fe80::1%eth0" is no address that can be allowed` + forms,
		"::ffff:10.0.0.0/8": `"::ffff:10.0.0.0/8" has bits beyond its length; write ::/8, or ::ffff:10.0.0.0 if that alone is meant`,
	} {
		c := valid()
		c.Registration.Allow = []string{entry}
		problems, _ := Validate(c, environment(nil))
		if want != "" {
			want = "registration.allow[0]: " + want
		}
		require.Equal(t, want, problems.Error(), entry)
	}
}

func TestRegistrationThatIsOff(t *testing.T) {
	for name, change := range map[string]func(r *Registration){
		"ttl":           func(r *Registration) { r.TTL = seconds(30) },
		"token_env":     func(r *Registration) { r.TokenEnv = "TOKEN" },
		"route_prefix":  func(r *Registration) { r.RoutePrefix = "/rpc/" },
		"allow":         func(r *Registration) { r.Allow = nil },
		"max_instances": func(r *Registration) { r.MaxInstances = 5 },
		"max_pools":     func(r *Registration) { r.MaxPools = 5 },
		"limits":        func(r *Registration) { r.Limits.PerBackend = 1 },
	} {
		c := valid()
		change(&c.Registration)
		env := environment(map[string]string{"TOKEN": "secret"})
		problems, warnings := Validate(c, env)
		require.Empty(t, problems, name)
		require.EqualError(t, warnings, "registration: it says how backends register, and none can: enabled is false; "+
			"set registration.enabled to true, or take registration out", name)
		c.Registration.Enabled = true
		_, warnings = Validate(c, env)
		require.NotContains(t, warnings.Error(), "enabled", name)
	}
}

func TestRegistrationToken(t *testing.T) {
	const warned = "registration.token_env: holds the admin token: who may register may do everything; give backends a token of their own"
	env := environment(map[string]string{"ADMIN": "secret", "SAME": " secret\n", "OTHER": "another"})
	for _, test := range []struct{ admin, registration, want string }{
		{"", "", ""},
		{"ADMIN", "", ""},
		{"", "OTHER", ""},
		{"ADMIN", "OTHER", ""},
		{"ADMIN", "ADMIN", warned},
		{"ADMIN", "SAME", warned},
	} {
		c := valid()
		c.Registration.Enabled = true
		c.Admin.TokenEnv, c.Registration.TokenEnv = test.admin, test.registration
		problems, warnings := Validate(c, env)
		require.Empty(t, problems)
		require.Equal(t, test.want, warnings.Error(), test)
	}

	c := valid()
	c.Registration.TokenEnv = "not a name, but perhaps the secret"
	problems, _ := Validate(c, env)
	require.EqualError(t, problems, "registration.token_env: is not the name of an environment variable; write the variable's name, not the secret")

	// A registration token opens nothing else, so it does not make an open
	// admin listener safe.
	c = valid()
	c.Admin.Address, c.Registration.TokenEnv = ":9901", "OTHER"
	problems, _ = Validate(c, env)
	require.ErrorContains(t, problems, "can be reached from other machines and there is no token")
}
