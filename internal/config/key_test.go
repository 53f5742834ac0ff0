package config

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseKey(t *testing.T) {
	var want [32]byte
	for i := range want {
		want[i] = byte(0xf0 + i)
	}
	const digits = "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff000102030405060708090a0b0c0d0e0f"
	encoded := base64.StdEncoding.EncodeToString(want[:])
	for _, text := range []string{digits, strings.ToUpper(digits), digits + "\n", encoded, " " + encoded + "\r\n"} {
		key, err := ParseKey(text)
		require.NoError(t, err, text)
		require.Equal(t, want, key, text)
	}
	for _, text := range []string{
		"", "secret", digits[1:], digits[2:], digits + "00", digits[1:] + "g", "0x" + digits[2:],
		encoded[1:], encoded + "=", strings.TrimSuffix(encoded, "="), strings.ReplaceAll(encoded, "/", "_"),
		base64.StdEncoding.EncodeToString(want[1:]), base64.StdEncoding.EncodeToString(append(want[:], 0)),
	} {
		key, err := ParseKey(text)
		require.EqualError(t, err, "is no key: neither 64 hexadecimal digits nor 32 bytes in base64", text)
		require.Zero(t, key)
	}
}
