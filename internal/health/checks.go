package health

// Verdict says what active checks make of a backend.
type Verdict uint8

const (
	// Unknown is a backend that no probe has answered for yet.
	Unknown Verdict = iota
	// Up is a backend that its probes find well.
	Up
	// Down is a backend that its probes find ill.
	Down
)

// String returns "unknown", "up" or "down".
func (v Verdict) String() string {
	switch v {
	case Up:
		return "up"
	case Down:
		return "down"
	default:
		return "unknown"
	}
}

// Initial says what a backend counts as before its first probe.
type Initial uint8

const (
	// InitialProbe is Unknown until the first result, which decides at once.
	InitialProbe Initial = iota
	// InitialUp is Up until Fall probes in a row have failed.
	InitialUp
	// InitialDown is Down until Rise probes in a row have succeeded.
	InitialDown
)

func (i Initial) verdict() Verdict {
	switch i {
	case InitialUp:
		return Up
	case InitialDown:
		return Down
	default:
		return Unknown
	}
}

// Checks turns the results of one backend's active checks into a verdict: it
// takes Fall failures in a row to go down and Rise successes in a row to come
// back, so that a single lost probe costs nothing. A Checks whose settings are
// filled in is ready. It is not safe for concurrent use.
type Checks struct {
	// Rise and Fall count results in a row; below 1 they count as 1.
	Rise, Fall int
	Initial    Initial

	verdict  Verdict // says nothing before the first result
	ok, fail int     // in a row: one of them is 0, before the first result both
}

// Result notes what a probe found and reports whether the verdict changed.
func (c *Checks) Result(ok bool) (changed bool) {
	before := c.Verdict()
	if ok {
		c.ok, c.fail = c.ok+1, 0
	} else {
		c.ok, c.fail = 0, c.fail+1
	}
	c.verdict = c.next(before)
	return c.verdict != before
}

// next returns the verdict that follows on before.
func (c *Checks) next(before Verdict) Verdict {
	switch {
	case c.ok > 0 && (before == Unknown || c.ok >= c.Rise):
		return Up
	case c.fail > 0 && (before == Unknown || c.fail >= c.Fall):
		return Down
	default:
		return before
	}
}

// Verdict returns what the results so far say.
func (c *Checks) Verdict() Verdict {
	if c.ok == 0 && c.fail == 0 {
		return c.Initial.verdict()
	}
	return c.verdict
}

// ConsecutiveOK returns how many of the latest results in a row were good.
func (c *Checks) ConsecutiveOK() int { return c.ok }

// ConsecutiveFail returns how many of the latest results in a row were bad.
func (c *Checks) ConsecutiveFail() int { return c.fail }

// Reset forgets all results: what comes next is a first probe again.
func (c *Checks) Reset() { c.verdict, c.ok, c.fail = Unknown, 0, 0 }
