package config

import "time"

// DefaultPolicy is the policy of a pool that names none.
const DefaultPolicy = "roundrobin"

// Default returns a configuration without listeners, pools and routes, with
// every scalar at its default.
func Default() *Config {
	c := new(Config)
	c.SetDefaults()
	return c
}

// SetDefaults sets what holds where the file is silent: admin on loopback, no
// metrics listener, storage in lb.db, 30 s of drain, JSON logs at level info
// with every request.
func (c *Config) SetDefaults() {
	c.Registration.SetDefaults()
	c.Admin.SetDefaults()
	c.Storage = Storage{Path: "lb.db"}
	c.Reload = Reload{Watch: true}
	c.Shutdown = Shutdown{Drain: seconds(30)}
	c.Log.SetDefaults()
}

// Complete fills what depends on other values, once all is read: a backend's
// ID is its address if none was given, and a pool's policy is DefaultPolicy.
func (c *Config) Complete() {
	for i := range c.Pools {
		p := &c.Pools[i]
		if p.Policy.Name == "" {
			p.Policy.Name = DefaultPolicy
		}
		for j := range p.Backends {
			if b := &p.Backends[j]; b.ID == "" {
				b.ID = b.Address
			}
		}
	}
}

// SetDefaults sets :8080 and the bounds on slow and large requests.
func (l *Listener) SetDefaults() {
	*l = Listener{
		Address:  ":8080",
		Timeouts: ListenerTimeouts{Header: seconds(10), BodyIdle: seconds(30), WriteIdle: seconds(30), Idle: seconds(75)},
		Limits:   ListenerLimits{HeaderBytes: 64 << 10, HeaderFields: 100},
	}
}

// SetDefaults sets the policy, the retry budget, when a backend is lagging, and
// the transport's bounds. There are no active checks and no breaker.
func (p *Pool) SetDefaults() {
	*p = Pool{
		Policy:      Policy{Name: DefaultPolicy},
		Limits:      defaultLimits,
		RetryBudget: RetryBudget{Ratio: 0.2, PerSecond: 3},
		Lagging:     Lagging{After: seconds(2)},
		Transport: Transport{
			Connect:           seconds(2),
			ResponseHeader:    seconds(60),
			Idle:              seconds(55),
			MaxIdlePerBackend: 256,
		},
	}
}

// defaultLimits bound nothing, and nobody waits.
var defaultLimits = Limits{Queue: Queue{Timeout: seconds(5), Order: QueueFIFO}}

// SetDefaults sets what holds once registration is enabled: 90 s of silence,
// loopback and private addresses, and pools at /call/ and their name.
func (r *Registration) SetDefaults() {
	*r = Registration{
		TTL: seconds(90), RoutePrefix: "/call/", Allow: []string{AllowLoopback, AllowPrivate},
		MaxInstances: 10000, MaxPools: 1000, Limits: defaultLimits,
	}
}

// SetDefaults sets weight 1. The ID follows in Complete.
func (b *Backend) SetDefaults() { *b = Backend{Weight: 1} }

// SetDefaults sets GET / every 2 s, where a status from 200 to 399 within 1 s
// passes; two passes bring a backend up, three failures take it down, and the
// first result decides alone.
func (h *Health) SetDefaults() {
	*h = Health{
		Type:     CheckHTTP,
		Path:     "/",
		Method:   "GET",
		Statuses: "200-399",
		Interval: seconds(2),
		Timeout:  seconds(1),
		Rise:     2,
		Fall:     3,
		Initial:  InitialProbe,
	}
}

// SetDefaults sets five failures in a row, or half of at least 20 requests
// within 10 s; then 10 s to 5 min open, and a trial of three requests. At most
// half of a pool is out.
func (b *Breaker) SetDefaults() {
	*b = Breaker{
		Consecutive:  5,
		Ratio:        0.5,
		MinRequests:  20,
		Window:       seconds(10),
		Open:         seconds(10),
		MaxOpen:      seconds(300),
		HalfOpen:     3,
		MaxOpenShare: 0.5,
	}
}

// SetDefaults sets 60 s to the response head and one retry, for reset
// connections and the statuses 502, 503 and 504.
func (p *Proxy) SetDefaults() {
	*p = Proxy{
		Timeout: seconds(60),
		Retry:   Retry{Attempts: 1, On: []string{"reset", "502", "503", "504"}},
	}
}

// SetDefaults sets success 201, the statuses that reject a write, and the
// bounds on waiting, retrying and what may be pending.
func (f *Fanout) SetDefaults() {
	*f = Fanout{
		Success:        []int{201},
		Reject:         []int{400, 401, 403, 404, 405, 409, 410, 413, 415, 422},
		Already:        []int{409},
		Ack:            "all",
		Wait:           seconds(30),
		AttemptTimeout: seconds(10),
		Backoff: Backoff{
			Base:        seconds(1),
			Cap:         seconds(64),
			Jitter:      Duration(100 * time.Millisecond),
			MaxAttempts: 100,
			MaxAge:      Duration(24 * time.Hour),
		},
		MaxBody:         1 << 20,
		MaxPending:      100000,
		MaxPendingBytes: 1 << 30,
	}
}

// SetDefaults sets loopback, port 9901.
func (a *Admin) SetDefaults() { *a = Admin{Address: "127.0.0.1:9901"} }

// SetDefaults sets level info, format json, and every request in the access log.
func (l *Log) SetDefaults() {
	*l = Log{Level: "info", Format: "json", Access: AccessLog{Enabled: true, Sample: 1}}
}

func seconds(n int) Duration { return Duration(time.Duration(n) * time.Second) }
