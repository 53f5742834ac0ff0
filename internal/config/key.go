package config

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strings"
)

// errKey does not repeat the text: it may be a key with a slip in it.
var errKey = errors.New("is no key: neither 64 hexadecimal digits nor 32 bytes in base64")

// ParseKey reads a key of 32 bytes, which is written as 64 hexadecimal digits or
// in standard base64. Blanks around it do not count. The error says nothing
// about the text.
func ParseKey(text string) (key [32]byte, err error) {
	text = strings.TrimSpace(text)
	raw, err := hex.DecodeString(text)
	if err != nil {
		raw, err = base64.StdEncoding.Strict().DecodeString(text)
	}
	if err != nil || len(raw) != len(key) {
		return key, errKey
	}
	return [32]byte(raw), nil
}
