package field

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestHopByHop(t *testing.T) {
	for _, row := range []struct {
		name       string
		connection []string
		want       bool
	}{
		{"Te", nil, true},
		{"Proxy-Authorization", nil, true},
		{"X-A", nil, false},
		{"Authorization", []string{"close"}, false},
		{"X-A", []string{"close, x-a"}, true},
		{"X-A", []string{"close", " X-A ,x"}, true},
		{"X-A", []string{"x-ab"}, false},
	} {
		require.Equal(t, row.want, HopByHop(row.name, row.connection), "%+v", row)
	}
}
