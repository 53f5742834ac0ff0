package store

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc64"
	"strings"

	"lb/internal/fanout"
)

// keySize is the size of a key in bytes, for AES-256.
const keySize = 32

// ParseKey returns the key that text writes down: 64 hexadecimal digits, or 32
// bytes in base64. White space around it does not matter.
func ParseKey(text string) ([]byte, error) {
	text = strings.TrimSpace(text)
	if key, err := hex.DecodeString(text); err == nil && len(key) == keySize {
		return key, nil
	}
	for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
		if key, err := encoding.DecodeString(text); err == nil && len(key) == keySize {
			return key, nil
		}
	}
	// Nothing of it is repeated: it may be a secret with a typing error.
	return nil, fmt.Errorf("the storage key must be %d bytes, as %d hexadecimal digits or in base64: openssl rand -hex %d makes one",
		keySize, 2*keySize, keySize)
}

// errSum says that what was read is not what was written.
var errSum = errors.New("the checksum is wrong")

var crc = crc64.MakeTable(crc64.ECMA)

// sealer turns what clients and backends sent into what is stored. With a key
// it is encrypted; without, it has a checksum. Both are bound to the place
// where it is stored, so that nothing can be moved elsewhere unnoticed.
type sealer struct {
	aead cipher.AEAD // nil without a key
	hash []byte
}

// Why not one key for all: what is known of one use says nothing about another.
const (
	sealLabel  = "lb journal seal"
	hashLabel  = "lb journal hash"
	checkLabel = "lb journal check"
)

func newSealer(key []byte) (*sealer, error) {
	if key == nil {
		return &sealer{}, nil
	}
	if len(key) != keySize {
		return nil, fmt.Errorf("the storage key has %d bytes, and must have %d", len(key), keySize)
	}
	seal, err := hkdf.Key(sha256.New, key, nil, sealLabel, keySize)
	if err != nil {
		return nil, err
	}
	hash, err := hkdf.Key(sha256.New, key, nil, hashLabel, keySize)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(seal)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return &sealer{aead, hash}, err
}

// check returns what tells one key from another; empty without a key.
func (s *sealer) check() []byte {
	if s.aead == nil {
		return nil
	}
	return s.mac([]byte(checkLabel))
}

func (s *sealer) mac(text []byte) []byte {
	h := hmac.New(sha256.New, s.hash)
	_, _ = h.Write(text) // never fails
	return h.Sum(nil)
}

// key returns how k is stored: nil for none. With a key of its own nobody can
// find out by trying what k was made from.
func (s *sealer) key(k fanout.Key) []byte {
	switch {
	case k == fanout.Key{}:
		return nil
	case s.aead == nil:
		return k[:]
	default:
		return s.mac(k[:])[:len(k)]
	}
}

// seal returns what is stored for plain at that place.
func (s *sealer) seal(plain []byte, place string) []byte {
	if s.aead != nil {
		return s.aead.Seal(make([]byte, 0, len(plain)+s.aead.Overhead()), nil, plain, []byte(place))
	}
	return binary.BigEndian.AppendUint64(plain, sumOf(plain, place))
}

// open undoes seal. Its error means damage.
func (s *sealer) open(stored []byte, place string) ([]byte, error) {
	if s.aead != nil {
		plain, err := s.aead.Open(nil, nil, stored, []byte(place))
		if err != nil {
			return nil, errSum
		}
		return plain, nil
	}
	n := len(stored) - 8
	if n < 0 || sumOf(stored[:n], place) != binary.BigEndian.Uint64(stored[n:]) {
		return nil, errSum
	}
	return stored[:n], nil
}

func sumOf(plain []byte, place string) uint64 {
	return crc64.Update(crc64.Checksum([]byte(place), crc), crc, plain)
}
