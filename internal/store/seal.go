package store

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc64"

	"lb/internal/fanout"
)

// keySize is the size of a key in bytes, for AES-256.
const keySize = 32

// errSum says that what was read is not what was written.
var errSum = errors.New("the checksum is wrong")

var crc = crc64.MakeTable(crc64.ECMA)

// sealer turns what clients and backends sent into what is stored. With a key
// it is encrypted; without, it has a checksum. Both are bound to the write and
// the place where it is stored, so that nothing can be moved elsewhere
// unnoticed.
type sealer struct {
	secret []byte // nil without a key
	hash   []byte
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
	secret, err := hkdf.Key(sha256.New, key, nil, sealLabel, keySize)
	if err != nil {
		return nil, err
	}
	hash, err := hkdf.Key(sha256.New, key, nil, hashLabel, keySize)
	return &sealer{secret, hash}, err
}

// cipher returns what seals the values of one write. Each write has its own
// key, so random nonces do not run out however many writes there are.
func (s *sealer) cipher(id string) cipher.AEAD {
	block, err := aes.NewCipher(mac(s.secret, []byte(id)))
	if err != nil {
		panic(err) // the key has the right size
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err) // it is AES
	}
	return aead
}

// check returns what tells one key from another; empty without a key.
func (s *sealer) check() []byte {
	if s.secret == nil {
		return nil
	}
	return mac(s.hash, []byte(checkLabel))
}

func mac(key, text []byte) []byte {
	h := hmac.New(sha256.New, key)
	_, _ = h.Write(text) // never fails
	return h.Sum(nil)
}

// key returns how k is stored: nil for none. With a key of its own nobody can
// find out by trying what k was made from.
func (s *sealer) key(k fanout.Key) []byte {
	switch {
	case k == fanout.Key{}:
		return nil
	case s.secret == nil:
		return k[:]
	default:
		return mac(s.hash, k[:])[:len(k)]
	}
}

// seal returns what is stored for plain at that place of the write.
func (s *sealer) seal(plain []byte, id, place string) []byte {
	if s.secret == nil {
		return binary.BigEndian.AppendUint64(plain, sumOf(plain, id, place))
	}
	c := s.cipher(id)
	return c.Seal(make([]byte, 0, len(plain)+c.Overhead()), nil, plain, []byte(place))
}

// open undoes seal. Its error means damage.
func (s *sealer) open(stored []byte, id, place string) ([]byte, error) {
	if s.secret == nil {
		n := len(stored) - 8
		if n < 0 || sumOf(stored[:n], id, place) != binary.BigEndian.Uint64(stored[n:]) {
			return nil, errSum
		}
		return stored[:n], nil
	}
	plain, err := s.cipher(id).Open(nil, nil, stored, []byte(place))
	if err != nil {
		return nil, errSum
	}
	return plain, nil
}

func sumOf(plain []byte, id, place string) uint64 {
	return crc64.Update(crc64.Checksum([]byte(place+" "+id), crc), crc, plain)
}
