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

// writes are what a world has taken in, by Seq, and what was asked of them.
type writes struct {
	taken []admin.Fanout
	asked []string
}

func (w *writes) ListFanouts(_ context.Context, f admin.FanoutFilter) ([]admin.Fanout, error) {
	w.asked = append(w.asked, fmt.Sprintf("list %+v", f))
	var found []admin.Fanout
	for _, at := range w.taken {
		if len(found) < f.Limit && at.Seq > f.After && (f.State == "" || f.State == at.State) && (f.Pool == "" || f.Pool == at.Pool) {
			found = append(found, at)
		}
	}
	return found, nil
}

func (w *writes) ShowFanout(_ context.Context, id string) (admin.Fanout, error) {
	for _, at := range w.taken {
		if at.ID == id {
			return at, nil
		}
	}
	return admin.Fanout{}, &outcome.Error{Code: outcome.FanoutNotFound, Detail: fmt.Sprintf("there is no fan-out %q", id)}
}

func (w *writes) RetryDelivery(_ context.Context, c admin.DeliveryChange) (admin.Fanout, error) {
	return w.change("retry", "pending", c)
}

func (w *writes) SkipDelivery(_ context.Context, c admin.DeliveryChange) (admin.Fanout, error) {
	return w.change("skip", "skipped", c)
}

func (w *writes) change(verb, to string, c admin.DeliveryChange) (admin.Fanout, error) {
	w.asked = append(w.asked, fmt.Sprintf("%s %q %q by %s", verb, c.ID, c.Backend, c.By))
	at, err := w.ShowFanout(context.Background(), c.ID)
	if err != nil {
		return at, err
	}
	for i, d := range at.Deliveries {
		switch {
		case d.Backend != c.Backend:
		case d.State != "parked":
			return at, &outcome.Error{Code: outcome.DeliverySettled, Detail: "it is " + d.State}
		default:
			at.Deliveries[i].State, at.Deliveries[i].Reason = to, ""
			return at, nil
		}
	}
	return at, &outcome.Error{Code: outcome.FanoutNotFound, Detail: fmt.Sprintf("no delivery to %q", c.Backend)}
}

// withWrites is a world with writes of three hours, of three minutes, and of a clock that is ahead.
// The ages are in the middle of their unit, so that they stay what they are.
func withWrites() *world {
	now := time.Now().UTC().Truncate(time.Millisecond)
	return &world{writes: writes{taken: []admin.Fanout{
		{
			Seq: 3, ID: "AAA", State: "parked", Created: now.Add(-210 * time.Minute), Route: "register", Pool: "users",
			Method: "POST", Path: "/register", RequestID: "r-1", Deliveries: admin.List[admin.Delivery]{
				{Backend: "server1", Address: "10.0.0.1:80", State: "done", Attempts: 1, LastStatus: new(201)},
				{Backend: "server2", Address: "10.0.0.2:80", State: "parked", Reason: "diverged", Attempts: 4, LastStatus: new(409)},
				{Backend: "server3", State: "parked", Reason: "max_age", Attempts: 70, LastStatus: new(500), Error: "dial: refused"},
			},
		},
		{
			Seq: 7, ID: "BBB", State: "pending", Created: now.Add(-3*time.Minute - 30*time.Second), Route: "change", Pool: "users",
			Method: "PUT", Path: "/changePassword", Deliveries: admin.List[admin.Delivery]{
				{Backend: "server1", Address: "10.0.0.1:80", State: "done", Attempts: 1, LastStatus: new(201)},
				{Backend: "server2", Address: "10.0.0.2:80", State: "pending", NextAttempt: new(now.Add(150 * time.Minute))},
			},
		},
		{Seq: 9, ID: "CCC", State: "done", Created: now.Add(time.Minute), Route: "other", Pool: "api", Method: "POST", Path: "/"},
	}}}
}

func TestFanoutList(t *testing.T) {
	clean(t)
	at := serveWorld(t, withWrites(), "")
	stdout, failure := lb(t, "fanout", "list", "--admin", at)
	require.Empty(t, failure)
	require.Equal(t, `
ID   AGE  STATE    POOL   ROUTE     REQUEST              LACKING
AAA  3h   parked   users  register  POST /register       server2 parked (diverged, status 409); server3 parked (max_age, dial: refused)
BBB  3m   pending  users  change    PUT /changePassword  server2 pending
CCC  0s   done     api    other     POST /               -
`, "\n"+stdout)

	for args, want := range map[string]string{
		"--state parked":             "AAA",
		"--pool api":                 "CCC",
		"--state pending --pool api": "",
		"--all":                      "AAA BBB CCC",
		"--limit 3":                  "AAA BBB CCC",
		"--limit 2":                  "AAA BBB There",
		"--limit 1 --state parked":   "AAA",
	} {
		stdout, failure := lb(t, append(strings.Fields("fanout list --admin "+at), strings.Fields(args)...)...)
		require.Empty(t, failure, args)
		var first []string
		for line := range strings.Lines(stdout) {
			first = append(first, strings.Fields(line)[0])
		}
		require.Equal(t, strings.TrimSpace("ID "+want), strings.Join(first, " "), args)
	}
	stdout, _ = lb(t, "fanout", "list", "--admin", at, "--limit", "2")
	require.Contains(t, stdout, "\nThere are more: --limit takes a higher number, and --all shows every one.\n")

	stdout, _ = lb(t, "fanout", "list", "--admin", at, "-o", "json", "--limit", "2")
	var all []admin.Fanout
	require.NoError(t, json.Unmarshal([]byte(stdout), &all))
	require.Equal(t, withWrites().taken[0].Deliveries, all[0].Deliveries)
	require.Len(t, all, 2)
	stdout, _ = lb(t, "fanout", "list", "--admin", serveWorld(t, new(world), ""), "-o", "json")
	require.Equal(t, "[]\n", stdout)
}

// A long list is fetched page by page, and not one write more than was asked for.
func TestFanoutListPages(t *testing.T) {
	clean(t)
	w := new(world)
	for seq := range uint64(250) {
		w.taken = append(w.taken, admin.Fanout{Seq: seq + 1, ID: "X", State: "parked", Pool: "p&q"})
	}
	at := serveWorld(t, w, "")
	for args, want := range map[string]struct {
		shown int
		asked []string
	}{
		"--all":                                 {250, []string{"State: Pool: After:0 Limit:101", "State: Pool: After:100 Limit:101", "State: Pool: After:200 Limit:101"}},
		"--limit 150 --state parked --pool p&q": {150, []string{"State:parked Pool:p&q After:0 Limit:101", "State:parked Pool:p&q After:100 Limit:51"}},
		"--limit 100":                           {100, []string{"State: Pool: After:0 Limit:101"}},
		"":                                      {100, []string{"State: Pool: After:0 Limit:101"}},
	} {
		w.asked = nil
		stdout, failure := lb(t, append(strings.Fields("fanout list -o json --admin "+at), strings.Fields(args)...)...)
		require.Empty(t, failure)
		require.Equal(t, want.shown, strings.Count(stdout, `"seq"`), args)
		for i := range want.asked {
			want.asked[i] = "list {" + want.asked[i] + "}"
		}
		require.Equal(t, want.asked, w.asked, args)
	}
}

// Whoever always says that there is more does not keep the command for ever.
func TestAListThatDoesNotEnd(t *testing.T) {
	clean(t)
	at := serveAs(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"fanouts":[{"id":"AAA"}],"next":5}`))
	}))
	stdout, failure := lb(t, "fanout", "list", "--all", "--admin", at)
	require.Empty(t, failure)
	require.Equal(t, 2, strings.Count(stdout, "AAA"))
}

func TestFanoutShow(t *testing.T) {
	clean(t)
	w := withWrites()
	at := serveWorld(t, w, "")
	stdout, failure := lb(t, "fanout", "show", "AAA", "--admin", at)
	require.Empty(t, failure)
	require.Equal(t, `AAA: parked
POST /register, route register, pool users, request id r-1
admitted `+w.taken[0].Created.Format(time.RFC3339)+`, 3h ago

BACKEND  ADDRESS      STATE   REASON    ATTEMPTS  STATUS  NEXT  ERROR
server1  10.0.0.1:80  done    -         1         201     -     -
server2  10.0.0.2:80  parked  diverged  4         409     -     -
server3  -            parked  max_age   70        500     -     dial: refused
`, stdout)
	stdout, _ = lb(t, "fanout", "show", "BBB", "--admin", at)
	require.Contains(t, stdout, "server2  10.0.0.2:80  pending  -       0         -       in 2h  -\n")

	stdout, _ = lb(t, "fanout", "show", "AAA", "-o", "json", "--admin", at)
	var shown admin.Fanout
	require.NoError(t, json.Unmarshal([]byte(stdout), &shown))
	require.Equal(t, w.taken[0], shown)
}

func TestDeliveryCommands(t *testing.T) {
	clean(t)
	for _, c := range []struct {
		args, asked     string
		stdout, failure string
	}{
		{args: "retry AAA server2", asked: `retry "AAA" "server2"`, stdout: "server2  10.0.0.2:80  pending"},
		{args: "skip AAA server3", asked: `skip "AAA" "server3"`, stdout: "server3  -            skipped"},
		{args: "retry AAA server1", asked: `retry "AAA" "server1"`, failure: "409 delivery_settled: it is done"},
		{args: "skip AAA a?b&%41;", asked: `skip "AAA" "a?b&%41;"`, failure: `404 fanout_not_found: no delivery to "a?b&%41;"`},
		{args: "retry AAA [fd00::1]:80", asked: `retry "AAA" "[fd00::1]:80"`, failure: `404 fanout_not_found: no delivery to "[fd00::1]:80"`},
		{args: "skip a?b server1", asked: `skip "a?b" "server1"`, failure: `404 fanout_not_found: there is no fan-out "a?b"`},
		{args: "show a?b", failure: `404 fanout_not_found: there is no fan-out "a?b"`},
		{args: "skip AAA a/b", failure: "400 bad_request: the path has an empty or a dot segment, a backslash, a NUL or an encoded slash"},
		{args: "skip AAA", failure: "lb fanout skip takes the id of one write and that of a backend; lb fanout list shows both"},
		{args: "retry AAA b c", failure: "lb fanout retry takes the id of one write and that of a backend; lb fanout list shows both"},
		{args: "show", failure: "lb fanout show takes the id of one write; lb fanout list shows them"},
		{args: "list AAA", failure: `lb fanout list takes no argument "AAA"; a configuration file goes behind -c`},
		{args: "list --state held", failure: `400 bad_request: the parameter state is one of pending, done, parked, rejected, cancelled, not "held"`},
		{args: "list --limit 0", failure: "--limit is at least 1; with --all every write is shown"},
		{args: "list -o yaml", failure: `-o takes table or json, not "yaml"`},
		{args: "show AAA -o yaml", failure: `-o takes table or json, not "yaml"`},
		{args: "skip AAA server2 -o yaml", failure: `-o takes table or json, not "yaml"`},
	} {
		w := withWrites()
		at := serveWorld(t, w, "")
		stdout, failure := lb(t, append(strings.Fields("fanout "+c.args), "--admin", at)...)
		require.Equal(t, c.failure, failure, c.args)
		require.Contains(t, stdout, c.stdout, c.args)
		if c.asked == "" {
			require.Empty(t, w.asked, c.args)
			continue
		}
		require.Equal(t, []string{c.asked + " by " + localUser() + " (127.0.0.1)"}, w.asked, c.args)
	}
	_, failure := lb(t, "fanout", "show", "")
	require.Equal(t, "lb fanout show takes the id of one write; lb fanout list shows them", failure)
	_, failure = lb(t, "fanout", "list", "--all", "--limit", "1")
	require.Contains(t, failure, "[limit all]")
	_, failure = lb(t, "fanout", "remove", "AAA")
	require.Equal(t, `lb fanout takes list, show, retry or skip, not "remove"`, failure)
	stdout, failure := lb(t, "fanout")
	require.Empty(t, failure)
	require.Contains(t, stdout, "lb fanout retry ID BACKEND")
	stdout, _ = lb(t, "fanout", "retry", "AAA", "server2", "-o", "json", "--admin", serveWorld(t, withWrites(), ""))
	require.Contains(t, stdout, `"state": "pending"`)
}

func TestFanoutNeedsTheToken(t *testing.T) {
	clean(t)
	w := withWrites()
	at := serveWorld(t, w, secret)
	for _, args := range []string{"list", "show AAA", "retry AAA server2", "skip AAA server2"} {
		_, failure := lb(t, append(strings.Fields("fanout "+args), "--admin", at)...)
		require.Equal(t, "401 unauthorized: the daemon wants its admin token: put it into LB_ADMIN_TOKEN", failure)
	}
	require.Empty(t, w.asked)
	t.Setenv(tokenEnv, secret)
	_, failure := lb(t, "fanout", "retry", "AAA", "server2", "--admin", at)
	require.Empty(t, failure)
	require.Equal(t, []string{`retry "AAA" "server2" by ` + localUser() + " (token, 127.0.0.1)"}, w.asked)
}

// What clients and backends wrote must not move a terminal's cursor.
func TestControlCharactersInWritesAreVisible(t *testing.T) {
	clean(t)
	at := serveWorld(t, &world{writes: writes{taken: []admin.Fanout{{
		Seq: 1, ID: "A", Path: "/\x1b[2J", Method: "P\x07", RequestID: "\r", Deliveries: admin.List[admin.Delivery]{{Backend: "b\n", Error: "\u009b"}},
	}}}}, "")
	for _, args := range []string{"list", "show A", "show A -o json", "list -o json"} {
		stdout, failure := lb(t, append(strings.Fields("fanout "+args), "--admin", at)...)
		require.Empty(t, failure)
		require.Contains(t, stdout, `\u001b[2J`, args)
		for _, r := range strings.ReplaceAll(stdout, "\n", "") {
			require.False(t, r < ' ' || r > '~', "%s: %q", args, stdout)
		}
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Hour: "0s", 0: "0s", 999 * time.Millisecond: "0s", 119 * time.Second: "119s", 2 * time.Minute: "2m", 119 * time.Minute: "119m",
		2 * time.Hour: "2h", 47*time.Hour + 59*time.Minute: "47h", 48 * time.Hour: "2d", 1000 * time.Hour: "41d",
	} {
		require.Equal(t, want, age(d), "%v", d)
	}
}
