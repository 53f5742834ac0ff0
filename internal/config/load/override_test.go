package load

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/config"
)

func TestScalars(t *testing.T) {
	var names []string
	for _, s := range scalars {
		names = append(names, s.path+" "+s.env)
	}
	require.Equal(t, []string{
		"registration.enabled LB_REGISTRATION_ENABLED",
		"registration.ttl LB_REGISTRATION_TTL",
		"registration.token_env LB_REGISTRATION_TOKEN_ENV",
		"registration.route_prefix LB_REGISTRATION_ROUTE_PREFIX",
		"registration.max_instances LB_REGISTRATION_MAX_INSTANCES",
		"registration.max_pools LB_REGISTRATION_MAX_POOLS",
		"registration.limits.per_backend LB_REGISTRATION_LIMITS_PER_BACKEND",
		"registration.limits.total LB_REGISTRATION_LIMITS_TOTAL",
		"registration.limits.queue.limit LB_REGISTRATION_LIMITS_QUEUE_LIMIT",
		"registration.limits.queue.timeout LB_REGISTRATION_LIMITS_QUEUE_TIMEOUT",
		"registration.limits.queue.order LB_REGISTRATION_LIMITS_QUEUE_ORDER",
		"admin.address LB_ADMIN_ADDRESS",
		"admin.token_env LB_ADMIN_TOKEN_ENV",
		"metrics.address LB_METRICS_ADDRESS",
		"storage.path LB_STORAGE_PATH",
		"storage.key_env LB_STORAGE_KEY_ENV",
		"reload.watch LB_RELOAD_WATCH",
		"shutdown.readiness LB_SHUTDOWN_READINESS",
		"shutdown.drain LB_SHUTDOWN_DRAIN",
		"log.level LB_LOG_LEVEL",
		"log.format LB_LOG_FORMAT",
		"log.access.enabled LB_LOG_ACCESS_ENABLED",
		"log.access.sample LB_LOG_ACCESS_SAMPLE",
	}, names)
}

const overridden = small + `admin: { address: "127.0.0.1:1111" }
shutdown: { drain: 11s }
log: { level: warn }
`

func TestEnvironmentOverFile(t *testing.T) {
	t.Setenv("MY_TOKEN", "secret")
	for name, value := range map[string]string{
		"LB_ADMIN_ADDRESS":      ":2222",
		"LB_ADMIN_TOKEN_ENV":    "MY_TOKEN",
		"LB_ADMIN_TOKEN":        "not a key",
		"LB_METRICS_ADDRESS":    ":3333",
		"LB_STORAGE_PATH":       "/var/lib/lb/other.db",
		"LB_SHUTDOWN_READINESS": "2s",
		"LB_SHUTDOWN_DRAIN":     "1m",
		"LB_LOG_LEVEL":          "debug",
		"LB_LOG_FORMAT":         "console",
		"LB_LOG_ACCESS_ENABLED": "False",
		"LB_LOG_ACCESS_SAMPLE":  "0.5",
		"LB_LOG":                "no key, and does not hide those below it",
		"LB_LOG_ACCESS":         "nor this",
	} {
		t.Setenv(name, value)
	}
	for name, value := range map[string]string{
		"LB_REGISTRATION_ENABLED":              "true",
		"LB_REGISTRATION_TTL":                  "20s",
		"LB_REGISTRATION_TOKEN_ENV":            "LB_REGISTRATION_TOKEN",
		"LB_REGISTRATION_TOKEN":                "secret of backends",
		"LB_REGISTRATION_ROUTE_PREFIX":         "/rpc/",
		"LB_REGISTRATION_MAX_POOLS":            "7",
		"LB_REGISTRATION_LIMITS_QUEUE_LIMIT":   "9",
		"LB_REGISTRATION_LIMITS_QUEUE_TIMEOUT": "3s",
	} {
		t.Setenv(name, value)
	}
	c, warnings, err := Bytes("lb.yaml", []byte(overridden), Options{})
	require.NoError(t, err)
	require.Equal(t, []string{
		"LB_LOG: is not read; did you mean LB_LOG_LEVEL?",
		"LB_LOG_ACCESS: is not read; did you mean LB_LOG_ACCESS_ENABLED?",
	}, texts(warnings), "a variable that another names is read")
	r := config.Default().Registration
	r.Enabled, r.TTL, r.TokenEnv, r.RoutePrefix, r.MaxPools = true, config.Duration(20*time.Second), "LB_REGISTRATION_TOKEN", "/rpc/", 7
	r.Limits.Queue.Limit, r.Limits.Queue.Timeout = 9, config.Duration(3*time.Second)
	require.Equal(t, r, c.Registration)
	require.Equal(t, config.Admin{Address: ":2222", TokenEnv: "MY_TOKEN"}, c.Admin)
	require.Equal(t, ":3333", c.Metrics.Address)
	require.Equal(t, "/var/lib/lb/other.db", c.Storage.Path)
	require.Equal(t, config.Shutdown{Readiness: config.Duration(2 * time.Second), Drain: config.Duration(time.Minute)}, c.Shutdown)
	require.Equal(t, config.Log{Level: "debug", Format: "console", Access: config.AccessLog{Sample: 0.5}}, c.Log)
}

func TestCommandLineOverEnvironment(t *testing.T) {
	t.Setenv("LB_ADMIN_ADDRESS", "127.0.0.1:2222")
	t.Setenv("LB_SHUTDOWN_DRAIN", "")
	c, _, err := Bytes("lb.yaml", []byte(overridden), Options{Overrides: map[string]string{
		"admin.address": "127.0.0.1:4444",
		"log.level":     "error",
	}})
	require.NoError(t, err)
	require.Equal(t, "127.0.0.1:4444", c.Admin.Address)
	require.Equal(t, "error", c.Log.Level)
	require.Equal(t, 11*time.Second, c.Shutdown.Drain.D(), "an empty variable is none")
}

func TestBadOverrides(t *testing.T) {
	for name, value := range map[string]string{
		"LB_SHUTDOWN_DRAIN":     "30",
		"LB_LOG_LEVEL":          "inf",
		"LB_LOG_ACCESS_ENABLED": "maybe",
		"LB_LOG_ACCESS_SAMPLE":  "NaN",
		"LB_LOG_FORMAT":         "\xff",
		"LB_REGISTRATION_TTL":   "1d",
		"LB_METRICS_ADDRESS":    "127.0.0.1:8080",
		"LB_STORAGE_PATH":       "/var/lib/lb/",
	} {
		t.Setenv(name, value)
	}
	_, _, err := Bytes("lb.yaml", []byte(overridden+"frob: 1\n"), Options{Overrides: map[string]string{
		"admin.adress":         "x:1",
		"listeners[0].address": ":1",
		"admin.address":        "nowhere",
	}})
	require.EqualError(t, err, `admin.adress (command line): cannot be overridden; did you mean "admin.address"?
listeners[0].address (command line): cannot be overridden; there are registration.enabled, registration.ttl, registration.token_env, registration.route_prefix, registration.max_instances, registration.max_pools, registration.limits.per_backend, registration.limits.total, registration.limits.queue.limit, registration.limits.queue.timeout, registration.limits.queue.order, admin.address, admin.token_env, metrics.address, storage.path, storage.key_env, reload.watch, shutdown.readiness, shutdown.drain, log.level and 3 more
registration.ttl (LB_REGISTRATION_TTL): unknown unit "d" in "1d"; a day is 24h
shutdown.drain (LB_SHUTDOWN_DRAIN): expects a duration such as 250ms, not 30
log.format (LB_LOG_FORMAT): expects text, not "\xff"
log.access.enabled (LB_LOG_ACCESS_ENABLED): expects true or false, not "maybe"
log.access.sample (LB_LOG_ACCESS_SAMPLE): expects a number, not "NaN"
storage.path (LB_STORAGE_PATH): "/var/lib/lb/" is a directory, not a file; write "/var/lib/lb/lb.db"
log.level (LB_LOG_LEVEL): no level "inf"; did you mean "info"?
admin.address (command line): "nowhere" has no port; write host:port, :port or unix:/path
metrics.address (LB_METRICS_ADDRESS): "127.0.0.1:8080" is already taken by listeners[0].address; choose another address or port
frob (line 6): unknown key "frob"; there are listeners, pools, routes, registration, admin, metrics, storage, reload, shutdown, log`)
}

func TestMisspeltVariables(t *testing.T) {
	c := config.Default()
	c.Storage.KeyEnv = "LB_STORAGE_KEY"
	require.Equal(t, []string{
		"LB_ADMIN_ADRESS: is not read; did you mean LB_ADMIN_ADDRESS?",
		"LB_LOG_LEVLE: is not read; did you mean LB_LOG_LEVEL?",
	}, texts(misspelt([]string{
		"LB_LOG_LEVLE=info", "LB_ADMIN_ADRESS=x", "LB_LOG_LEVEL=info", "LB_LISTEN=:80", "LB_ADMIN_TOKEN=x",
		"LB_SERVICE_HOST=10.0.0.1", "LB_PORT_80_TCP_ADDR=10.0.0.1", "HOME=/", "LB_=", "=",
		"LB_STORAGE_KEY=x",
	}, c)))

	t.Setenv("LB_SHUTDOWN_DRIAN", "1s")
	_, warnings, err := Bytes("lb.yaml", []byte(small), Options{})
	require.NoError(t, err)
	require.Equal(t, []string{"LB_SHUTDOWN_DRIAN: is not read; did you mean LB_SHUTDOWN_DRAIN?"}, texts(warnings))
}
