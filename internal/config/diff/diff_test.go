package diff

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"lb/internal/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pool returns one with these backends, each at its id's address.
func pool(name string, ids ...string) config.Pool {
	var p config.Pool
	p.SetDefaults()
	p.Name = name
	for _, id := range ids {
		p.Backends = append(p.Backends, config.Backend{ID: id, Address: id + ":80", Weight: 1})
	}
	return p
}

func listener(name, address string) config.Listener {
	var l config.Listener
	l.SetDefaults()
	l.Name, l.Address = name, address
	return l
}

func proxied(name, to string) config.Route {
	r := config.Route{Name: name, Match: config.Match{PathPrefix: "/"}, Proxy: new(config.Proxy)}
	r.Proxy.SetDefaults()
	r.Proxy.Pool = to
	return r
}

func base() *config.Config {
	c := config.Default()
	c.Listeners = []config.Listener{listener("public", ":80"), listener("private", ":81")}
	c.Pools = []config.Pool{pool("users", "a", "b", "c"), pool("api", "a")}
	c.Routes = []config.Route{proxied("login", "users"), proxied("rest", "api")}
	return c
}

func TestBetween(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*config.Config)
		want   string
	}{
		{"nothing", func(*config.Config) {}, "nothing has changed"},
		{"an empty list for none", func(c *config.Config) { c.Routes[0].Match.Methods, c.Admin.Hosts = []string{}, []string{} }, "nothing has changed"},
		{"things come and go", func(c *config.Config) {
			c.Listeners = append(c.Listeners[1:], listener("new", ":82"))
			c.Pools = append(c.Pools, pool("other", "x", "y"))
			c.Pools[0].Backends = append(c.Pools[0].Backends[1:], config.Backend{ID: "d"})
			c.Routes = c.Routes[1:]
		}, `
+ listener new
+ backend users/d
+ pool other
- listener public
- backend users/a
- route login`},
		{"values", func(c *config.Config) {
			c.Pools[0].Limits.PerBackend = 8
			c.Pools[0].Backends[1].Weight = 5
			c.Pools[0].SlowStart = config.Duration(3600e9)
			c.Listeners[0].Limits.HeaderBytes = 1 << 20
			c.Routes[0].Match.Methods = []string{"GET", "POST"}
			c.Routes[0].Proxy.Retry.On = nil
			c.Shutdown.Drain = config.Duration(90e9)
			c.Storage.Path = ""
			c.Log.Access.Sample = 0.25
			c.Log.Access.Enabled = false
		}, `
~ listener public
    listeners.public.limits.header_bytes: 64KiB → 1MiB
~ pool users
    pools.users.limits.per_backend: 0 → 8
    pools.users.slow_start: 0s → 1h
~ backend users/b
    pools.users.backends.b.weight: 1 → 5
~ route login
    routes.login.match.methods: [] → [GET, POST]
    routes.login.proxy.retry.on: [reset, 502, 503, 504] → []
~ storage
    storage.path: lb.db → ""
~ shutdown
    shutdown.drain: 30s → 1m30s
~ log
    log.access.enabled: true → false
    log.access.sample: 1 → 0.25`},
		{"blocks", func(c *config.Config) {
			c.Pools[1].Breaker = &config.Breaker{Consecutive: 5, Window: 1e9}
			c.Routes[0].Proxy, c.Routes[0].Respond = nil, &config.Respond{Status: 204}
			c.Routes[1].Proxy.Pool = "users"
		}, `
~ pool api
    pools.api.breaker: none → {consecutive: 5, window: 1s}
~ route login
    routes.login.proxy: {pool: users, timeout: 1m, retry: {attempts: 1, on: [reset, 502, 503, 504]}} → none
    routes.login.respond: none → {status: 204}
~ route rest
    routes.rest.proxy.pool: api → users`},
		{"order", func(c *config.Config) {
			c.Routes[0], c.Routes[1] = c.Routes[1], c.Routes[0]
			b := c.Pools[0].Backends
			b[1], b[2] = b[2], b[1]
		}, `
~ pool users
    pools.users.backends: b, c → c, b
~ routes
    routes: login, rest → rest, login`},
		{"another thing in front is no other order", func(c *config.Config) {
			c.Routes = append([]config.Route{proxied("first", "api")}, c.Routes...)
		}, `
+ route first`},
		{"labels", func(c *config.Config) {
			c.Pools[0].Backends[0].Labels = map[string]string{"zone": "a", "none": "", "odd": "none", "x y": "a, b"}
		}, `
~ backend users/a
    pools.users.backends.a.labels.none: none → ""
    pools.users.backends.a.labels.odd: none → "none"
    pools.users.backends.a.labels.x y: none → "a, b"
    pools.users.backends.a.labels.zone: none → a`},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := base()
			test.change(c)
			d := Between(base(), c)
			got := d.String()
			require.Equal(t, strings.TrimPrefix(test.want, "\n")+"\n", got)
			require.Equal(t, got, Between(base(), c).String(), "always in that order")
			require.Equal(t, d.Empty(), Between(c, base()).Empty())
		})
	}
}

// What a check sends may be a password.
func TestSecretsAreHidden(t *testing.T) {
	with := func(headers ...config.HeaderValue) *config.Config {
		c := base()
		if headers != nil {
			c.Pools[0].Health = &config.Health{Headers: headers}
		}
		return c
	}
	one, two := config.HeaderValue{Name: "Authorization", Value: "s3cret"}, config.HeaderValue{Name: "Authorization", Value: "s3cret-too"}
	for _, test := range []struct {
		from, to *config.Config
		want     string
	}{
		{with(one), with(two), "pools.users.health.headers[0].value: (hidden) → (hidden)\n"},
		{with(), with(one), "pools.users.health: none → {headers: [{name: Authorization, value: (hidden)}]}\n"},
		{with(one), with(one, two), "headers: [{name: Authorization, value: (hidden)}] → [{name: Authorization, value: (hidden)}, {name"},
	} {
		got := Between(test.from, test.to)
		require.Contains(t, got.String(), test.want)
		text, err := json.Marshal(got)
		require.NoError(t, err)
		require.NotContains(t, string(text), "s3cret")
	}
}

func TestJSON(t *testing.T) {
	text, err := json.Marshal(Between(base(), base()))
	require.NoError(t, err)
	require.JSONEq(t, `{"added":[],"removed":[],"changed":[]}`, string(text), "lists, though there is nothing in them")

	c := base()
	c.Pools[0].Limits.PerBackend = 8
	c.Routes = append(c.Routes[:1], proxied("new", "api"))
	text, err = json.Marshal(Between(base(), c))
	require.NoError(t, err)
	require.JSONEq(t, `{"added":["route new"],"removed":["route rest"],
		"changed":[{"name":"pool users","values":[{"path":"pools.users.limits.per_backend","from":"0","to":"8"}]}]}`, string(text))
}

// Every field of a configuration is compared: each is changed alone, and found
// under its own path.
func TestNoFieldIsForgotten(t *testing.T) {
	from, to := new(config.Config), new(config.Config)
	fill(reflect.ValueOf(from).Elem())
	fill(reflect.ValueOf(to).Elem())
	require.True(t, Between(from, to).Empty())
	found := 0
	eachLeaf(reflect.ValueOf(to).Elem(), "", func(path string, leaf reflect.Value) {
		found++
		before := reflect.ValueOf(leaf.Interface())
		another(leaf)
		d := Between(from, to)
		leaf.Set(before)
		switch path {
		case "listeners.name", "pools.name", "pools.backends.id", "routes.name": // another thing
			require.Len(t, d.Added, 1, path)
			require.Len(t, d.Removed, 1, path)
			require.Empty(t, d.Changed, path)
		default:
			require.Empty(t, d.Added, path)
			require.Len(t, d.Changed, 1, path)
			require.Len(t, d.Changed[0].Values, 1, path)
			v := d.Changed[0].Values[0]
			require.Equal(t, path, strings.NewReplacer(".x.", ".", "[0]", "", ".tag1", "").Replace(v.Path))
			require.NotEmpty(t, v.From)
			require.NotEmpty(t, v.To)
		}
	})
	require.Greater(t, found, 100)
}

// fill gives every field a value, and every list one item, called x.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("tag1"), reflect.ValueOf("x"))
	case reflect.String:
		v.SetString("x")
	case reflect.Int, reflect.Int64:
		v.SetInt(1)
	case reflect.Float64:
		v.SetFloat(1)
	case reflect.Bool:
		v.SetBool(true)
	default:
		panic(fmt.Sprint("a kind that is new in config: ", v.Type()))
	}
}

// eachLeaf calls fn with each value that a configuration may set by itself.
func eachLeaf(v reflect.Value, path string, fn func(path string, leaf reflect.Value)) {
	switch {
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			key, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
			eachLeaf(v.Field(i), strings.TrimPrefix(path+"."+key, "."), fn)
		}
	case v.Kind() == reflect.Pointer:
		eachLeaf(v.Elem(), path, fn)
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct:
		eachLeaf(v.Index(0), path, fn)
	default:
		fn(path, v)
	}
}

// another gives a leaf another value.
func another(v reflect.Value) {
	switch v.Kind() {
	case reflect.Slice:
		item := reflect.New(v.Type().Elem()).Elem()
		item.Set(v.Index(0))
		another(item)
		list := reflect.MakeSlice(v.Type(), 1, 1)
		list.Index(0).Set(item)
		v.Set(list)
	case reflect.Map:
		other := reflect.MakeMap(v.Type())
		other.SetMapIndex(reflect.ValueOf("tag1"), reflect.ValueOf("y"))
		v.Set(other)
	case reflect.String:
		v.SetString("y")
	case reflect.Int, reflect.Int64:
		v.SetInt(2)
	case reflect.Float64:
		v.SetFloat(2)
	case reflect.Bool:
		v.SetBool(false)
	}
}

// large is as large as a reload is promised to be fast for.
func large() *config.Config {
	c := config.Default()
	for i := range 1_000 {
		c.Pools = append(c.Pools, pool(fmt.Sprint("pool", i), "a", "b", "c"))
	}
	for i := range 10_000 {
		c.Routes = append(c.Routes, proxied(fmt.Sprint("route", i), "pool0"))
	}
	return c
}

func BenchmarkBetweenLarge(b *testing.B) {
	from, to := large(), large()
	for i := range 100 {
		to.Pools[i].Limits.Total = 9
		to.Routes[i].Proxy.Timeout = 9
	}
	b.ReportAllocs()
	for b.Loop() {
		Between(from, to)
	}
}
