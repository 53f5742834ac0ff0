package e2e

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// soundHistory is a short one without a fault: user u is registered and changed
// twice, the first change being sent again after a crash; one write is rejected
// and one was never admitted.
func soundHistory() history {
	const backends = 2
	var now tick
	next := func() tick { now++; return now }
	write := func(value, key string, e end) sentWrite {
		return sentWrite{
			request: request{Method: "POST", Target: "/x", Body: sha256.Sum256([]byte(value))},
			User:    "u", Value: value, Key: key, End: e, Sent: next(),
		}
	}
	h := history{Finals: make([]map[string]string, backends)}
	see := func(w sentWrite, life, status int, told bool) {
		id := "id-" + w.Value
		key := w.Key
		if key == "" {
			key = id
		}
		for b := range backends {
			h.Sightings = append(h.Sightings, sighting{
				request: w.request, Backend: b, Life: life, At: next(), Key: key, FanoutID: id,
				Status: status, Applied: status == 201, Told: told,
			})
		}
	}
	end := func(w sentWrite) {
		w.Answered = next()
		w.IDs = []string{"id-" + w.Value}
		h.Writes = append(h.Writes, w)
	}
	registered := write("p0", "k0", endApplied)
	see(registered, 1, 201, true)
	end(registered)
	first := write("p1", "", endAccepted)
	see(first, 1, 0, false)
	see(first, 1, 201, false)
	see(first, 2, 201, true)
	end(first)
	second := write("p2", "k2", endAccepted)
	see(second, 2, 201, true)
	end(second)
	rejected := write("p3", "", endAccepted)
	see(rejected, 2, 409, true)
	end(rejected)
	h.Writes = append(h.Writes, write("p4", "", endUnknown))
	h.Quiet = next()
	for b := range backends {
		h.Finals[b] = map[string]string{"u": "p2"}
	}
	return h
}

// Each breach of a promise is found, and called what it is.
func TestJudge(t *testing.T) {
	t.Parallel()
	sighted := func(h *history, value string, backend, nth int) *sighting {
		for i, s := range h.Sightings {
			if s.Backend == backend && s.Body == sha256.Sum256([]byte(value)) {
				if nth--; nth < 0 {
					return &h.Sightings[i]
				}
			}
		}
		panic("no such sighting")
	}
	drop := func(h *history, value string, backends ...int) {
		var kept []sighting
		for _, s := range h.Sightings {
			gone := false
			for _, b := range backends {
				gone = gone || s.Backend == b && s.Body == sha256.Sum256([]byte(value))
			}
			if !gone {
				kept = append(kept, s)
			}
		}
		h.Sightings = kept
	}
	again := func(h *history, s sighting, at tick) {
		s.At = at
		h.Sightings = append(h.Sightings, s)
	}
	for _, test := range []struct {
		name  string
		spoil func(h *history)
		want  []string
	}{
		{"nothing", func(*history) {}, nil},
		{"an acknowledged write is nowhere", func(h *history) { drop(h, "p0", 0, 1) }, []string{"I1 lost: /x p0 of u"}},
		{"a 202 is nowhere", func(h *history) { drop(h, "p1", 0, 1) }, []string{"I1 lost: /x p1 of u"}},
		{"a 202 is at one backend only", func(h *history) { drop(h, "p1", 1) }, []string{"I1 lost: /x p1 of u"}},
		{"a 202 was sent and never applied", func(h *history) {
			for b := range 2 {
				for n := range 3 {
					s := sighted(h, "p1", b, n)
					s.Applied, s.Status = false, 500
				}
			}
		}, []string{"I1 lost: /x p1 of u"}},
		{"an unacknowledged write is at one backend only", func(h *history) {
			h.Writes[1].End, h.Writes[1].Answered = endUnknown, 0
			drop(h, "p1", 0)
		}, []string{"I5 torn: /x p1 of u"}},
		{"an unacknowledged write is everywhere", func(h *history) { h.Writes[1].End, h.Writes[1].Answered = endUnknown, 0 }, nil},
		{"a refused write is applied", func(h *history) { h.Writes[0].End = endRefused }, []string{"I5 torn: /x p0 of u"}},
		{"an invented write", func(h *history) { again(h, sighting{request: request{Method: "POST", Target: "/x"}}, 90) }, []string{"I2 invented: backend 0 got POST /x"}},
		{"another target", func(h *history) {
			for b := range 2 {
				sighted(h, "p2", b, 0).Target = "/y"
			}
			h.Finals[0]["u"], h.Finals[1]["u"] = "p1", "p1"
		}, []string{"I2 invented", "I2 invented", "I1 lost"}},
		{"another key than the client's", func(h *history) { sighted(h, "p2", 1, 0).Key = "k3" }, []string{"I4 two identities: /x p2 of u"}},
		{"another key than the fan-out's id", func(h *history) { sighted(h, "p1", 0, 0).Key = "k" }, []string{"I4 two identities: /x p1 of u"}},
		{"a repeat as another fan-out", func(h *history) { sighted(h, "p1", 0, 2).FanoutID = "id-x" }, []string{"I4 two identities: /x p1 of u"}},
		{"one client's key, answered as two fan-outs", func(h *history) { h.Writes[0].IDs = append(h.Writes[0].IDs, "id-x") }, []string{"I4 two identities"}},
		{"one fan-out for two writes", func(h *history) {
			h.Writes[2].IDs = []string{"id-p0"}
			for b := range 2 {
				sighted(h, "p2", b, 0).FanoutID = "id-p0"
			}
		}, []string{"I4 two identities: fan-out id-p0 is"}},
		{"a repeat by the process that had the answer", func(h *history) { sighted(h, "p1", 0, 1).Life, sighted(h, "p1", 0, 1).Told = 2, true }, []string{"I4 repeated: /x p1 of u"}},
		{"a repeat when all is settled", func(h *history) {
			s := *sighted(h, "p2", 0, 0)
			s.Life = 3
			again(h, s, h.Quiet+1)
		}, []string{"I6 sent again: /x p2 of u"}},
		{"another order at one backend", func(h *history) {
			a, b := sighted(h, "p1", 1, 1), sighted(h, "p0", 1, 0)
			a.request, b.request, a.FanoutID, b.FanoutID, a.Key, b.Key = b.request, a.request, b.FanoutID, a.FanoutID, b.Key, a.Key
		}, []string{"I3 other order", "I4 repeated", "I3 overtaken"}},
		{"the other order everywhere", func(h *history) { h.Writes[0].Sent, h.Writes[0].Answered = 80, 81 }, []string{"I3 not the order of admission"}},
		{"overtaken within a life", func(h *history) {
			s := *sighted(h, "p0", 0, 0)
			s.Told = false
			sighted(h, "p0", 0, 0).Told = false
			again(h, s, h.Quiet-1)
		}, []string{"I3 overtaken: backend 0 got /x p0 of u"}},
		{"overtaken after a crash, by a repeat", func(h *history) {
			s := *sighted(h, "p0", 0, 0)
			s.Life = 3
			again(h, s, h.Quiet-1)
		}, nil},
		{"another value at the end", func(h *history) { h.Finals[1]["u"] = "p1" }, []string{"I3 last value: user u is p1 at backend 1"}},
		{"a read failed", func(h *history) { h.Reads = []string{"503"} }, []string{"I8 read failed: 503"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := soundHistory()
			test.spoil(&h)
			got := strings.Join(judge(h), "\n")
			for _, want := range test.want {
				require.Contains(t, got, want)
			}
			kinds := make(map[string]bool)
			for _, want := range test.want {
				kinds[want[:2]] = true
			}
			for line := range strings.Lines(got) {
				require.True(t, kinds[line[:2]], fmt.Sprintf("not asked for: %s", line))
			}
		})
	}
}
