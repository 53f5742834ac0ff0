package probe

import "context"

// TCP finds a backend well if it accepts a connection, and hangs up.
type TCP struct {
	// Port is asked instead of the address's own unless it is 0.
	Port int
	// Allow judges the address that is connected to; nil: any will do.
	Allow Allow
}

// Probe implements Check.
func (c TCP) Probe(ctx context.Context, address string) error {
	conn, err := dial(ctx, address, c.Port, c.Allow)
	if err != nil {
		return failure(ctx, err)
	}
	_ = conn.Close() // whether it closes well is not what was asked
	return nil
}
