package config

import (
	"fmt"
	"math"
	"net/netip"
	"strings"
)

// Lookup returns the value of an environment variable and whether it is set,
// as os.LookupEnv does.
type Lookup func(name string) (value string, set bool)

// Validate judges a complete configuration (see Complete) and returns every
// problem at once, and warnings about what is allowed but hardly meant. env is
// asked whether the variables exist that the configuration names. Neither list
// is sorted, and no entry has a line: only the reader of the file knows it.
// Policies and their settings are not judged here: who builds them does that.
func Validate(c *Config, env Lookup) (problems, warnings Problems) {
	v := &validator{config: c, env: env, pools: make(map[string]bool)}
	for _, p := range c.Pools {
		v.pools[p.Name] = true
		if p.Name != "" {
			v.poolNames = append(v.poolNames, p.Name)
		}
	}
	v.listeners()
	v.poolList()
	v.routes()
	v.unreached()
	v.waits()
	v.registration()
	v.admin()
	v.rest()
	v.sockets()
	return v.problems, v.warnings
}

// validator collects what Validate finds.
type validator struct {
	config    *Config
	env       Lookup
	pools     map[string]bool
	poolNames []string
	problems  Problems
	warnings  Problems
}

func (v *validator) fail(path, suggestion, format string, args ...any) {
	v.problems = append(v.problems, Problem{Path: path, Message: fmt.Sprintf(format, args...), Suggestion: suggestion})
}

func (v *validator) warn(path, suggestion, format string, args ...any) {
	v.warnings = append(v.warnings, Problem{Path: path, Message: fmt.Sprintf(format, args...), Suggestion: suggestion})
}

// advise records a, if there is one.
func (v *validator) advise(path string, a *advice) {
	if a != nil {
		v.fail(path, a.suggestion, "%s", a.message)
	}
}

func (v *validator) listeners() {
	if len(v.config.Listeners) == 0 {
		v.fail("listeners", "add one such as { name: public, address: \":8080\" }", "no listeners: nothing would be served")
	}
	names := v.names("listeners")
	for i, l := range v.config.Listeners {
		at := fmt.Sprintf("listeners[%d]", i)
		names(at+".name", l.Name)
		for j, entry := range l.TrustedProxies {
			v.trusted(fmt.Sprintf("%s.trusted_proxies[%d]", at, j), entry)
		}
		v.positive(at+".timeouts.header", l.Timeouts.Header)
		v.positive(at+".timeouts.body_idle", l.Timeouts.BodyIdle)
		v.positive(at+".timeouts.write_idle", l.Timeouts.WriteIdle)
		v.positive(at+".timeouts.idle", l.Timeouts.Idle)
		v.positiveSize(at+".limits.header_bytes", l.Limits.HeaderBytes)
		v.least(at+".limits.header_fields", l.Limits.HeaderFields, 1)
		v.least(at+".limits.connections", l.Limits.Connections, 0)
	}
}

func (v *validator) trusted(path, entry string) {
	if entry == "unix" {
		return
	}
	if _, err := netip.ParseAddr(entry); err == nil {
		return
	}
	if _, err := netip.ParsePrefix(entry); err == nil {
		return
	}
	v.fail(path, `write an IP address, a CIDR prefix such as 10.0.0.0/8, or unix`, "%s is not a peer that can be trusted", Quote(entry))
}

func (v *validator) poolList() {
	names := v.names("pools")
	for i, p := range v.config.Pools {
		at := fmt.Sprintf("pools[%d]", i)
		names(at+".name", p.Name)
		v.backends(at, p)
		v.limits(at+".limits", p.Limits, p.Registration && v.config.Registration.Enabled)
		if p.Health != nil {
			v.health(at+".health", p.Health)
		}
		if p.Breaker != nil {
			v.breaker(at+".breaker", p.Breaker)
		}
		v.between(at+".retry_budget.ratio", p.RetryBudget.Ratio, 0, 1)
		if rate := p.RetryBudget.PerSecond; math.IsNaN(rate) || rate < 0 {
			v.fail(at+".retry_budget.per_second", "", "must not be negative, and is %v", rate)
		}
		v.slowStart(at+".slow_start", p.SlowStart)
		v.positive(at+".lagging.after", p.Lagging.After)
		v.spared(at, p)
		v.positive(at+".transport.connect", p.Transport.Connect)
		v.positive(at+".transport.response_header", p.Transport.ResponseHeader)
		v.positive(at+".transport.idle", p.Transport.Idle)
		v.least(at+".transport.max_idle_per_backend", p.Transport.MaxIdlePerBackend, 1)
	}
}

func (v *validator) backends(pool string, p Pool) {
	ids := make(map[string]int)
	for i, b := range p.Backends {
		at := fmt.Sprintf("%s.backends[%d]", pool, i)
		s, bad := parseSocket(b.Address, false)
		switch {
		case bad != nil:
			v.advise(at+".address", bad)
		case s.host == "":
			v.fail(at+".address", "write the server's name or address before the port", "%s has no host", Quote(b.Address))
		case s.port == 0:
			v.fail(at+".address", "a backend's port is a number from 1 to 65535", "%s has no usable port", Quote(b.Address))
		}
		if b.ID != b.Address {
			v.name(at+".id", b.ID)
		}
		if first, taken := ids[b.ID]; taken && b.ID != "" {
			v.fail(at+".id", "give each backend of a pool its own id", "%s is already the id of backends[%d]", Quote(b.ID), first)
		} else {
			ids[b.ID] = i
		}
		if b.Weight < 1 || b.Weight > 1000 {
			v.fail(at+".weight", "", "must be from 1 to 1000, and is %d", b.Weight)
		}
	}
}

func (v *validator) admin() {
	a := v.config.Admin
	for i, host := range a.Hosts {
		v.advise(fmt.Sprintf("admin.hosts[%d]", i), checkHost(host))
	}
	s, bad := parseSocket(a.Address, true)
	if a.Address != "" && bad == nil && !s.loopback() && a.TokenEnv == "" {
		v.fail("admin.address",
			fmt.Sprintf("set admin.token_env to the name of a variable that holds a token, or listen on 127.0.0.1:%d", s.port),
			"%s can be reached from other machines and there is no token", Quote(a.Address))
	}
	v.secret("admin.token_env", a.TokenEnv)
}

// secret judges the name of a variable that holds a secret, and returns what it
// holds; empty if there was a problem. A text that cannot be a name may be the
// secret itself, so it is not repeated.
func (v *validator) secret(path, name string) (value string) {
	if name == "" {
		return ""
	}
	if !only(name, strings.ReplaceAll(nameBytes, "-", "")) || digits(name[:1]) {
		v.fail(path, "write the variable's name, not the secret", "is not the name of an environment variable")
		return ""
	}
	value, set := v.env(name)
	switch {
	case !set:
		v.fail(path, "set it, or take "+path+" out", "the environment variable %s is not set", name)
	case strings.TrimSpace(value) == "":
		v.fail(path, "set it, or take "+path+" out", "the environment variable %s is empty", name)
	default:
		return value
	}
	return ""
}

// key judges the key of the storage.
func (v *validator) key(at string, s Storage) {
	if s.KeyEnv != "" && s.Path == "" {
		v.warn(at, "write storage.path, or take "+at+" out", "nothing is encrypted, because nothing is stored")
	}
	value := v.secret(at, s.KeyEnv)
	if value == "" {
		return
	}
	if _, err := ParseKey(value); err != nil {
		v.fail(at, "set it to what openssl rand -hex 32 writes", "the environment variable %s %s", s.KeyEnv, err)
	}
}

func (v *validator) rest() {
	v.storage("storage.path", v.config.Storage.Path)
	v.key("storage.key_env", v.config.Storage)
	v.notNegative("shutdown.readiness", v.config.Shutdown.Readiness)
	v.notNegative("shutdown.drain", v.config.Shutdown.Drain)
	l := v.config.Log
	v.oneOf("log.level", "level", l.Level, "debug", "info", "warn", "error")
	v.oneOf("log.format", "format", l.Format, "json", "console")
	v.between("log.access.sample", l.Access.Sample, 0, 1)
}

// storage judges the path of the database, and leaves it to who opens it to say
// what only the file system knows.
func (v *validator) storage(at, path string) {
	switch {
	case strings.ContainsRune(path, 0):
		v.fail(at, "write a path such as /var/lib/lb/lb.db", "%s has a NUL byte", Quote(path))
	case strings.HasSuffix(path, "/") || dotted(path[strings.LastIndex(path, "/")+1:]):
		v.fail(at, fmt.Sprintf("write %s", Quote(strings.TrimRight(path, "/")+"/lb.db")), "%s is a directory, not a file", Quote(path))
	}
}

// sockets judges every address that is bound, and that no two collide.
func (v *validator) sockets() {
	type bound struct {
		path string
		socket
	}
	taken := make(map[string][]bound)
	check := func(path, address string, unix bool) {
		s, bad := parseSocket(address, unix)
		if bad != nil {
			v.advise(path, bad)
			return
		}
		key := fmt.Sprint(s.port, s.unix)
		for _, other := range taken[key] {
			if s.collides(other.socket) {
				v.fail(path, "choose another address or port", "%s is already taken by %s", Quote(address), other.path)
				return
			}
		}
		taken[key] = append(taken[key], bound{path, s})
	}
	for i, l := range v.config.Listeners {
		check(fmt.Sprintf("listeners[%d].address", i), l.Address, true)
	}
	if v.config.Admin.Address != "" {
		check("admin.address", v.config.Admin.Address, true)
	}
	if v.config.Metrics.Address != "" {
		check("metrics.address", v.config.Metrics.Address, false)
	}
}
