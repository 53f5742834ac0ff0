package fanout

import (
	"crypto/sha256"
	"strconv"
	"strings"
)

// ClaimOf returns what an Idempotency-Key claims: the same key on another
// route, or from a client with another Authorization, is another claim. Without
// a key there is none, and the Key is zero.
func ClaimOf(route, authorization, key string) Key {
	if key == "" {
		return Key{}
	}
	return digest("claim", route, authorization, key)
}

// PrintOf returns what tells one request from another under the same claim:
// its method, target, content type and body. What differs from one try to the
// next, such as the request id, has no part in it.
func PrintOf(in *Write) Key {
	// The body is hashed by itself, and not copied.
	body := sha256.Sum256(in.Body)
	parts := append([]string{in.Method, in.Host, in.Target, string(body[:])}, lines(in, "Content-Type")...)
	return digest("print", parts...)
}

// lines returns the values of a header field, one for each line.
func lines(in *Write, name string) []string {
	var values []string
	for _, f := range in.Fields {
		if strings.EqualFold(f.Name, name) {
			values = append(values, f.Value)
		}
	}
	return values
}

// digest hashes parts for one purpose. Each part goes in behind its length, so
// that no byte can move from one to the next unseen; and the purpose goes first,
// so that no Key of one purpose is one of another.
//
// A Key is a hash for two reasons: whatever the client wrote, it has one small
// size in the journal's index; and neither that index nor a list for operators
// repeats the client's text. It does not keep the text secret: who can guess it
// can hash it, too.
func digest(purpose string, parts ...string) Key {
	text := appendPart(make([]byte, 0, 128), purpose)
	for _, part := range parts {
		text = appendPart(text, part)
	}
	sum := sha256.Sum256(text)
	return Key(sum[:len(Key{})])
}

// appendPart appends part behind its length.
func appendPart(text []byte, part string) []byte {
	text = append(strconv.AppendInt(text, int64(len(part)), 10), ':')
	return append(text, part...)
}
