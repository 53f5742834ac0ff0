package config

import (
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// valid returns a configuration without a fault, for tests to put one in.
func valid() *Config {
	var (
		l Listener
		p Pool
		b Backend
		x Proxy
		f Fanout
	)
	l.SetDefaults()
	l.Name = "public"
	b.SetDefaults()
	b.Address = "server1:8080"
	p.SetDefaults()
	p.Name, p.Backends = "users", []Backend{b}
	x.SetDefaults()
	x.Pool = "users"
	f.SetDefaults()
	f.Pool = "users"
	c := Default()
	c.Listeners, c.Pools = []Listener{l}, []Pool{p}
	c.Routes = []Route{
		{Name: "read", Match: Match{Path: "/a"}, Proxy: &x},
		{Name: "write", Match: Match{Methods: []string{"POST"}, Path: "/a"}, Fanout: &f},
	}
	c.Complete()
	return c
}

// check gives the only pool an active check.
func check(c *Config) *Health {
	c.Pools[0].Health = new(Health)
	c.Pools[0].Health.SetDefaults()
	return c.Pools[0].Health
}

// breaker gives the only pool a breaker.
func breaker(c *Config) *Breaker {
	c.Pools[0].Breaker = new(Breaker)
	c.Pools[0].Breaker.SetDefaults()
	return c.Pools[0].Breaker
}

// environment is a Lookup over a map.
func environment(variables map[string]string) Lookup {
	return func(name string) (string, bool) {
		value, set := variables[name]
		return value, set
	}
}

func TestDefaultsAreValid(t *testing.T) {
	c := valid()
	problems, warnings := Validate(c, environment(nil))
	require.Empty(t, problems)
	require.Empty(t, warnings)

	c.Pools[0].Backends = append(c.Pools[0].Backends, Backend{Address: "server2:8080", ID: "server2", Weight: 1})
	check(c)
	breaker(c)
	problems, warnings = Validate(c, environment(nil))
	require.Empty(t, problems)
	require.Empty(t, warnings)
}

// TestValidateInGo covers what a file cannot say, because decoding refuses it.
func TestValidateInGo(t *testing.T) {
	tests := map[string]func(c *Config){
		`shutdown.drain: must not be negative, and is -1ns`:                      func(c *Config) { c.Shutdown.Drain = -1 },
		`routes[1].fanout.wait: must not be negative, and is -1ns`:               func(c *Config) { c.Routes[1].Fanout.Wait = -1 },
		`routes[1].fanout.backoff.jitter: must not be negative, and is -1ns`:     func(c *Config) { c.Routes[1].Fanout.Backoff.Jitter = -1 },
		`routes[0].proxy.timeout: must be more than 0`:                           func(c *Config) { c.Routes[0].Proxy.Timeout = -1 },
		`log.access.sample: must be from 0 to 1, and is NaN`:                     func(c *Config) { c.Log.Access.Sample = math.NaN() },
		`pools[0].retry_budget.per_second: must not be negative, and is NaN`:     func(c *Config) { c.Pools[0].RetryBudget.PerSecond = math.NaN() },
		`listeners[0].limits.header_bytes: must be more than 0`:                  func(c *Config) { c.Listeners[0].Limits.HeaderBytes = -1 },
		`log.level: is empty; there are debug, info, warn, error`:                func(c *Config) { c.Log.Level = "" },
		`pools[0].health.timeout: must be more than 0`:                           func(c *Config) { check(c).Timeout = -1 },
		`pools[0].health.interval: must be from 100ms to 24h, and is -1ns`:       func(c *Config) { check(c).Interval = -1 },
		`pools[0].health.method: "G\x00" is not a method; write one such as GET`: func(c *Config) { check(c).Method = "G\x00" },
		`pools[0].health.command: has 65537 bytes, and the most is 64KiB; put what is long into a script`: func(c *Config) {
			h := check(c)
			h.Type, h.Command = CheckExec, []string{"check", strings.Repeat("a", maxCheckCommand-6)}
		},
		`pools[0].breaker.ratio: must be from 0 to 1, and is NaN`:                        func(c *Config) { breaker(c).Ratio = math.NaN() },
		`pools[0].breaker.max_open_share: must be above 0 and at most 1, and is NaN`:     func(c *Config) { breaker(c).MaxOpenShare = math.NaN() },
		`pools[0].breaker.open: must be more than 0`:                                     func(c *Config) { breaker(c).Open = -1 },
		`pools[0].slow_start: must not be negative, and is -1ns`:                         func(c *Config) { c.Pools[0].SlowStart = -1 },
		`pools[0].lagging.after: must be more than 0`:                                    func(c *Config) { c.Pools[0].Lagging.After = -1 },
		`listeners[0].name: "é" is not a name; write letters, digits and any of - _ . :`: func(c *Config) { c.Listeners[0].Name = "é" },
	}
	for want, spoil := range tests {
		c := valid()
		spoil(c)
		problems, _ := Validate(c, environment(nil))
		require.EqualError(t, problems, want)
	}
}

func TestComplete(t *testing.T) {
	c := &Config{Pools: []Pool{
		{Backends: []Backend{{Address: "a:1"}, {Address: "b:1", ID: "b"}}},
		{Policy: Policy{Name: "rr"}},
	}}
	c.Complete()
	require.Equal(t, "a:1", c.Pools[0].Backends[0].ID)
	require.Equal(t, "b", c.Pools[0].Backends[1].ID)
	require.Equal(t, "roundrobin", c.Pools[0].Policy.Name)
	require.Equal(t, "rr", c.Pools[1].Policy.Name, "who knows the policies knows their aliases")
}

func TestAdminToken(t *testing.T) {
	open := func(name string) *Config {
		c := valid()
		c.Admin = Admin{Address: "0.0.0.0:9901", TokenEnv: name}
		return c
	}
	env := environment(map[string]string{"TOKEN": "secret", "EMPTY": "", "BLANK": " \n"})
	problems, _ := Validate(open("TOKEN"), env)
	require.Empty(t, problems)
	for name, want := range map[string]string{
		"EMPTY": "admin.token_env: the environment variable EMPTY is empty; set it, or take admin.token_env out",
		"BLANK": "admin.token_env: the environment variable BLANK is empty; set it, or take admin.token_env out",
		"UNSET": "admin.token_env: the environment variable UNSET is not set; set it, or take admin.token_env out",
		"1A":    "admin.token_env: is not the name of an environment variable; write the variable's name, not the secret",
		"a=b":   "admin.token_env: is not the name of an environment variable; write the variable's name, not the secret",
		"": `admin.address: "0.0.0.0:9901" can be reached from other machines and there is no token; ` +
			"set admin.token_env to the name of a variable that holds a token, or listen on 127.0.0.1:9901",
	} {
		problems, _ := Validate(open(name), env)
		require.EqualError(t, problems, want)
	}
}

func TestAdminReach(t *testing.T) {
	for address, safe := range map[string]bool{
		"":                        true,
		"127.0.0.1:1":             true,
		"127.9.9.9:1":             true,
		"localhost:1":             true,
		"LocalHost:1":             true,
		"[::1]:1":                 true,
		"[::ffff:127.0.0.1]:1":    true,
		"unix:/run/lb-admin.sock": true,
		":1":                      false,
		"0.0.0.0:1":               false,
		"[::]:1":                  false,
		"10.0.0.1:1":              false,
		"lb.internal:1":           false,
		"localhost.evil.dev:1":    false,
	} {
		c := valid()
		c.Admin.Address = address
		problems, _ := Validate(c, environment(nil))
		require.Equal(t, safe, len(problems) == 0, address)
	}
}

func TestCollides(t *testing.T) {
	tests := []struct {
		a, b string
		want bool
	}{
		{":80", ":80", true},
		{":80", ":81", false},
		{":0", ":0", false},
		{":80", "127.0.0.1:80", true},
		{"0.0.0.0:80", "127.0.0.1:80", true},
		{"0.0.0.0:80", "[::1]:80", false},
		{"[::]:80", "10.0.0.1:80", true},
		{"[::]:80", "0.0.0.0:80", true},
		{"127.0.0.1:80", "127.0.0.2:80", false},
		{"127.0.0.1:80", "localhost:80", true},
		{"127.0.0.1:80", "[::ffff:127.0.0.1]:80", true},
		{"Host.dev:80", "host.dev:80", true},
		{"host.dev:80", "other.dev:80", false},
		{"host.dev:80", "10.0.0.1:80", false},
		{"host.dev:80", ":80", true},
		{"unix:/a", "unix:/a", true},
		{"unix:/a", "unix:/b", false},
		{"unix:/a", ":80", false},
	}
	for _, test := range tests {
		a, bad := parseSocket(test.a, true)
		require.Nil(t, bad, test.a)
		b, bad := parseSocket(test.b, true)
		require.Nil(t, bad, test.b)
		require.Equal(t, test.want, a.collides(b), "%s %s", test.a, test.b)
		require.Equal(t, test.want, b.collides(a), "%s %s", test.b, test.a)
	}
}

func TestPoolsWithoutARoute(t *testing.T) {
	for _, test := range []struct {
		change func(c *Config)
		want   string
	}{
		{func(c *Config) { c.Routes = c.Routes[:1] }, ""},
		{func(c *Config) { c.Routes = c.Routes[1:] }, ""}, // writes alone are a use, too
		{func(c *Config) { c.Routes = nil }, `pools[0]: no route uses "users": nobody can reach it; add a route to it`},
		{func(c *Config) { c.Routes, c.Registration.Enabled = nil, true },
			`pools[0]: no route uses "users": nobody can reach it; add a route to it`},
		{func(c *Config) { c.Routes, c.Registration.Enabled, c.Pools[0].Registration = nil, true, true },
			`pools[0]: no route uses "users": backends register there, and who calls them gets 404: ` +
				"a configured pool has the routes of the configuration only; add a route to it"},
		{func(c *Config) { c.Registration.Enabled, c.Pools[0].Registration = true, true }, ""},
		{func(c *Config) { c.Routes, c.Pools[0].Registration = nil, true },
			`pools[0]: no route uses "users": nobody can reach it; add a route to it` + "\n" +
				"pools[0].registration: nobody can register, because registration is not enabled; set registration.enabled to true"},
	} {
		c := valid()
		test.change(c)
		problems, warnings := Validate(c, environment(nil))
		require.Empty(t, problems)
		require.Equal(t, test.want, warnings.Error())
	}
}

func TestQueuesOfNobody(t *testing.T) {
	const why = "limits.queue: nobody ever waits, because limit is 0; set limit, or take queue out"
	for _, test := range []struct {
		queue Queue
		want  string
	}{
		{Queue{Timeout: seconds(5), Order: QueueFIFO}, ""}, // the defaults
		{Queue{Timeout: seconds(6), Order: QueueFIFO}, why},
		{Queue{Limit: 1, Timeout: seconds(6), Order: QueueFIFO}, ""},
	} {
		c := valid()
		c.Pools[0].Limits.PerBackend, c.Pools[0].Limits.Queue = 1, test.queue
		_, warnings := Validate(c, environment(nil))
		c = valid()
		c.Registration.Enabled, c.Registration.Limits.Queue = true, test.queue
		_, more := Validate(c, environment(nil))
		if test.want == "" {
			require.Empty(t, append(warnings, more...))
			continue
		}
		require.EqualError(t, warnings, "pools[0]."+test.want)
		require.EqualError(t, more, "registration."+test.want)
	}
}

func TestNeverReached(t *testing.T) {
	tests := []struct {
		a, b Match
		same bool
	}{
		{Match{Path: "/a"}, Match{Path: "/a"}, true},
		{Match{Path: "/a"}, Match{PathPrefix: "/a"}, false},
		{Match{Path: "/a"}, Match{Path: "/A"}, false},
		{Match{Hosts: []string{"a.dev", "b.dev"}}, Match{Hosts: []string{"B.dev", "a.dev."}}, true},
		{Match{Methods: []string{"GET"}}, Match{Methods: []string{"HEAD", "GET"}}, true},
		{Match{Methods: []string{"GET"}}, Match{Methods: []string{"HEAD"}}, false},
		{Match{}, Match{Methods: []string{"GET"}}, false},
	}
	for _, test := range tests {
		c := valid()
		c.Pools = nil
		c.Routes = []Route{
			{Name: "first", Match: test.a, Respond: &Respond{Status: 200}},
			{Name: "second", Match: test.b, Respond: &Respond{Status: 200}},
		}
		problems, warnings := Validate(c, environment(nil))
		require.Empty(t, problems)
		if test.same {
			require.EqualError(t, warnings, `routes[1].match: never reached: routes[0] "first" has the same match`)
		} else {
			require.Empty(t, warnings)
		}
	}
}
