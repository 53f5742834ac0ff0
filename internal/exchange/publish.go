package exchange

// Publish makes s what new requests are decided by. Those under way keep theirs.
func (d *Decider) Publish(s *Snapshot) { d.snapshot.Store(s) }
