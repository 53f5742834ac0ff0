package backend

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// states returns every combination of the four words.
func states() (all []State) {
	for admin := Enabled; admin <= Maintenance; admin++ {
		for health := HealthUp; health <= HealthUnknown; health++ {
			for gate := GateOpen; gate <= GateBroken; gate++ {
				for sync := InSync; sync <= LaggingExcluded; sync++ {
					for presence := Present; presence <= Leaving; presence++ {
						all = append(all, State{admin, health, gate, sync, presence})
					}
				}
			}
		}
	}
	return all
}

func TestStatesArePackedWithoutLoss(t *testing.T) {
	var b Backend
	seen := make(map[uint32]bool)
	for _, s := range states() {
		b.SetState(s)
		require.Equal(t, s, b.State())
		seen[s.pack()] = true
	}
	require.Len(t, seen, 3*3*4*3*3)
	require.Equal(t, State{}, new(Backend).State(), "a new backend is up, with nothing against it")
}

func TestStandingAndWord(t *testing.T) {
	for _, test := range []struct {
		name     string
		state    State
		standing Standing
		word     string
	}{
		{"nothing against it", State{}, Serves, "up"},
		{"behind a little", State{Sync: Lagging}, Serves, "up"},
		{"behind too far", State{Sync: LaggingExcluded}, Behind, "up"},
		{"on trial", State{Gate: GateTrial}, OnTrial, "ejected"},
		{"on trial and behind a little", State{Gate: GateTrial, Sync: Lagging}, OnTrial, "ejected"},
		{"on trial and behind too far", State{Gate: GateTrial, Sync: LaggingExcluded}, LastResort, "ejected"},
		{"ejected", State{Gate: GateEjected}, LastResort, "ejected"},
		{"ejected and behind", State{Gate: GateEjected, Sync: LaggingExcluded}, LastResort, "ejected"},
		{"breaker open", State{Gate: GateBroken}, LastResort, "ejected"},
		{"fails its checks", State{Health: HealthDown}, Out, "down"},
		{"fails its checks and is ejected", State{Health: HealthDown, Gate: GateEjected}, Out, "down"},
		{"not probed yet", State{Health: HealthUnknown}, Out, "down"},
		{"drained", State{Admin: Draining}, Out, "draining"},
		{"drained and down", State{Admin: Draining, Health: HealthDown, Gate: GateBroken}, Out, "draining"},
		{"not heard of for too long", State{Presence: Expired}, Out, "expired"},
		{"not heard of, and down", State{Presence: Expired, Health: HealthDown}, Out, "expired"},
		{"about to leave", State{Presence: Leaving}, Out, "draining"},
		{"in maintenance and about to leave", State{Admin: Maintenance, Presence: Leaving}, Out, "maintenance"},
		{"in maintenance", State{Admin: Maintenance}, Out, "maintenance"},
		{"in maintenance and down", State{Admin: Maintenance, Health: HealthDown}, Out, "maintenance"},
	} {
		t.Run(test.name, func(t *testing.T) {
			require.Equal(t, test.standing, test.state.Standing())
			require.Equal(t, test.word, test.state.Word())
		})
	}
}

func TestWhatHoldsForEveryState(t *testing.T) {
	for _, s := range states() {
		require.Contains(t, States, s.Word())
		require.Equal(t, s.Standing() == Serves, s.Eligible(), "%+v", s)
		out := s.Admin != Enabled || s.Health != HealthUp || s.Presence != Present
		require.Equal(t, out, s.Standing() == Out, "the operator, the checks and the source alone put it out for good: %+v", s)
		if s.Eligible() {
			require.Equal(t, "up", s.Word(), "%+v", s)
		}
	}
}
