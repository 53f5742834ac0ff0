package fanout

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestVerdict runs the scripts in testdata/verdict. One line is one step:
//
//	plan [reject=400,…] [already=…] [max_attempts=n]   before backends
//	backends a b …
//	begin a b …          attempts begin
//	end a RESULT         an attempt ends: a status, unsent, starved or cut
//	try a RESULT         both
//	expire
//	expect STATE a=STATE[:REASON] …
//	attempts a ATTEMPTS REACHED
func TestVerdict(t *testing.T) {
	files, err := filepath.Glob("testdata/verdict/*.txt")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			s := newVerdictScript()
			expects := 0
			for n, line := range strings.Split(string(text), "\n") {
				if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
					continue
				}
				require.NoError(t, s.step(strings.Fields(line)), "%s:%d: %s", file, n+1, line)
				if strings.HasPrefix(line, "expect ") {
					expects++
				}
			}
			require.NotZero(t, expects, "a script that expects nothing")
		})
	}
}

type verdictScript struct {
	plan    *Plan
	v       verdict
	reasons map[string]Reason
}

func newVerdictScript() *verdictScript {
	return &verdictScript{
		plan: &Plan{
			Success: []int{201}, Reject: []int{400, 409, 422}, Already: []int{409}, MaxAttempts: 100,
		},
		reasons: map[string]Reason{},
	}
}

func (s *verdictScript) step(words []string) error {
	verb, args := words[0], words[1:]
	switch verb {
	case "plan":
		return s.setPlan(args)
	case "backends":
		var ds []Delivery
		for _, id := range args {
			ds = append(ds, Delivery{Backend: id, State: DeliveryPending})
		}
		s.v = newVerdict(s.plan, ds)
	case "begin":
		for _, id := range args {
			s.v.begin(s.index(id))
		}
	case "try":
		s.v.begin(s.index(args[0]))
		return s.end(args)
	case "end":
		return s.end(args)
	case "expire":
		s.v.expire()
		s.take()
	case "expect":
		return s.expect(args)
	case "attempts":
		d := s.v.deliveries[s.index(args[0])]
		if got := fmt.Sprint(d.Attempts, d.Reached); got != strings.Join(args[1:], " ") {
			return fmt.Errorf("attempts and reached are %s", got)
		}
	default:
		return fmt.Errorf("no verb %q", verb)
	}
	return nil
}

func (s *verdictScript) setPlan(args []string) error {
	for _, arg := range args {
		key, value, _ := strings.Cut(arg, "=")
		var numbers []int
		for _, word := range strings.FieldsFunc(value, func(r rune) bool { return r == ',' }) {
			n, err := strconv.Atoi(word)
			if err != nil {
				return err
			}
			numbers = append(numbers, n)
		}
		switch key {
		case "reject":
			s.plan.Reject = numbers
		case "already":
			s.plan.Already = numbers
		case "max_attempts":
			s.plan.MaxAttempts = numbers[0]
		default:
			return fmt.Errorf("no plan key %q", key)
		}
	}
	return nil
}

func (s *verdictScript) index(id string) int {
	return slices.IndexFunc(s.v.deliveries, func(d Delivery) bool { return d.Backend == id })
}

func (s *verdictScript) end(args []string) error {
	i := s.index(args[0])
	if !s.v.running[i] {
		return fmt.Errorf("no attempt of %s runs", args[0])
	}
	r, ok := map[string]result{"unsent": unsent, "starved": starved, "cut": cut}[args[1]]
	status := 0
	if !ok {
		var err error
		if status, err = strconv.Atoi(args[1]); err != nil {
			return err
		}
		r = answered
	}
	s.v.end(i, r, status)
	s.take()
	return nil
}

func (s *verdictScript) take() {
	for _, m := range s.v.take() {
		s.reasons[s.v.deliveries[m.i].Backend] = m.reason
	}
}

func (s *verdictScript) expect(args []string) error {
	got := []string{string(s.v.state())}
	for _, d := range s.v.deliveries {
		word := d.Backend + "=" + string(d.State)
		if why := s.reasons[d.Backend]; why != "" {
			word += ":" + string(why)
		}
		got = append(got, word)
	}
	if !slices.Equal(got, args) {
		return fmt.Errorf("got %s", strings.Join(got, " "))
	}
	return nil
}
