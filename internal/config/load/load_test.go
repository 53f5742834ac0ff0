package load

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.yaml.in/yaml/v3"

	"lb/internal/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// stated returns what the comments at the top of a test file say must come out.
func stated(data []byte, mark string) []string {
	var lines []string
	for line := range strings.Lines(string(data)) {
		if text, ok := strings.CutPrefix(line, mark); ok {
			lines = append(lines, strings.TrimSuffix(text, "\n"))
		}
	}
	return lines
}

func texts(problems []config.Problem) []string {
	var lines []string
	for _, p := range problems {
		lines = append(lines, p.String())
	}
	return lines
}

func testFiles(t *testing.T, pattern string, least int) map[string][]byte {
	t.Helper()
	names, err := filepath.Glob(filepath.Join("testdata", pattern))
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(names), least)
	files := make(map[string][]byte)
	for _, name := range names {
		data, err := os.ReadFile(name)
		require.NoError(t, err)
		files[name] = data
	}
	return files
}

const testKey = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

// TestBadFiles compares every message of every bad file with the "# want:"
// lines at its top: all of them, in order, and no more.
func TestBadFiles(t *testing.T) {
	t.Setenv("LB_TEST_SHORT_KEY", testKey[2:])
	for name, data := range testFiles(t, "*.bad.yaml", 45) {
		t.Run(filepath.Base(name), func(t *testing.T) {
			want := stated(data, "# want: ")
			require.NotEmpty(t, want)
			c, warnings, err := File(name, Options{})
			require.Nil(t, c)
			require.Empty(t, warnings)
			var problems config.Problems
			require.ErrorAs(t, err, &problems)
			require.Equal(t, want, texts(problems))
			require.Equal(t, strings.Join(want, "\n"), err.Error())
		})
	}
}

// TestGoodFiles loads every good file, compares the warnings with the "# warn:"
// lines at its top, and reads back what Effective writes.
func TestGoodFiles(t *testing.T) {
	t.Setenv("LB_TEST_TOKEN", "secret")
	t.Setenv("LB_TEST_REGISTRATION_TOKEN", "another secret")
	t.Setenv("LB_TEST_STORAGE_KEY", testKey)
	for name, data := range testFiles(t, "*.good.yaml", 6) {
		t.Run(filepath.Base(name), func(t *testing.T) {
			c, warnings, err := File(name, Options{})
			require.NoError(t, err)
			require.Equal(t, stated(data, "# warn: "), texts(warnings))
			requireStable(t, c)
		})
	}
}

// requireStable checks that what Effective writes reads back as c, and is then
// written as before.
func requireStable(t *testing.T, c *config.Config) {
	t.Helper()
	text, err := Effective(c)
	require.NoError(t, err)
	again, _, err := Bytes("effective", text, Options{})
	require.NoError(t, err, "%s", text)
	require.Equal(t, c, again, "%s", text)
	same, err := Effective(again)
	require.NoError(t, err)
	require.Equal(t, string(text), string(same))
}

// TestFullUsesEveryKey keeps the full example full.
func TestFullUsesEveryKey(t *testing.T) {
	data, err := os.ReadFile("testdata/full.good.yaml")
	require.NoError(t, err)
	var root yaml.Node
	require.NoError(t, yaml.Unmarshal(data, &root))
	used := make(map[string]bool)
	collectKeys(root.Content[0], "", used)
	for _, key := range keysOf(reflect.TypeFor[config.Config](), "") {
		require.True(t, used[key], "the full example lacks %s", key)
	}
}

func collectKeys(n *yaml.Node, path string, used map[string]bool) {
	switch n.Kind {
	case yaml.SequenceNode:
		for _, item := range n.Content {
			collectKeys(item, path+"[]", used)
		}
	case yaml.MappingNode:
		for i := 0; i < len(n.Content); i += 2 {
			key := join(path, n.Content[i].Value)
			used[key] = true
			collectKeys(n.Content[i+1], key, used)
		}
	}
}

func keysOf(t reflect.Type, path string) []string {
	switch t.Kind() {
	case reflect.Pointer:
		return keysOf(t.Elem(), path)
	case reflect.Slice:
		return keysOf(t.Elem(), path+"[]")
	case reflect.Struct:
		var keys []string
		for _, f := range fieldsOf(t) {
			keys = append(append(keys, join(path, f.key)), keysOf(f.typ, join(path, f.key))...)
		}
		return keys
	}
	return nil
}

// TestPlannedKeysAreNotBuilt fails when a key is built but still refused.
func TestPlannedKeysAreNotBuilt(t *testing.T) {
	built := keysOf(reflect.TypeFor[config.Config](), "")
	for path, keys := range planned {
		for _, key := range keys {
			require.NotContains(t, built, join(path, key))
		}
	}
}

func TestDecodedValues(t *testing.T) {
	t.Setenv("LB_TEST_TOKEN", "secret")
	t.Setenv("LB_TEST_REGISTRATION_TOKEN", "another secret")
	t.Setenv("LB_TEST_STORAGE_KEY", testKey)
	c, _, err := File("testdata/full.good.yaml", Options{})
	require.NoError(t, err)
	require.Equal(t, map[string]string{"Zone": "a", "rack.Row": "7"}, c.Pools[0].Backends[0].Labels, "the case of keys survives")
	require.Equal(t, config.Policy{Name: "roundrobin"}, c.Pools[0].Policy, "an alias becomes its name")
	require.Equal(t, config.Policy{Name: "hash", Key: "header:X-User", BoundedLoad: 1.25}, c.Pools[1].Policy)
	require.Equal(t, config.Policy{Name: "custom", Score: "inflight / weight + ewma_ms"}, c.Pools[2].Policy)
	require.Equal(t, config.Limits{PerBackend: 50, Total: 400, Queue: config.Queue{
		Limit: 1000, Timeout: config.Duration(2 * time.Second), Order: config.QueueFIFO,
	}}, c.Pools[1].Limits)
	require.True(t, c.Pools[1].Registration)
	require.Equal(t, "/services/v1/", c.Registration.RoutePrefix)
	require.Equal(t, []string{"private", "203.0.113.7", "198.51.100.0/24", "2001:db8::/32", "0.0.0.0/0"}, c.Registration.Allow)
	require.Equal(t, "10.0.0.3:8080", c.Pools[0].Backends[2].ID)
	require.Equal(t, config.HeaderValue{Name: "Host", Value: "users.internal"}, c.Pools[0].Health.Headers[0])
	require.Equal(t, 0.34, c.Pools[0].Breaker.MaxOpenShare)
	require.Nil(t, c.Pools[1].Health)
	require.Nil(t, c.Pools[1].Breaker)
	require.Equal(t, config.Size(32<<10), c.Listeners[0].Limits.HeaderBytes)
	require.Empty(t, c.Routes[1].Proxy.Retry.On, "[] replaces a default list")
	require.Empty(t, c.Routes[2].Fanout.Reject)
	require.Equal(t, []int{200, 201, 204}, c.Routes[2].Fanout.Success)
	require.Equal(t, config.OrderBy{Field: new("userName")}, c.Routes[2].Fanout.OrderBy)
	require.Equal(t, config.OrderBy{Header: new("X-User")}, c.Routes[3].Fanout.OrderBy)
	require.Equal(t, config.OrderBy{JSON: new("/user/a~1b")}, c.Routes[4].Fanout.OrderBy)
	require.Equal(t, config.OrderBy{PathSegment: new(2)}, c.Routes[5].Fanout.OrderBy)
	require.Zero(t, c.Routes[6].Fanout.OrderBy)
	require.Equal(t, "no such route\n", c.Routes[8].Respond.Body)
	require.Equal(t, "LB_TEST_STORAGE_KEY", c.Storage.KeyEnv)
}

// TestDefaults states every default of the documentation once more.
func TestDefaults(t *testing.T) {
	c, _, err := Bytes("lb.yaml", []byte(`
listeners: [{ name: public }]
pools: [{ name: users, backends: [{ address: "server1:8080" }] }]
routes:
  - { name: read, match: { path: /a }, proxy: { pool: users } }
  - { name: write, match: { methods: [POST], path: /a }, fanout: { pool: users } }
`), Options{})
	require.NoError(t, err)
	text, err := Effective(c)
	require.NoError(t, err)
	require.Equal(t, `listeners:
  - name: public
    address: :8080
    trusted_proxies: []
    timeouts:
      header: 10s
      body_idle: 30s
      write_idle: 30s
      idle: 1m15s
    limits:
      header_bytes: 64KiB
      header_fields: 100
      connections: 0
pools:
  - name: users
    policy:
      name: roundrobin
    backends:
      - address: server1:8080
        id: server1:8080
        weight: 1
        labels: {}
    registration: false
    limits:
      per_backend: 0
      total: 0
      queue:
        limit: 0
        timeout: 5s
        order: fifo
    retry_budget:
      ratio: 0.2
      per_second: 3
    slow_start: 0s
    lagging:
      after: 2s
      exclude: false
    transport:
      connect: 2s
      response_header: 1m
      idle: 55s
      max_idle_per_backend: 256
routes:
  - name: read
    match:
      hosts: []
      methods: []
      path: /a
    required: false
    proxy:
      pool: users
      timeout: 1m
      retry:
        attempts: 1
        on: [reset, "502", "503", "504"]
        keyed: false
  - name: write
    match:
      hosts: []
      methods: [POST]
      path: /a
    required: false
    fanout:
      pool: users
      success: [201]
      reject: [400, 401, 403, 404, 405, 409, 410, 413, 415, 422]
      already: [409]
      ack: all
      wait: 30s
      attempt_timeout: 10s
      backoff:
        base: 1s
        cap: 1m4s
        jitter: 100ms
        max_attempts: 100
        max_age: 24h
      order_by: none
      max_body: 1MiB
      max_pending: 100000
      max_pending_bytes: 1GiB
registration:
  enabled: false
  ttl: 1m30s
  token_env: ""
  route_prefix: /call/
  allow: [loopback, private]
  max_instances: 10000
  max_pools: 1000
  limits:
    per_backend: 0
    total: 0
    queue:
      limit: 0
      timeout: 5s
      order: fifo
admin:
  address: 127.0.0.1:9901
  token_env: ""
  hosts: []
metrics:
  address: ""
storage:
  path: lb.db
  key_env: ""
reload:
  watch: true
shutdown:
  readiness: 0s
  drain: 30s
log:
  level: info
  format: json
  access:
    enabled: true
    sample: 1
`, string(text))
}

// TestCheckDefaults states the defaults of what is off unless present.
func TestCheckDefaults(t *testing.T) {
	c, _, err := Bytes("lb.yaml", []byte(`
listeners: [{ name: public }]
pools: [{ name: users, backends: [], health: {}, breaker: {} }]
routes: []
`), Options{})
	require.NoError(t, err)
	text, err := Effective(c)
	require.NoError(t, err)
	require.Contains(t, string(text), `
    backends: []
    registration: false
    limits:
      per_backend: 0
      total: 0
      queue:
        limit: 0
        timeout: 5s
        order: fifo
    health:
      type: http
      path: /
      method: GET
      port: 0
      headers: []
      statuses: 200-399
      body: ""
      service: ""
      command: []
      interval: 2s
      timeout: 1s
      rise: 2
      fall: 3
      initial: probe
    breaker:
      consecutive: 5
      ratio: 0.5
      min_requests: 20
      window: 10s
      open: 10s
      max_open: 5m
      half_open: 3
      max_open_share: 0.5
    retry_budget:
`)
}

const small = `listeners: [{ name: public }]
routes: [{ name: all, match: {}, respond: { status: 200 } }]
`

func TestUnreadableFiles(t *testing.T) {
	dir := t.TempDir()
	_, _, err := File(filepath.Join(dir, "none.yaml"), Options{})
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.EqualError(t, err, "cannot read "+filepath.Join(dir, "none.yaml")+": no such file or directory")

	_, _, err = File(dir, Options{})
	require.EqualError(t, err, "cannot read "+dir+": it is a directory; give the file in it")

	_, _, err = File(os.DevNull, Options{})
	require.EqualError(t, err, "cannot read "+os.DevNull+": it is a device")

	large := filepath.Join(dir, "large.yaml")
	require.NoError(t, os.WriteFile(large, bytes.Repeat([]byte("#\n"), MaxFileSize/2+1), 0o600))
	_, _, err = File(large, Options{})
	require.EqualError(t, err, "cannot read "+large+": it has 4194306 bytes, and the most is 4MiB")

	_, _, err = Bytes("large", bytes.Repeat([]byte("#\n"), MaxFileSize/2+1), Options{})
	require.EqualError(t, err, "large has 4194306 bytes, and the most is 4MiB")
}

func TestAnyFileNameIsRead(t *testing.T) {
	for _, name := range []string{"lb.conf", "lb", "other.yml"} {
		file := filepath.Join(t.TempDir(), name)
		require.NoError(t, os.WriteFile(file, []byte(small), 0o600))
		_, _, err := File(file, Options{})
		require.NoError(t, err, name)
	}
}

func TestFind(t *testing.T) {
	work, etc := t.TempDir(), t.TempDir()
	opts := Options{Dirs: []string{work, etc}}

	_, _, err := File("", opts)
	require.ErrorIs(t, err, ErrNoConfig)
	require.EqualError(t, err, "no configuration: there is no "+work+"/lb.yaml and no "+etc+"/lb.yaml; "+
		"give a file with -c FILE, or the backends with BACKEND_POOL=host:port,host:port")

	t.Setenv("BACKEND_POOL", "server1:8080")
	file, err := Find("", opts)
	require.NoError(t, err)
	require.Empty(t, file)

	// Only the exact name counts: neither the program itself nor another format.
	require.NoError(t, os.WriteFile(filepath.Join(work, "lb"), []byte("\x7fELF"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(work, "lb.json"), []byte("{}"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(etc, FileName), []byte(small), 0o600))
	file, err = Find("", opts)
	require.NoError(t, err)
	require.Equal(t, filepath.Join(etc, FileName), file)
	_, warnings, err := File("", opts)
	require.NoError(t, err)
	require.Equal(t, []string{"BACKEND_POOL: is not used, because there is a file"}, texts(warnings))

	// One that cannot be used is not passed over.
	require.NoError(t, os.Mkdir(filepath.Join(work, FileName), 0o700))
	_, _, err = File("", opts)
	require.ErrorContains(t, err, "it is a directory")

	other := filepath.Join(etc, FileName)
	file, err = Find(other, opts)
	require.NoError(t, err)
	require.Equal(t, other, file)
}

func TestWorkingDirectory(t *testing.T) {
	t.Chdir(t.TempDir())
	require.NoError(t, os.WriteFile(FileName, []byte(small), 0o600))
	file, err := Find("", Options{})
	require.NoError(t, err)
	require.Equal(t, FileName, file)
	require.Equal(t, "./lb.yaml", display("."))
	require.Equal(t, "/etc/lb/lb.yaml", display("/etc/lb"))
}

func TestErrorsAreProblems(t *testing.T) {
	_, _, err := Bytes("lb.yaml", []byte("# nothing\n"), Options{})
	var problems config.Problems
	require.True(t, errors.As(err, &problems))
	require.EqualError(t, err, "lb.yaml is empty; write at least listeners and routes")
}

// TestHugeFilesEnd checks that nothing takes more than a file's size allows.
func TestHugeFilesEnd(t *testing.T) {
	fill := func(head, part string) string {
		return head + strings.Repeat(part, (MaxFileSize/16-len(head))/len(part))
	}
	for name, text := range map[string]string{
		"nested lists":    fill("", "["),
		"nested mappings": fill("", "{a: "),
		"unknown keys":    fill("", "? a\n"),
		"wrong pools":     fill("pools: [{ name: a }]\nroutes:\n", "- { name: x, match: { path: / }, proxy: { pool: yy } }\n"),
		"many statuses":   fill("routes:\n- fanout: { success: [", "200, ") + "200] }\n",
		"many methods":    fill("routes:\n- match: { methods: [", "GET, ") + "GET] }\n",
		"listeners":       fill("listeners:\n", "- { name: x, address: \"127.0.0.1:1\" }\n"),
		"nested merges":   "a: &a\n" + fill("", " <<: *a\n"),
	} {
		c, _, err := Bytes("lb.yaml", []byte(text), Options{})
		require.Error(t, err, name)
		require.Nil(t, c, name)
	}
}
