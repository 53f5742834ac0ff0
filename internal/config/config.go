// Package config holds the configuration as plain structs, their defaults and
// their validation. It reads no file and knows no YAML library: package load
// fills the structs, package app compiles them.
package config

import "time"

// Config is one whole configuration: what the file, the environment and the
// flags said, over the defaults.
type Config struct {
	Listeners []Listener `yaml:"listeners"`
	Pools     []Pool     `yaml:"pools"`
	Routes    []Route    `yaml:"routes"`
	// Registration says whether and how backends register themselves.
	Registration Registration `yaml:"registration"`
	Admin        Admin        `yaml:"admin"`
	Metrics      Metrics      `yaml:"metrics"`
	Storage      Storage      `yaml:"storage"`
	Reload       Reload       `yaml:"reload"`
	Shutdown     Shutdown     `yaml:"shutdown"`
	Log          Log          `yaml:"log"`
}

// Listener is one bound socket of the data plane.
type Listener struct {
	// Name is unique among the listeners.
	Name string `yaml:"name"`
	// Address is host:port, :port, or unix:/path. Port 0 lets the system choose.
	Address string `yaml:"address"`
	// TrustedProxies lists the addresses or CIDR prefixes of the peers whose
	// X-Forwarded-* and X-Request-Id are believed; the word "unix" stands for
	// every peer of a unix socket. Default: nobody.
	TrustedProxies []string         `yaml:"trusted_proxies"`
	Timeouts       ListenerTimeouts `yaml:"timeouts"`
	Limits         ListenerLimits   `yaml:"limits"`
}

// ListenerTimeouts bounds how long a client may keep a connection waiting.
type ListenerTimeouts struct {
	// Header runs from the first byte of a request to the end of its head.
	Header Duration `yaml:"header"`
	// BodyIdle is the longest pause between two reads of a request body.
	BodyIdle Duration `yaml:"body_idle"`
	// WriteIdle is the longest that one write to the client may block.
	WriteIdle Duration `yaml:"write_idle"`
	// Idle is how long a kept connection may wait for its next request.
	Idle Duration `yaml:"idle"`
}

// ListenerLimits bounds what a client may send, and how many may come.
type ListenerLimits struct {
	// HeaderBytes is the largest request head, in bytes.
	HeaderBytes Size `yaml:"header_bytes"`
	// HeaderFields is the largest number of field lines in a request head.
	HeaderFields int `yaml:"header_fields"`
	// Connections is how many connections are open at most; further ones wait
	// in the kernel's backlog. 0 means no limit.
	Connections int `yaml:"connections"`
}

// Pool is a named set of backends with one policy.
type Pool struct {
	Name     string    `yaml:"name"`
	Policy   Policy    `yaml:"policy"`
	Backends []Backend `yaml:"backends"`
	// Registration lets backends register into this pool.
	Registration bool `yaml:"registration"`
	// Limits bound what is in flight.
	Limits Limits `yaml:"limits"`
	// Health is the active check of each backend; nil: none.
	Health *Health `yaml:"health,omitempty"`
	// Breaker watches each backend's traffic; nil: none.
	Breaker     *Breaker    `yaml:"breaker,omitempty"`
	RetryBudget RetryBudget `yaml:"retry_budget"`
	// SlowStart is how long a backend that returns takes to its full share of
	// the work, at most 1 h. 0: it has that at once.
	SlowStart Duration  `yaml:"slow_start"`
	Lagging   Lagging   `yaml:"lagging"`
	Transport Transport `yaml:"transport"`
}

// Policy names the balancing algorithm. In the file it is a name, or a mapping
// with `name` and the policy's own settings.
type Policy struct {
	Name string `yaml:"name"`
	// Key is what hash spreads by, in the form that ParseHashKey reads.
	Key string `yaml:"key,omitempty"`
	// BoundedLoad is, for hash, how many times its fair share of what is in
	// flight a backend may have, 1 to 100; 0: any number.
	BoundedLoad float64 `yaml:"bounded_load,omitempty"`
	// Score is the expression of custom: the backend with the lowest value wins.
	Score string `yaml:"score,omitempty"`
}

// Limits bound what is in flight in a pool, requests and delivery attempts
// alike.
type Limits struct {
	// PerBackend is how many may be in flight at one backend, Total how many in
	// the pool; 0: any number.
	PerBackend int `yaml:"per_backend"`
	Total      int `yaml:"total"`
	// Queue is where requests wait for a slot.
	Queue Queue `yaml:"queue"`
}

// Queue is where requests wait that find no free slot.
type Queue struct {
	// Limit is how many requests may wait; 0: none, they are refused at once.
	Limit int `yaml:"limit"`
	// Timeout is the longest that one waits.
	Timeout Duration `yaml:"timeout"`
	// Order is QueueFIFO.
	Order string `yaml:"order"`
}

// QueueFIFO is the order of a queue: first in, first out.
const QueueFIFO = "fifo"

// Registration says whether and how backends register themselves on the admin
// listener.
type Registration struct {
	Enabled bool `yaml:"enabled"`
	// TTL is how long a backend that names none may stay silent, 1 s to 24 h.
	TTL Duration `yaml:"ttl"`
	// TokenEnv names the environment variable that holds the bearer token for
	// registering and unregistering, and for nothing else; the admin token is
	// good for both, too. Empty: the admin token alone.
	TokenEnv string `yaml:"token_env"`
	// RoutePrefix begins the path at which a pool made by registration is
	// served; its name follows. It begins and ends with a slash.
	RoutePrefix string `yaml:"route_prefix"`
	// Allow lists the addresses that may be registered: AllowLoopback,
	// AllowPrivate, IP addresses and CIDR prefixes.
	Allow []string `yaml:"allow"`
	// MaxInstances bounds how many backends may be registered at once, MaxPools
	// how many pools registration may make.
	MaxInstances int `yaml:"max_instances"`
	MaxPools     int `yaml:"max_pools"`
	// Limits are those of each pool that registration makes.
	Limits Limits `yaml:"limits"`
}

// The words of Registration.Allow.
const (
	// AllowLoopback stands for 127.0.0.0/8 and ::1.
	AllowLoopback = "loopback"
	// AllowPrivate stands for RFC 1918 and RFC 4193 (ULA) addresses.
	AllowPrivate = "private"
)

// Backend is one server of a pool.
type Backend struct {
	// Address is host:port. A host name is resolved at each dial.
	Address string `yaml:"address"`
	// ID is unique in the pool. Default: the address.
	ID string `yaml:"id"`
	// Weight is the share of work for policies that know weights, 1 to 1000.
	Weight int `yaml:"weight"`
	// Labels are free words of the user; their case is kept.
	Labels map[string]string `yaml:"labels"`
}

// Health is an active check: lb asks each backend of a pool again and again,
// whether it serves or not, and takes out the one that fails.
type Health struct {
	// Type is CheckHTTP, CheckTCP, CheckGRPC or CheckExec. The values that
	// belong to another type stay at their defaults.
	Type string `yaml:"type"`
	// Path, with a query perhaps, is what an HTTP check asks for.
	Path   string `yaml:"path"`
	Method string `yaml:"method"`
	// Port is dialled instead of the backend's own, unless it is 0. An exec
	// check has none.
	Port int `yaml:"port"`
	// Headers go out with an HTTP check. One named Host replaces the backend's
	// address as the request's host.
	Headers []HeaderValue `yaml:"headers"`
	// Statuses are those that pass an HTTP check, in the form that
	// ParseStatuses reads.
	Statuses string `yaml:"statuses"`
	// Body is a regular expression in RE2 syntax. Unless it is empty, it must
	// match somewhere in the first 64 KiB of the body.
	Body string `yaml:"body"`
	// Service is what a gRPC check asks for; empty is the server as a whole.
	Service string `yaml:"service"`
	// Command is what an exec check starts: a program and its arguments, with
	// no shell between. Exit code 0 passes.
	Command []string `yaml:"command"`
	// Interval is the longest time from the start of one check of a backend to
	// that of the next, 100 ms to 24 h.
	Interval Duration `yaml:"interval"`
	// Timeout bounds one check, and is not longer than Interval.
	Timeout Duration `yaml:"timeout"`
	// Rise is how many checks in a row must pass for a backend to come up, 1 to
	// 100.
	Rise int `yaml:"rise"`
	// Fall is how many checks in a row must fail for it to go down, 1 to 100.
	Fall int `yaml:"fall"`
	// Initial is what holds before the first result: InitialUp, InitialDown, or
	// InitialProbe, where the first result decides alone, and nothing is
	// accepted until each backend has one.
	Initial string `yaml:"initial"`
}

// The types of an active check.
const (
	CheckHTTP = "http"
	CheckTCP  = "tcp"
	CheckGRPC = "grpc"
	CheckExec = "exec"
)

// What a backend is before its first check has a result.
const (
	InitialProbe = "probe"
	InitialUp    = "up"
	InitialDown  = "down"
)

// HeaderValue is one header field.
type HeaderValue struct {
	Name  string `yaml:"name"`
	Value string `yaml:"value"`
}

// Breaker takes a backend out whose traffic fails: Consecutive times in a row,
// or to Ratio of what came within Window. It is back, on trial at first, when
// its time is over.
type Breaker struct {
	// Consecutive is how many failures in a row open the breaker; 0: any number
	// may.
	Consecutive int `yaml:"consecutive"`
	// Ratio is the share of failures within Window that opens it, 0 to 1; 0:
	// any share may be.
	Ratio float64 `yaml:"ratio"`
	// MinRequests is how many requests Window must hold for Ratio to count.
	MinRequests int `yaml:"min_requests"`
	// Window is the time that Ratio looks back, at least 1 s.
	Window Duration `yaml:"window"`
	// Open is how long the breaker stays open the first time. That doubles, to
	// MaxOpen, each time that it opens again before it has been closed for as
	// long as it was open.
	Open    Duration `yaml:"open"`
	MaxOpen Duration `yaml:"max_open"`
	// HalfOpen is how many trial requests must succeed for the breaker to close
	// again, 1 to 1000. The first that fails opens it.
	HalfOpen int `yaml:"half_open"`
	// MaxOpenShare is the largest share of a pool whose breakers may be open at
	// once, above 0 and at most 1, rounded down to whole backends. They are
	// never all of it.
	MaxOpenShare float64 `yaml:"max_open_share"`
}

// Lagging says when a backend is behind on its deliveries, and whether it
// serves reads meanwhile.
type Lagging struct {
	// After is how old a delivery may be before its backend is lagging.
	After Duration `yaml:"after"`
	// Exclude keeps reads away from a lagging backend, unless all lag.
	Exclude bool `yaml:"exclude"`
}

// RetryBudget bounds retries (not redispatches after a failed dial) to a share
// of the pool's requests plus a small constant rate.
type RetryBudget struct {
	// Ratio is how many retries one request pays for, 0 to 1.
	Ratio float64 `yaml:"ratio"`
	// PerSecond is how many retries a second are free.
	PerSecond float64 `yaml:"per_second"`
}

// Transport shapes the connections from lb to the backends of a pool.
type Transport struct {
	// Connect bounds name resolution and dialling.
	Connect Duration `yaml:"connect"`
	// ResponseHeader bounds the wait for the response head once the request
	// has been written.
	ResponseHeader Duration `yaml:"response_header"`
	// Idle is how long an unused connection to a backend is kept. It should be
	// shorter than the backend's own keep-alive timeout.
	Idle Duration `yaml:"idle"`
	// MaxIdlePerBackend is how many unused connections are kept per backend.
	MaxIdlePerBackend int `yaml:"max_idle_per_backend"`
}

// Route is a match rule and what to do with the requests it matches: exactly
// one of Proxy, Fanout, Metrics and Respond.
type Route struct {
	Name  string `yaml:"name"`
	Match Match  `yaml:"match"`
	// Required makes /health answer 503 while the route's pool has no eligible
	// backend.
	Required bool     `yaml:"required"`
	Proxy    *Proxy   `yaml:"proxy,omitempty"`
	Fanout   *Fanout  `yaml:"fanout,omitempty"`
	Metrics  bool     `yaml:"metrics,omitempty"`
	Respond  *Respond `yaml:"respond,omitempty"`
}

// Match says which requests a route takes. Empty parts match everything.
type Match struct {
	// Hosts are exact host names, without port; case does not matter.
	Hosts []string `yaml:"hosts"`
	// Methods are upper-case method names. GET covers HEAD.
	Methods []string `yaml:"methods"`
	// Path matches one path exactly.
	Path string `yaml:"path,omitempty"`
	// PathPrefix matches whole path segments: /api matches /api and /api/x,
	// but not /apix.
	PathPrefix string `yaml:"path_prefix,omitempty"`
}

// Proxy sends a request to one backend of a pool.
type Proxy struct {
	Pool string `yaml:"pool"`
	// Timeout runs to the response head, over all attempts.
	Timeout Duration `yaml:"timeout"`
	Retry   Retry    `yaml:"retry"`
}

// Retry says when a request that failed may be tried on another backend. A
// failed dial is outside of it: it sent nothing, so the request simply goes to
// the next backend.
type Retry struct {
	// Attempts is the number of tries after the first.
	Attempts int `yaml:"attempts"`
	// On lists what is retried: "reset" (the connection ended before a
	// response head) and response statuses from 400 to 599.
	On []string `yaml:"on"`
	// Keyed also allows retries of requests that carry an Idempotency-Key.
	Keyed bool `yaml:"keyed"`
}

// Fanout sends a request to every backend of a pool, until each has answered
// with a status in Success.
type Fanout struct {
	Pool string `yaml:"pool"`
	// Success lists the statuses that settle a delivery.
	Success []int `yaml:"success"`
	// Reject lists the statuses that, while no backend has accepted the write,
	// are held instead of retried. Empty: everything is retried.
	Reject []int `yaml:"reject"`
	// Already lists the statuses that count as success for a delivery whose
	// earlier attempt has an unknown outcome.
	Already []int `yaml:"already"`
	// Ack says whose success the client waits for: all, first or quorum.
	Ack string `yaml:"ack"`
	// Wait is the longest the client waits before it gets 202.
	Wait Duration `yaml:"wait"`
	// AttemptTimeout bounds one attempt from dial to the response's end.
	AttemptTimeout Duration `yaml:"attempt_timeout"`
	Backoff        Backoff  `yaml:"backoff"`
	// OrderBy says which writes succeed on each backend in the order in which
	// they came.
	OrderBy OrderBy `yaml:"order_by"`
	// MaxBody is the largest request body, in bytes.
	MaxBody Size `yaml:"max_body"`
	// MaxPending is how many writes of the route may be unsettled at once.
	MaxPending int `yaml:"max_pending"`
	// MaxPendingBytes is how many bytes of bodies and fields they may hold.
	MaxPendingBytes Size `yaml:"max_pending_bytes"`
}

// OrderBy says what of a request orders its write: the writes with the same
// value there, to the same pool, have one order. Exactly one is not nil, or none
// if nothing is ordered. In the file it is OrderNone, or a mapping with one key.
type OrderBy struct {
	// Field is the name of a field in a form, or at the top of a JSON object.
	Field *string `yaml:"field,omitempty"`
	// Header is the name of a header field.
	Header *string `yaml:"header,omitempty"`
	// JSON is a pointer into a JSON body (RFC 6901), such as /user/id.
	JSON *string `yaml:"json,omitempty"`
	// PathSegment is the number of a segment of the path, from 1.
	PathSegment *int `yaml:"path_segment,omitempty"`
}

// OrderNone is how a file says that nothing is ordered.
const OrderNone = "none"

// Backoff shapes the waits between the attempts of one delivery: before retry
// k = 0, 1, … min(Base·2^k, Cap) + U[0, Jitter].
type Backoff struct {
	Base   Duration `yaml:"base"`
	Cap    Duration `yaml:"cap"`
	Jitter Duration `yaml:"jitter"`
	// MaxAttempts is how many attempts may reach the backend before the
	// delivery is parked.
	MaxAttempts int `yaml:"max_attempts"`
	// MaxAge is how old a delivery may become before it is parked.
	MaxAge Duration `yaml:"max_age"`
}

// Respond answers by itself.
type Respond struct {
	Status int    `yaml:"status"`
	Body   string `yaml:"body"`
}

// Admin is the admin listener.
type Admin struct {
	// Address is host:port or unix:/path; anything but loopback or a unix
	// socket needs a token. Empty turns the admin listener off.
	Address string `yaml:"address"`
	// TokenEnv names the environment variable that holds the bearer token.
	TokenEnv string `yaml:"token_env"`
	// Hosts are further Host values, beside loopback, that are answered.
	Hosts []string `yaml:"hosts"`
}

// Metrics is the optional listener that serves /metrics and nothing else.
type Metrics struct {
	// Address is host:port; empty means no such listener.
	Address string `yaml:"address"`
}

// Storage is where what outlives the process is kept.
type Storage struct {
	// Path is the database's file; a relative one is below the working
	// directory. Empty: nothing outlives the process.
	Path string `yaml:"path"`
	// KeyEnv names the environment variable that holds the key, as ParseKey
	// reads it, under which the stored requests are encrypted. Empty: they are
	// not.
	KeyEnv string `yaml:"key_env"`
}

// Reload says when the configuration is read again.
type Reload struct {
	// Watch reads it when the content of its file has changed.
	Watch bool `yaml:"watch"`
}

// Shutdown shapes the stop.
type Shutdown struct {
	// Readiness is the pause between /readyz turning 503 and the drain, for
	// whoever watches it to look elsewhere.
	Readiness Duration `yaml:"readiness"`
	// Drain is the longest that open connections may take to end.
	Drain Duration `yaml:"drain"`
}

// Log shapes the operational log and the access log.
type Log struct {
	// Level is debug, info, warn or error.
	Level string `yaml:"level"`
	// Format is json or console.
	Format string    `yaml:"format"`
	Access AccessLog `yaml:"access"`
}

// AccessLog is one line a request.
type AccessLog struct {
	Enabled bool `yaml:"enabled"`
	// Sample is the share of requests that is logged, 0 to 1. Requests that
	// ended in an error of lb's own are always logged.
	Sample float64 `yaml:"sample"`
}

// Duration is a time.Duration that reads and writes as "250ms", "1m30s".
type Duration time.Duration

// D returns the plain duration.
func (d Duration) D() time.Duration { return time.Duration(d) }

// String writes the duration as time.Duration does.
func (d Duration) String() string { return time.Duration(d).String() }

// Size is a number of bytes that reads and writes as "64KiB", "1MiB", "512".
type Size int64
