package registration

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"lb/internal/config"
	"lb/internal/outcome"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func ptr[T any](v T) *T { return &v }

func TestParse(t *testing.T) {
	r, err := Parse([]byte(`{"pool": "calc", "address": "[fd00::7]:8080"}`))
	require.Nil(t, err)
	require.Equal(t, Request{Pool: "calc", Address: "[fd00::7]:8080", ID: "[fd00::7]:8080"}, r, "what is not said is told from what is")

	r, err = Parse([]byte("\n{\"pool\": \"a-b_c.d:e\", \"address\": \"w1:80\", \"id\": \"w[1]\", \"weight\": 1000, \"invoke\": \"rr\", \"concurrency\": 0,\t" +
		`"ttl": "24h", "labels": {"zone": "\ud83d\ude00", "a.b": ""}, "health": {"path": "/up", "interval": "5s"}, "force": true}`))
	require.Nil(t, err)
	health := new(config.Health)
	health.SetDefaults()
	health.Path, health.Interval = "/up", config.Duration(5*time.Second)
	require.Equal(t, Request{
		Pool: "a-b_c.d:e", Address: "w1:80", ID: "w[1]", Weight: ptr(1000), Invoke: "roundrobin", Concurrency: ptr(0),
		TTL: ptr(24 * time.Hour), Labels: map[string]string{"zone": "😀", "a.b": ""}, Health: health, Force: true,
	}, r)

	r, err = Parse([]byte(`{"pool": "a", "address": "w1:80", "labels": {}}`))
	require.Nil(t, err)
	require.NotNil(t, r.Labels, "said, though empty")
}

// Each document with all that is wrong with it.
func TestParseProblems(t *testing.T) {
	many := make(map[string]string)
	for i := range 33 {
		many[strings.Repeat("a", i+1)] = ""
	}
	tooMany, _ := json.Marshal(many)
	long := strings.Repeat("a", 129)
	for document, want := range map[string][]string{
		``:                                {": is empty; write a JSON object"},
		`{`:                               {": not JSON: unexpected end of JSON input at byte 1"},
		`pool: a`:                         {": not JSON: invalid character 'p' looking for beginning of value at byte 1"},
		`{"pool": "a",}`:                  {": not JSON: invalid character '}' looking for beginning of object key string at byte 14"},
		`{"pool": "a"} []`:                {": not JSON: invalid character '[' after top-level value at byte 15"},
		"\ufeff{}":                        {": not JSON: invalid character 'ï' looking for beginning of value at byte 1"},
		"{\"pool\": \"\xff\"}":            {": is not UTF-8"},
		`[]`:                              {": expects a mapping, not a list"},
		`null`:                            {": empty mapping; write {} if that is meant"},
		`{}`:                              {"pool: is missing", "address: is missing; write host:port"},
		`{"pool": null, "address": []}`:   {"pool: no value; write one or take the key out", "address: expects text, not a list"},
		`{"Pool": "a", "address": "w:1"}`: {`Pool: unknown key "Pool"; did you mean "pool"?`, "pool: is missing"},
		`{"pool": "a", "pool": "b", "address": "w:1"}`:                         {"pool: the key is given twice"},
		`{"pool": "a", "address": "w:1", "discovery": 1}`:                      {`discovery: unknown key "discovery"; there are pool, address, id, weight, invoke, concurrency, ttl, labels, health, force`},
		`{"pool": "a/b", "address": "w:1"}`:                                    {`pool: "a/b" is not a name; write letters, digits and any of - _ . :`},
		`{"pool": "a[1]", "address": "w:1"}`:                                   {`pool: "a[1]" is not a name; write letters, digits and any of - _ . :`},
		`{"pool": "..", "address": "w:1"}`:                                     {`pool: ".." means something else in a path; choose another name`},
		`{"pool": ".", "address": "w:1"}`:                                      {`pool: "." means something else in a path; choose another name`},
		`{"pool": "%2e", "address": "w:1"}`:                                    {`pool: "%2e" is not a name; write letters, digits and any of - _ . :`},
		`{"pool": "é", "address": "w:1"}`:                                      {`pool: "é" is not a name; write letters, digits and any of - _ . :`},
		`{"pool": "` + long + `", "address": "w:1"}`:                           {`pool: "` + long[:64] + `…" is too long; a name has at most 128 bytes`},
		`{"pool": "a", "address": "w"}`:                                        {`address: "w" has no port; write host:port`},
		`{"pool": "a", "address": "http://w:1/"}`:                              {`address: "http://w:1/" has a scheme; write host:port alone`},
		`{"pool": "a", "address": "0x7f.1:1"}`:                                 {`address: "0x7f.1" is not a host name; write an IPv4 address as four decimal numbers, such as 10.0.0.7`},
		`{"pool": "a", "address": "w:1", "id": ""}`:                            {"id: is missing"},
		`{"pool": "a", "address": "w:1", "id": "a b"}`:                         {`id: "a b" is not a name; write letters, digits and any of - _ . :`},
		`{"pool": "a", "address": "w:1", "id": ".."}`:                          {`id: ".." means something else in a path; choose another name`},
		`{"pool": "a", "address": "w:1", "id": 7}`:                             {`id: expects text, not 7; write "7"`},
		`{"pool": "a", "address": "w:1", "weight": 0}`:                         {"weight: must be from 1 to 1000, and is 0"},
		`{"pool": "a", "address": "w:1", "weight": 1e3}`:                       {"weight: expects a whole number, not 1e3"},
		`{"pool": "a", "address": "w:1", "weight": 2.0}`:                       {"weight: expects a whole number, not 2.0"},
		`{"pool": "a", "address": "w:1", "concurrency": -1}`:                   {"concurrency: must be from 0 to 1000000, and is -1"},
		`{"pool": "a", "address": "w:1", "concurrency": 18446744073709551617}`: {`concurrency: expects a whole number, not "18446744073709551617"`},
		`{"pool": "a", "address": "w:1", "invoke": "singel"}`:                  {`invoke: no policy "singel"; did you mean "single"?`},
		`{"pool": "a", "address": "w:1", "invoke": ""}`:                        {`invoke: no policy ""; there are`},
		`{"pool": "a", "address": "w:1", "ttl": "999ms"}`:                      {"ttl: must be from 1s to 24h, and is 999ms"},
		`{"pool": "a", "address": "w:1", "ttl": "24h1ns"}`:                     {"ttl: must be from 1s to 24h, and is 24h0m0.000000001s"},
		`{"pool": "a", "address": "w:1", "ttl": 90}`:                           {"ttl: expects a duration such as 250ms, not 90"},
		`{"pool": "a", "address": "w:1", "ttl": 0}`:                            {"ttl: must be from 1s to 24h, and is 0s"},
		`{"pool": "a", "address": "w:1", "force": "yes"}`:                      {`force: expects true or false, not "yes"`},
		`{"pool": "a", "address": "w:1", "labels": []}`:                        {"labels: expects a mapping, not a list"},
		`{"pool": "a", "address": "w:1", "labels": {"zone": 1, "b": "\u0000"}}`: {
			`labels.zone: expects text, not 1; write "1"`, "labels.b: has a control character; take it out",
		},
		`{"pool": "a", "address": "w:1", "labels": {"": "", "a b": "\u007f"}}`: {
			`labels."": a label needs a name; write one, or take the label out`, `labels."a b": has a control character; take it out`,
		},
		`{"pool": "a", "address": "w:1", "labels": {"a": "1", "\u0061": "1"}}`:                {"labels.a: the key is given twice"},
		`{"pool": "a", "address": "w:1", "labels": {"` + long + `": ""}}`:                     {`labels."` + long[:64] + `…": the name of a label has at most 128 bytes`},
		`{"pool": "a", "address": "w:1", "labels": {"a": "` + strings.Repeat(long, 2) + `"}}`: {"labels.a: a label has at most 256 bytes, and this has 258"},
		`{"pool": "a", "address": "w:1", "labels": ` + string(tooMany) + `}`:                  {"labels: has 33 labels, and the most is 32"},
		`{"pool": "a", "address": "w:1", "health": "/up"}`:                                    {`health: expects a mapping, not "/up"`},
		`{"pool": "a", "address": "w:1", "health": {"type": "exec", "command": ["/bin/sh"]}}`: {
			"health.type: a check that starts a program can only be set in the configuration file; write http, tcp or grpc",
		},
		`{"pool": "a", "address": "w:1", "health": {"command": ["/bin/sh"]}}`: {
			"health.command: a check that starts a program can only be set in the configuration file; take it out",
		},
		`{"pool": "a", "address": "w:1", "health": {"path": "up", "interval": 5, "fall": 0, "pth": 1}}`: {
			"health.interval: expects a duration such as 250ms, not 5", `health.pth: unknown key "pth"; did you mean "path"?`,
			`health.path: "up" does not begin with /; write "/up"`, "health.fall: must be from 1 to 100, and is 0",
		},
		`{"pool": "a", "address": "w:1", "health": {"headers": [{"name": "Host", "value": "a b"}]}}`: {`health.headers[0].value: "a b" is not a host; write a host name, and a port if need be`},
	} {
		_, err := Parse([]byte(document))
		require.NotNil(t, err, document)
		require.Equal(t, outcome.RegistrationInvalid, err.Code)
		require.NotEmpty(t, err.Detail)
		require.Len(t, err.Fields, len(want), "%s: %v", document, err.Fields)
		for i, f := range err.Fields {
			require.Contains(t, f.Field+": "+f.Detail, want[i], document)
		}
	}
}

// A client that reads nothing but the detail knows what to do.
func TestParseDetail(t *testing.T) {
	_, err := Parse([]byte(`{`))
	require.Equal(t, "the body: not JSON: unexpected end of JSON input at byte 1", err.Detail)
	_, err = Parse([]byte(`{"pool": "a"}`))
	require.Equal(t, "address: is missing; write host:port", err.Detail)
	_, err = Parse([]byte(`{"weight": 0}`))
	require.Equal(t, "3 things are wrong, the first: pool: is missing", err.Detail)
}

func TestParseBoundsTheBody(t *testing.T) {
	document := []byte(`{"pool": "a", "address": "w:1"` + strings.Repeat(" ", MaxBody) + `}`)
	_, err := Parse(document)
	require.Equal(t, outcome.BodyTooLarge, err.Code)
	_, err = Parse([]byte(strings.Repeat("[", MaxBody)))
	require.Equal(t, outcome.RegistrationInvalid, err.Code)
}

// documentOf writes a request as a client would.
func documentOf(t testing.TB, r Request) []byte {
	d := map[string]any{"pool": r.Pool, "address": r.Address, "id": r.ID, "force": r.Force}
	if r.Weight != nil {
		d["weight"] = *r.Weight
	}
	if r.Invoke != "" {
		d["invoke"] = r.Invoke
	}
	if r.Concurrency != nil {
		d["concurrency"] = *r.Concurrency
	}
	if r.TTL != nil {
		d["ttl"] = r.TTL.String()
	}
	if r.Labels != nil {
		d["labels"] = r.Labels
	}
	if h := r.Health; h != nil {
		headers := make([]map[string]string, len(h.Headers))
		for i, f := range h.Headers {
			headers[i] = map[string]string{"name": f.Name, "value": f.Value}
		}
		d["health"] = map[string]any{
			"type": h.Type, "path": h.Path, "method": h.Method, "port": h.Port, "headers": headers, "statuses": h.Statuses, "body": h.Body,
			"service": h.Service, "interval": h.Interval, "timeout": h.Timeout, "rise": h.Rise, "fall": h.Fall, "initial": h.Initial,
		}
	}
	document, err := json.Marshal(d)
	require.NoError(t, err)
	return document
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		`{"pool": "calc", "address": "[fd00::7]:8080"}`,
		`{"pool":"a","address":"w:1","id":"x","weight":5,"invoke":"wrr","concurrency":4,"ttl":"1m30s","labels":{"zone":"\ud83d\ude00","\ud800":"b"},"health":{"type":"tcp"},"force":true}`,
		`{"pool":"a","address":"w:1","health":{"headers":[{"name":"X-A","value":"\u2028"}],"statuses":"200-299,401","body":"^ok$"}}`,
		`{"pool":"a","address":"w:1","ttl":1e3,"labels":{"<<":"1","a":null}}`, `{"pool":"a","pool":"b"}`, `[[[`, ``, `{"a":{"b":[{}]}}`, "\ufeff{}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := Parse(body)
		if err != nil {
			require.Contains(t, []outcome.Code{outcome.RegistrationInvalid, outcome.BodyTooLarge}, err.Code)
			require.NotEmpty(t, err.Detail)
			return
		}
		require.True(t, json.Valid(body), "nothing else is taken")
		again, err := Parse(documentOf(t, r))
		require.Nil(t, err, "%v", err)
		require.Equal(t, r, again)

		d, err := NewBook(Settings{TTL: time.Minute, MaxInstances: 1, MaxPools: 1}).Decide(epoch, r, PoolView{})
		if err == nil {
			requireStored(t, d.Instance)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	body := []byte(`{"pool":"calc","address":"10.0.0.7:8080","id":"w1","invoke":"roundrobin","concurrency":4,"ttl":"30s","health":{"path":"/up"}}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(body); err != nil {
			b.Fatal(err)
		}
	}
}
