package store

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// TestMain runs the tests, or the owner of a store that one of them kills.
func TestMain(m *testing.M) {
	if path := os.Getenv(ownerPath); path != "" {
		own(path)
		return
	}
	goleak.VerifyTestMain(m)
}
