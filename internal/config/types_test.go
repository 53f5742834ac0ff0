package config

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDuration(t *testing.T) {
	good := map[string]struct {
		value time.Duration
		text  string
	}{
		"0":                     {0, "0s"},
		"0s":                    {0, "0s"},
		"250ms":                 {250 * time.Millisecond, "250ms"},
		"1.5s":                  {1500 * time.Millisecond, "1.5s"},
		"60s":                   {time.Minute, "1m"},
		"90s":                   {90 * time.Second, "1m30s"},
		"1h30m":                 {90 * time.Minute, "1h30m"},
		"24h":                   {24 * time.Hour, "24h"},
		"1h0m5s":                {time.Hour + 5*time.Second, "1h0m5s"},
		"10us":                  {10 * time.Microsecond, "10µs"},
		"10µs":                  {10 * time.Microsecond, "10µs"},
		"2562047h":              {2562047 * time.Hour, "2562047h"},
		"9223372036854775807ns": {math.MaxInt64, "2562047h47m16.854775807s"},
	}
	for text, want := range good {
		var d Duration
		require.NoError(t, d.UnmarshalText([]byte(text)), text)
		require.Equal(t, want.value, d.D(), text)
		out, err := d.MarshalText()
		require.NoError(t, err)
		require.Equal(t, want.text, string(out), text)
		var again Duration
		require.NoError(t, again.UnmarshalText(out))
		require.Equal(t, d, again)
	}
	bad := map[string]string{
		"":           `expects a duration such as 250ms, not ""`,
		"5":          `expects a duration such as 250ms, not 5`,
		"1.5":        `expects a duration such as 250ms, not 1.5`,
		"1h30":       `expects a duration such as 250ms, not "1h30"`,
		"soon":       `expects a duration such as 250ms, not "soon"`,
		"s":          `expects a duration such as 250ms, not "s"`,
		"-5s":        `must not be negative, and is "-5s"`,
		"7d":         `unknown unit "d" in "7d"; a day is 24h`,
		"5 s":        `unknown unit " s" in "5 s"; write ns, us, ms, s, m or h`,
		"5S":         `unknown unit "S" in "5S"; write ns, us, ms, s, m or h`,
		"1h5sec":     `unknown unit "sec" in "1h5sec"; write ns, us, ms, s, m or h`,
		"1s+1s":      `expects a duration such as 250ms, not "1s+1s"`,
		"2562048h":   `"2562048h" is too long; the most is 2562047h`,
		"-99999999h": `"-99999999h" is too long; the most is 2562047h`,
	}
	for text, want := range bad {
		d := Duration(7)
		require.EqualError(t, d.UnmarshalText([]byte(text)), want, text)
		require.Equal(t, Duration(7), d, "untouched")
	}
}

func TestSize(t *testing.T) {
	good := map[string]struct {
		value Size
		text  string
	}{
		"0":                   {0, "0"},
		"512":                 {512, "512"},
		"512B":                {512, "512"},
		"1024":                {1 << 10, "1KiB"},
		"64KiB":               {64 << 10, "64KiB"},
		"1536KiB":             {1536 << 10, "1536KiB"},
		"1024KiB":             {1 << 20, "1MiB"},
		"1GiB":                {1 << 30, "1GiB"},
		"3TiB":                {3 << 40, "3TiB"},
		"9223372036854775807": {math.MaxInt64, "9223372036854775807"},
	}
	for text, want := range good {
		var s Size
		require.NoError(t, s.UnmarshalText([]byte(text)), text)
		require.Equal(t, want.value, s, text)
		out, err := s.MarshalText()
		require.NoError(t, err)
		require.Equal(t, want.text, string(out), text)
		require.Equal(t, want.text, s.String())
	}
	bad := map[string]string{
		"":                    `expects a size such as 64KiB, not ""`,
		"lots":                `expects a size such as 64KiB, not "lots"`,
		"+5":                  `expects a size such as 64KiB, not "+5"`,
		"KiB":                 `expects a size such as 64KiB, not "KiB"`,
		"-1":                  `must not be negative, and is -1`,
		"-1KiB":               `must not be negative, and is "-1KiB"`,
		"1.5MiB":              `expects a whole number of bytes such as 1536KiB, not "1.5MiB"`,
		"64KB":                `unknown unit "KB" in "64KB"; write 64KiB`,
		"64k":                 `unknown unit "k" in "64k"; write 64KiB`,
		"64kib":               `unknown unit "kib" in "64kib"; write 64KiB`,
		"10 mb":               `unknown unit " mb" in "10 mb"; write 10MiB`,
		"10b":                 `unknown unit "b" in "10b"; write 10`,
		"1PiB":                `unknown unit "PiB" in "1PiB"; write B, KiB, MiB, GiB or TiB`,
		"1_000":               `unknown unit "_000" in "1_000"; write B, KiB, MiB, GiB or TiB`,
		"0x10":                `unknown unit "x10" in "0x10"; write B, KiB, MiB, GiB or TiB`,
		"8388608TiB":          `"8388608TiB" is too large; the most is 8388607TiB`,
		"9223372036854775808": `9223372036854775808 is too large; the most is 8388607TiB`,
	}
	for text, want := range bad {
		s := Size(7)
		require.EqualError(t, s.UnmarshalText([]byte(text)), want, text)
		require.Equal(t, Size(7), s, "untouched")
	}
}

func TestQuoteCuts(t *testing.T) {
	long := Quote(string(make([]byte, 5000)) + "é")
	require.LessOrEqual(t, len(long), 5*quoteMost)
	require.Equal(t, `"a\"b"`, Quote(`a"b`))
}
