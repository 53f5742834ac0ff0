package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCheckTellsPoliciesLimitsAndRegistration(t *testing.T) {
	clean(t)
	file := filepath.Join(t.TempDir(), "lb.yaml")
	require.NoError(t, os.WriteFile(file, []byte(`listeners: [{ name: public }]
pools:
  - name: carts
    policy: { name: hash, key: "header:X-User", bounded_load: 1.25 }
    backends: [{ address: "a:1", weight: 2 }]
    limits: { per_backend: 10, total: 25, queue: { limit: 100 } }
  - name: scored
    policy:
      name: custom
      score: |
        inflight / weight
          + ewma_ms * (labels.zone == "a" ? 1.0 : 2.5)
    backends: [{ address: "a:1" }, { address: "b:1" }]
    limits: { total: 5 }
  - { name: any, policy: leastconn, registration: true }
routes:
  - { name: all, match: {}, proxy: { pool: carts } }
  - { name: scored, match: { path_prefix: /scored }, proxy: { pool: scored } }
  - { name: any, match: { path_prefix: /any }, proxy: { pool: any } }
registration: { enabled: true, ttl: 30s, max_pools: 5, limits: { per_backend: 3, queue: { limit: 9, timeout: 1500ms } } }
`), 0o600))
	stdout, failure := lb(t, "check", "-c", file)
	require.Empty(t, failure)
	require.Equal(t, `LISTENER  ADDRESS
public    :8080
(admin)   127.0.0.1:9901

ROUTE   HOSTS  METHODS  PATH       DOES
scored  any    any      /scored/…  one of scored
any     any    any      /any/…     one of any
all     any    any      any        one of carts

POOL    POLICY                                                                BACKEND  ADDRESS  WEIGHT  HEALTH  BREAKER  LIMITS                   QUEUE
carts   hash(header:X-User, bounded_load 1.25)                                a:1      a:1      2       off     off      10 a backend, 25 in all  100 for 5s
scored  custom(inflight / weight + ewma_ms * (labels.zone == "a" ? 1.0 : 2…)  a:1      a:1      1       off     off      5 in all                 off
scored  custom(inflight / weight + ewma_ms * (labels.zone == "a" ? 1.0 : 2…)  b:1      b:1      1       off     off      5 in all                 off
any     least_conn                                                            (none)                    off     off      off                      off

REGISTRATION                    TTL  ALLOWED           MAX-INSTANCES  MAX-POOLS  LIMITS       QUEUE
into any, new pools at /call/…  30s  loopback,private  10000          5          3 a backend  9 for 1.5s
`, stdout)
}
