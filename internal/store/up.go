package store

// Up reports whether the journal takes writes, as far as the last ones tell.
func (j *Journal) Up() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return !j.closed && !j.hanging() && !j.failing
}
