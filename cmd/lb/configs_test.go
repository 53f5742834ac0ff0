package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/admin"
	"lb/internal/outcome"
)

// keeper has served versions of a configuration, the newest first, and writes
// down what is asked of it.
type keeper struct {
	kept    []admin.ConfigVersion
	now     admin.Reloaded
	refusal error
	asked   []string
}

func (k *keeper) Reload(_ context.Context, by string) (admin.Reloaded, error) {
	k.asked = append(k.asked, "reload by "+by)
	return k.now, k.refusal
}

func (k *keeper) ConfigVersions(_ context.Context, before int64, limit int) ([]admin.ConfigVersion, error) {
	k.asked = append(k.asked, fmt.Sprintf("%d before %d", limit, before))
	return k.kept, k.refusal
}

func (k *keeper) ConfigVersion(_ context.Context, id int64) (admin.ConfigVersion, error) {
	for _, v := range k.kept {
		if v.ID == id {
			v.Document = "# as\tit is\npools: []\n"
			return v, nil
		}
	}
	return admin.ConfigVersion{}, &outcome.Error{Code: outcome.ConfigVersionNotFound, Detail: fmt.Sprintf("there is no version %d", id)}
}

func (k *keeper) DiffConfig(_ context.Context, from, to int64) (admin.Changes, error) {
	k.asked = append(k.asked, fmt.Sprintf("diff from %d to %d", from, to))
	return k.now.Changes, k.refusal
}

func (k *keeper) Rollback(_ context.Context, id int64, by string) (admin.Reloaded, error) {
	k.asked = append(k.asked, fmt.Sprintf("rollback to %d by %s", id, by))
	return k.now, k.refusal
}

// serveKeeper serves the admin listener of a daemon that k is, and returns its
// address.
func serveKeeper(t *testing.T, k *keeper) string {
	t.Helper()
	return serveAs(t, admin.New(admin.Options{Reloader: k}, new(world), new(world), http.NotFoundHandler()))
}

func newKeeper() *keeper {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return &keeper{
		kept: []admin.ConfigVersion{
			{ID: 7, At: at, By: "alice (127.0.0.1)", Source: "/etc/lb/lb.yaml", Generation: 4, Serving: true},
			{ID: 6, At: at.Add(-time.Hour), By: "", Source: "a\x1b[2J", Generation: 3},
		},
		now: admin.Reloaded{Generation: 4, Result: admin.Applied, Changes: admin.Changes{
			Added: admin.List[string]{"pool users", "route a\nb"}, Removed: admin.List[string]{"route login"},
			Changed: admin.List[admin.ChangedPart]{
				{Name: "pool users", Values: admin.List[admin.ChangedValue]{
					{Path: "pools.users.limits.per_backend", From: "4", To: "8"}, {Path: "pools.users.slow_start", From: "0s", To: "1m"},
				}},
				{Name: "admin", Values: admin.List[admin.ChangedValue]{{Path: "admin.hosts", From: "[]", To: "[\x1b]"}}},
			},
		}},
	}
}

// changedLines are the changes of newKeeper as people see them.
const changedLines = `+ pool users
+ route a\u000ab
- route login
~ pools.users.limits.per_backend: 4 → 8
~ pools.users.slow_start: 0s → 1m
~ admin.hosts: [] → [\u001b]
`

func TestReload(t *testing.T) {
	clean(t)
	k := newKeeper()
	at := serveKeeper(t, k)
	who := localUser() + " (127.0.0.1)"
	for args, asked := range map[string]string{"reload": "reload by " + who, "config rollback 6": "rollback to 6 by " + who} {
		k.asked = nil
		stdout, failure := lb(t, append(strings.Fields(args), "--admin", at)...)
		require.Empty(t, failure, args)
		require.Equal(t, changedLines+"generation 4 serves now\n", stdout, args)
		require.Equal(t, []string{asked}, k.asked)

		stdout, failure = lb(t, append(strings.Fields(args), "--admin", at, "-o", "json")...)
		require.Empty(t, failure, args)
		var now admin.Reloaded
		require.NoError(t, json.Unmarshal([]byte(stdout), &now))
		require.Equal(t, k.now, now, args)
	}
	k.now = admin.Reloaded{Generation: 3, Result: admin.Unchanged}
	stdout, failure := lb(t, "reload", "--admin", at)
	require.Empty(t, failure)
	require.Equal(t, "nothing has changed: generation 3 goes on\n", stdout)
}

// What is refused is told as lb check tells it: every problem on a line.
func TestReloadThatIsRefused(t *testing.T) {
	clean(t)
	k := newKeeper()
	at := serveKeeper(t, k)
	k.refusal = &outcome.Error{Code: outcome.ConfigInvalid, Detail: "the configuration has 2 problems", Fields: []outcome.FieldError{
		{Field: "routes[0].proxy.pool", Detail: `routes[0].proxy.pool (line 9): no pool "user"; did you mean "users"?`},
		{Field: "log.level", Detail: "log.level (LB_LOG_LEVEL): no level \x1b"},
	}}
	for _, args := range []string{"reload", "config rollback 6", "reload -o json", "config diff 6"} {
		stdout, failure := lb(t, append(strings.Fields(args), "--admin", at)...)
		require.Empty(t, stdout, args)
		require.Equal(t, "422 config_invalid: the configuration has 2 problems\n"+
			`routes[0].proxy.pool (line 9): no pool "user"; did you mean "users"?`+"\n"+
			`log.level (LB_LOG_LEVEL): no level \u001b`, failure, args)
	}
	k.refusal = &outcome.Error{Code: outcome.ConfigNotWritable, Detail: "/etc/lb is read-only"}
	_, failure := lb(t, "config", "rollback", "6", "--admin", at)
	require.Equal(t, "409 config_not_writable: /etc/lb is read-only", failure)
}

func TestConfigHistoryAndShow(t *testing.T) {
	clean(t)
	k := newKeeper()
	at := serveKeeper(t, k)
	stdout, failure := lb(t, "config", "history", "--admin", at)
	require.Empty(t, failure)
	require.Equal(t, `
ID  WHEN                  WHO                SOURCE           GENERATION  SERVING
7   2026-01-02T03:04:05Z  alice (127.0.0.1)  /etc/lb/lb.yaml  4           yes
6   2026-01-02T02:04:05Z  -                  a\u001b[2J       3           -
`, "\n"+stdout)
	require.Equal(t, []string{"1001 before 0"}, k.asked)
	stdout, _ = lb(t, "config", "history", "--admin", at, "-o", "json")
	var all []admin.ConfigVersion
	require.NoError(t, json.Unmarshal([]byte(stdout), &all))
	require.Equal(t, k.kept, all)

	stdout, failure = lb(t, "config", "show", "7", "--admin", at)
	require.Empty(t, failure)
	require.Equal(t, "# as\tit is\npools: []\n", stdout, "to the byte")
	stdout, _ = lb(t, "config", "show", "7", "--admin", at, "-o", "json")
	var one admin.ConfigVersion
	require.NoError(t, json.Unmarshal([]byte(stdout), &one))
	require.Equal(t, "# as\tit is\npools: []\n", one.Document)
	_, failure = lb(t, "config", "show", "8", "--admin", at)
	require.Equal(t, "404 config_version_not_found: there is no version 8", failure)

	k.kept = nil
	stdout, _ = lb(t, "config", "history", "--admin", at, "-o", "json")
	require.Equal(t, "[]\n", stdout)
}

func TestConfigDiff(t *testing.T) {
	clean(t)
	k := newKeeper()
	at := serveKeeper(t, k)
	for args, asked := range map[string]string{"6": "diff from 6 to 0", "6 7": "diff from 6 to 7"} {
		k.asked = nil
		stdout, failure := lb(t, append(strings.Fields("config diff "+args), "--admin", at)...)
		require.Empty(t, failure)
		require.Equal(t, changedLines, stdout)
		require.Equal(t, []string{asked}, k.asked)
	}
	stdout, _ := lb(t, "config", "diff", "6", "--admin", at, "-o", "json")
	var changes admin.Changes
	require.NoError(t, json.Unmarshal([]byte(stdout), &changes))
	require.Equal(t, k.now.Changes, changes)

	k.now = admin.Reloaded{}
	stdout, _ = lb(t, "config", "diff", "6", "--admin", at)
	require.Equal(t, "the two mean the same\n", stdout)
}

func TestConfigCommandsThatAreMisused(t *testing.T) {
	clean(t)
	k := newKeeper()
	at := serveKeeper(t, k)
	for args, say := range map[string]string{
		"config history 7":      `lb config history takes no argument "7"`,
		"config show":           "lb config show takes the id of one version",
		"config show 6 7":       "lb config show takes the id of one version",
		"config rollback":       "lb config rollback takes the id of one version",
		"config diff":           "lb config diff takes the ids of one or two versions",
		"config diff 1 2 3":     "lb config diff takes the ids of one or two versions",
		"config rollback x":     `400 bad_request: the parameter version is a whole number`,
		"config rollback 6?x=y": `400 bad_request: the parameter version is a whole number`,
		"config rollback ../6":  "400 bad_request: the path has",
		"config diff 6 x&to=7":  `400 bad_request: the parameter to is a whole number`,
		"config show 7 -o yaml": `-o takes table or json, not "yaml"`,
		"reload now":            `lb reload takes no argument "now"; a configuration file goes behind -c`,
	} {
		stdout, failure := lb(t, append(strings.Fields(args), "--admin", at)...)
		require.Empty(t, stdout, args)
		require.Contains(t, failure, say, args)
	}
	require.Empty(t, k.asked)
	_, failure := lb(t, "config", "nonsense")
	require.Equal(t, `lb config takes history, show, diff or rollback, not "nonsense"`, failure)

	// A daemon of a time before there was any of it.
	at = serveWorld(t, new(world), "")
	_, failure = lb(t, "reload", "--admin", at)
	require.Equal(t, "404 not_found: the admin listener has no such path", failure)
}
