package e2e

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"lb/internal/admin"
)

// lb runs a command of lb that talks to the daemon, to its end.
func (d *daemon) lb(args ...string) (stdout, stderr string, code int) {
	d.t.Helper()
	return runLB(d.t, append(args, "--admin", strings.TrimPrefix(d.Admin, "http://"))...)
}

// requireRefused checks that a command failed with exactly one line that says
// these things, and printed nothing else.
func requireRefused(t testing.TB, stdout, stderr string, code int, says ...string) {
	t.Helper()
	require.Equal(t, 1, code, stderr)
	require.Empty(t, stdout)
	require.True(t, strings.HasPrefix(stderr, "lb: "), stderr)
	require.Equal(t, 1, strings.Count(stderr, "\n"), stderr)
	for _, s := range says {
		require.Contains(t, stderr, s)
	}
}

// twoPools returns a configuration with the pools users, of b1 and b2, and
// orders, of b1.
func twoPools(t testing.TB) (config string, addresses []string) {
	for range 3 {
		addresses = append(addresses, backend(t, always(http.StatusOK)))
	}
	return fmt.Sprintf(listeners+`pools:
  - { name: users, backends: [{ id: b1, address: %q }, { id: b2, address: %q }] }
  - { name: orders, backends: [{ id: b1, address: %q }] }
routes:
  - { name: users, match: { path_prefix: /users }, proxy: { pool: users } }
  - { name: orders, match: { path_prefix: /orders }, proxy: { pool: orders } }
`, addresses[0], addresses[1], addresses[2]), addresses
}

// state returns the state of one backend of one pool.
func (d *daemon) state(pool, id string) string {
	d.t.Helper()
	var all []admin.Instance
	d.get(d.Admin+"/instances").json(d.t, &all)
	for _, i := range all {
		if i.Pool == pool && i.ID == id {
			return i.State
		}
	}
	require.FailNow(d.t, "no instance "+id)
	return ""
}

// Promise: `lb instances` shows every backend, as a table for people and as the
// admin listener's own JSON for scripts.
func TestInstancesCommand(t *testing.T) {
	t.Parallel()
	config, addresses := twoPools(t)
	d := start(t, config)
	require.Equal(t, http.StatusOK, d.operate("drain", "b2").Status)

	stdout, stderr, code := d.lb("instances")
	require.Zero(t, code, stderr)
	require.Empty(t, stderr)
	var rows [][]string
	for line := range strings.Lines(stdout) {
		rows = append(rows, strings.Fields(line))
	}
	require.Equal(t, [][]string{
		{"INSTANCE", "POOL", "ADDRESS", "STATE", "IN-FLIGHT", "WEIGHT", "SOURCE", "REASON"},
		{"b1", "orders", addresses[2], "up", "0", "1", "config", "-"},
		{"b1", "users", addresses[0], "up", "0", "1", "config", "-"},
		{"b2", "users", addresses[1], "draining", "0", "1", "config", "draining,", "said", "by", "127.0.0.1"},
	}, rows)

	var told, listed []admin.Instance
	d.get(d.Admin+"/instances").json(t, &told)
	stdout, stderr, code = d.lb("instances", "-o", "json")
	require.Zero(t, code, stderr)
	answer{Body: stdout}.json(t, &listed)
	require.ElementsMatch(t, told, listed)
	stdout, _, code = d.lb("instances", "-o", "json", "--pool", "orders")
	require.Zero(t, code)
	answer{Body: stdout}.json(t, &listed)
	require.Len(t, listed, 1)
	require.Equal(t, "orders", listed[0].Pool)

	stdout, stderr, code = d.lb("instances", "-o", "yaml")
	requireRefused(t, stdout, stderr, code, `-o takes table or json, not "yaml"`)
}

// Promise: the commands for operators do what they say, and the audit trail
// says on whose behalf.
func TestOperatorCommands(t *testing.T) {
	t.Parallel()
	all, addresses := ledgers(t, 2)
	d := start(t, proxyAll("", addresses...))
	for _, c := range []struct {
		verb, state string
		serving     []int
	}{{"drain", "draining", []int{2}}, {"maintenance", "maintenance", []int{2}}, {"enable", "up", []int{1, 2}}} {
		stdout, stderr, code := d.lb(c.verb, "b1")
		require.Zero(t, code, stderr)
		require.Equal(t, "b1 (main): "+c.state+", 0 in flight\n", stdout)
		require.Equal(t, c.state, d.instance("b1").State)
		requireReads(t, d, all, c.serving...)

		stdout, stderr, code = d.lb(c.verb, "b1", "-o", "json")
		require.Zero(t, code, stderr)
		var now admin.Instance
		answer{Body: stdout}.json(t, &now)
		require.Equal(t, d.instance("b1"), now)
	}
	trail := d.audit()
	require.Len(t, trail, 3)
	for i, action := range []string{"enabled", "maintenance", "draining"} {
		require.Equal(t, action, trail[i].Action)
		require.Regexp(t, `^.+ \(127\.0\.0\.1\)$`, trail[i].Who, "the user's name, and where it came from")
	}
}

// Promise: `lb drain --wait` ends when the backend is idle, with 0, or when the
// time is over, with 1 and what is still under way.
func TestDrainWait(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	d := start(t, draining("5s", slowBackend(t, release)))
	stdout, stderr, code := d.lb("drain", "b1", "--wait", "20s", "-o", "json")
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, `"state": "draining"`, "who is idle is not waited for")
	require.Equal(t, http.StatusOK, d.operate("enable", "b1").Status)

	slow := halfway(t, d)
	stdout, stderr, code = d.lb("drain", "b1", "--wait", "300ms")
	require.Equal(t, 1, code)
	require.Equal(t, "b1 (main): draining, 1 in flight\n", stdout)
	require.Equal(t, "lb: not idle within 300ms: b1 (main): draining, 1 in flight\n", stderr)

	cmd, out, errs := command(t, nil, "drain", "b1", "--wait", "20s", "--admin", strings.TrimPrefix(d.Admin, "http://"))
	require.NoError(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	poll(t, patience, "it to say what it waits for", func() bool { return out.String() == "b1 (main): draining, 1 in flight\n" })
	require.Empty(t, ended)
	close(release)
	_, err := io.Copy(io.Discard, slow.Body)
	require.NoError(t, err)
	require.NoError(t, <-ended, errs.String())
	require.Equal(t, "b1 (main): draining, 1 in flight\nb1 (main): draining, 0 in flight\n", out.String())
	require.Empty(t, errs.String())
}

// Promise: who is drained with --wait and enabled by somebody else meanwhile is
// not waited for.
func TestDrainWaitIsCalledOff(t *testing.T) {
	t.Parallel()
	d := start(t, draining("1s", slowBackend(t, nil)))
	_ = halfway(t, d)
	cmd, out, errs := command(t, nil, "drain", "b1", "--wait", "20s", "--admin", strings.TrimPrefix(d.Admin, "http://"))
	require.NoError(t, cmd.Start())
	poll(t, patience, "it to wait", func() bool { return out.String() != "" })
	require.Equal(t, http.StatusOK, d.operate("enable", "b1").Status)
	require.Error(t, cmd.Wait())
	require.Equal(t, 1, cmd.ProcessState.ExitCode())
	require.Equal(t, "lb: b1 (main) is not draining any more, it is up\n", errs.String())
}

// Promise: a command that cannot tell which backend is meant changes none, says
// what to write, and is exit code 1.
func TestCommandsThatFindNoBackend(t *testing.T) {
	t.Parallel()
	config, _ := twoPools(t)
	d := start(t, config)
	for _, verb := range []string{"drain", "maintenance", "enable"} {
		stdout, stderr, code := d.lb(verb, "b1")
		requireRefused(t, stdout, stderr, code, "409 ambiguous_instance", "users", "orders", "--pool")
		stdout, stderr, code = d.lb(verb, "b1", "-o", "json")
		requireRefused(t, stdout, stderr, code, "ambiguous_instance")
		stdout, stderr, code = d.lb(verb, "b9")
		requireRefused(t, stdout, stderr, code, "404 instance_not_found", `"b9"`)
		stdout, stderr, code = d.lb(verb, "b2", "--pool", "orders")
		requireRefused(t, stdout, stderr, code, "404 instance_not_found", `"b2"`, `"orders"`)
		stdout, stderr, code = d.lb(verb, "b1", "--pool", "carts")
		requireRefused(t, stdout, stderr, code, "404 instance_not_found", `"carts"`)
		stdout, stderr, code = d.lb(verb)
		requireRefused(t, stdout, stderr, code, "the id of one backend")
	}
	require.Empty(t, d.audit())
	requireProblem(t, d.operate("drain", "b1"), http.StatusConflict, "ambiguous_instance")

	stdout, stderr, code := d.lb("drain", "b1", "--pool", "orders")
	require.Zero(t, code, stderr)
	require.Equal(t, "b1 (orders): draining, 0 in flight\n", stdout)
	require.Equal(t, "draining", d.state("orders", "b1"))
	require.Equal(t, "up", d.state("users", "b1"))
}

// Promise: the commands say what is wrong with the way to the daemon, and never
// the token.
func TestCommandsFindTheDaemon(t *testing.T) {
	t.Parallel()
	const token = "canary-77e2c9"
	d := start(t, strings.Replace(proxyAll("", backend(t, always(http.StatusOK))),
		`admin: { address: "127.0.0.1:0" }`, `admin: { address: "127.0.0.1:0", token_env: ADMIN_TOKEN }`, 1),
		"ADMIN_TOKEN="+token)
	at := "LB_ADMIN=" + strings.TrimPrefix(d.Admin, "http://")
	for _, args := range [][]string{{"instances"}, {"drain", "b1"}} {
		stdout, stderr, code := runLBWith(t, []string{at}, args...)
		requireRefused(t, stdout, stderr, code, "401 unauthorized", "LB_ADMIN_TOKEN")
		stdout, stderr, code = runLBWith(t, []string{at, "LB_ADMIN_TOKEN=" + token + "x"}, args...)
		requireRefused(t, stdout, stderr, code, "401 unauthorized", "LB_ADMIN_TOKEN")
		require.NotContains(t, stderr, token)
		stdout, stderr, code = runLB(t, append(args, "--admin", deadAddress(t))...)
		requireRefused(t, stdout, stderr, code, "cannot connect", "is lb running")
		stdout, stderr, code = runLB(t, append(args, "--admin", d.Addr)...)
		requireRefused(t, stdout, stderr, code, "is that the right address?")
	}
	stdout, stderr, code := runLBWith(t, []string{at, "LB_ADMIN_TOKEN=" + token}, "drain", "b1")
	require.Zero(t, code, stderr)
	require.Equal(t, "b1 (main): draining, 0 in flight\n", stdout)
	stdout, stderr, code = runLBWith(t, []string{at, "LB_ADMIN_TOKEN=" + token}, "instances")
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "(token, 127.0.0.1)")
	require.NotContains(t, stdout+d.log(), token)
}
