package backend

// State is what is known about one backend in five words. Each has one writer,
// so that no observer can undo what another one said: a probe does not lift an
// operator's maintenance, and traffic does not overrule a probe.
type State struct {
	// Admin is the operator's word.
	Admin Admin
	// Health is the word of the active checks.
	Health Health
	// Gate is the word of the traffic itself: connect ejection and breaker.
	Gate Gate
	// Sync is the word of the fan-out: whether all writes have arrived.
	Sync Sync
	// Presence is the word of whoever brought the backend: whether it is still
	// there.
	Presence Presence
}

// Admin is what an operator wants of a backend.
type Admin uint8

const (
	// Enabled lets it work.
	Enabled Admin = iota
	// Draining gives it no new reads; those under way end, probes and
	// deliveries go on.
	Draining
	// Maintenance gives it no work and no probes, and holds its deliveries.
	Maintenance
)

// Health is what the active checks say.
type Health uint8

const (
	// HealthUp passes its checks, or has none.
	HealthUp Health = iota
	// HealthDown fails them.
	HealthDown
	// HealthUnknown has not been probed yet.
	HealthUnknown
)

// Gate is what passive observation says.
type Gate uint8

const (
	// GateOpen lets traffic through.
	GateOpen Gate = iota
	// GateTrial lets counted requests through, to see whether it is well again.
	GateTrial
	// GateEjected keeps traffic away for a while after a failed dial.
	GateEjected
	// GateBroken keeps it away because the breaker is open.
	GateBroken
)

// Sync is what the deliveries of writes say.
type Sync uint8

const (
	// InSync has nothing outstanding that is worth a word.
	InSync Sync = iota
	// Lagging is behind on deliveries, and serves reads all the same.
	Lagging
	// LaggingExcluded is behind on deliveries in a pool that reads from such a
	// backend only when all are behind.
	LaggingExcluded
)

// Presence is what its source says of a backend.
type Presence uint8

const (
	// Present is there.
	Present Presence = iota
	// Expired was not heard of for longer than it said it would be.
	Expired
	// Leaving has said, or was told, that it goes; what is under way ends.
	Leaving
)

// Standing is what a state comes to: who gets requests.
type Standing uint8

const (
	// Serves is eligible: the policy may pick it.
	Serves Standing = iota
	// OnTrial gets the counted requests of its trial and no others.
	OnTrial
	// Behind serves when none is eligible, before the last resort: it is well,
	// but its data are old.
	Behind
	// LastResort serves when there is nobody else. Who is merely ejected or
	// broken may have come back already, and trying costs less than refusing.
	LastResort
	// Out gets nothing, whatever happens to the others.
	Out
)

// Standing joins the words. It is the only place that does.
func (s State) Standing() Standing {
	switch {
	case s.Admin != Enabled || s.Health != HealthUp || s.Presence != Present:
		return Out
	case s.Gate == GateOpen && s.Sync != LaggingExcluded:
		return Serves
	case s.Gate == GateTrial && s.Sync != LaggingExcluded:
		return OnTrial
	case s.Gate == GateOpen:
		return Behind
	}
	return LastResort
}

// Eligible reports whether a policy may pick a backend in this state.
func (s State) Eligible() bool { return s.Standing() == Serves }

// States are all values of State.Word, for whoever shows one series for each.
var States = []string{"up", "down", "draining", "maintenance", "ejected", "expired"}

// Word returns the one word that operators read: what they said themselves
// before what was found out.
func (s State) Word() string {
	switch {
	case s.Admin == Maintenance:
		return "maintenance"
	case s.Admin == Draining || s.Presence == Leaving:
		return "draining"
	case s.Presence == Expired:
		return "expired"
	case s.Health != HealthUp:
		return "down"
	case s.Gate != GateOpen:
		return "ejected"
	}
	return "up"
}

// Label is the word for logs: Word, but telling a trial and a backend that was
// not probed yet from what comes before or after.
func (s State) Label() string {
	switch word := s.Word(); {
	case word == "ejected" && s.Gate == GateTrial:
		return "trial"
	case word == "down" && s.Health == HealthUnknown:
		return "unknown"
	default:
		return word
	}
}

func (s State) pack() uint32 {
	return uint32(s.Admin) | uint32(s.Health)<<4 | uint32(s.Gate)<<8 | uint32(s.Sync)<<12 | uint32(s.Presence)<<16
}

func unpack(w uint32) State {
	return State{
		Admin: Admin(w & 0xf), Health: Health(w >> 4 & 0xf), Gate: Gate(w >> 8 & 0xf), Sync: Sync(w >> 12 & 0xf),
		Presence: Presence(w >> 16 & 0xf),
	}
}
