package load

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/viper"

	"lb/internal/config"
)

// The variables of the environment profile. They are no keys of the file.
const (
	poolEnv    = "BACKEND_POOL" // host:port,host:port
	listenEnv  = "LB_LISTEN"    // default :80
	metricsEnv = "METRICS_PORT" // default 8000
)

// Demo returns the configuration that the demo, the environment profile and
// the packaged deployment share: a pool named backends; GET /login to one of
// them, tried once more elsewhere when it fails; POST /register and POST
// /changePassword to all of them; and /metrics. listen is the address of the
// public listener, admin that of the admin listener. Nothing is kept over a
// restart: who tries lb, or runs it in a container without a volume, has no
// place for it. The result is complete, but not judged.
func Demo(listen, admin string, backends []config.Backend) *config.Config {
	var (
		listener config.Listener
		pool     config.Pool
		login    config.Proxy
	)
	listener.SetDefaults()
	listener.Name, listener.Address = "public", listen
	pool.SetDefaults()
	pool.Name, pool.Backends = "backends", backends
	login.SetDefaults()
	login.Pool = pool.Name
	login.Retry.On = []string{"reset", "500", "502", "503", "504"}
	toAll := func() *config.Fanout {
		f := new(config.Fanout)
		f.SetDefaults()
		f.Pool = pool.Name
		return f
	}

	c := config.Default()
	c.Admin.Address = admin
	c.Storage.Path = ""
	c.Listeners = []config.Listener{listener}
	c.Pools = []config.Pool{pool}
	c.Routes = []config.Route{
		{Name: "login", Match: config.Match{Methods: []string{"GET"}, Path: "/login"}, Proxy: &login},
		{Name: "register", Match: config.Match{Methods: []string{"POST"}, Path: "/register"}, Fanout: toAll()},
		{Name: "change-password", Match: config.Match{Methods: []string{"POST"}, Path: "/changePassword"}, Fanout: toAll()},
		{Name: "metrics", Match: config.Match{Path: "/metrics"}, Metrics: true},
	}
	c.Complete()
	return c
}

// fromEnvironment makes the configuration of the environment profile. Problems
// name the variable, and the entry in it.
func fromEnvironment(pool string, v *viper.Viper, opts Options) (*config.Config, []config.Problem, error) {
	d := newDecoder()
	listen := envOr(listenEnv, ":80")
	d.sources["listeners[0].address"] = listenEnv
	c := Demo(listen, config.Default().Admin.Address, profileBackends(pool))
	for i := range c.Pools[0].Backends {
		d.sources[fmt.Sprintf("pools[0].backends[%d]", i)] = fmt.Sprintf("%s, entry %d", poolEnv, i+1)
	}
	c.Metrics.Address = ":" + envOr(metricsEnv, "8000")
	d.sources["metrics.address"] = metricsEnv
	c.Shutdown.Drain = profileDrain
	return d.finish(c, v, opts)
}

// profileDrain is within the 10 s that Docker gives a container to stop.
const profileDrain = config.Duration(8 * time.Second)

func envOr(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

// profileBackends splits BACKEND_POOL. The id of a backend is its host, unless
// that is an IP address or stands twice.
func profileBackends(pool string) []config.Backend {
	var backends []config.Backend
	hosts := make(map[string]int)
	for entry := range strings.SplitSeq(pool, ",") {
		var b config.Backend
		b.SetDefaults()
		b.Address = strings.TrimSpace(entry)
		backends = append(backends, b)
		hosts[host(b.Address)]++
	}
	for i, b := range backends {
		name := host(b.Address)
		if _, err := netip.ParseAddr(name); err != nil && hosts[name] == 1 {
			backends[i].ID = name
		}
	}
	return backends
}

// host returns the host of host:port, or "".
func host(address string) string {
	name, _, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	return name
}
