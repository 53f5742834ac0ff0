package front

import "encoding/binary"

// frames follows the WebSocket frames that a server sends (RFC 6455 §5.2), to
// know where one ends. The zero value is before the first.
type frames struct {
	head   [10]byte
	got    int    // of head
	left   uint64 // of the payload
	closed bool   // a close frame has begun: no frame may follow
	lost   bool   // this is no such stream: nobody knows where anything ends
}

// The first two bytes of a head.
const (
	final      = 0x80
	reserved   = 0x30 // RSV2 and RSV3; RSV1 says compressed (RFC 7692)
	opcode     = 0x0f
	opBinary   = 0x2
	opClose    = 0x8 // from here on they are control frames: whole and short (§5.5)
	opPong     = 0xa
	masked     = 0x80 // a server never does that
	lengthBits = 0x7f
	length16   = 126 // the length is in two bytes that follow
	length64   = 127 // in eight
)

// mayBegin reports whether a frame may begin behind what was followed. Between
// two frames is enough for one that closes, also where they are fragments of one
// message (§5.4).
func (f *frames) mayBegin() bool { return !f.lost && !f.closed && f.got == 0 && f.left == 0 }

// follow takes note of p, which comes next.
func (f *frames) follow(p []byte) {
	for len(p) > 0 && !f.lost && !f.closed {
		if f.left > 0 {
			n := min(f.left, uint64(len(p)))
			f.left, p = f.left-n, p[n:]
			continue
		}
		f.head[f.got] = p[0]
		f.got, p = f.got+1, p[1:]
		f.read()
	}
}

// read reads the head, if it is whole.
func (f *frames) read() {
	if f.got < 2 {
		return
	}
	op, length := f.head[0]&opcode, f.head[1]&lengthBits
	switch {
	case f.head[0]&reserved != 0, f.head[1]&masked != 0, op > opPong, op > opBinary && op < opClose,
		op >= opClose && (f.head[0]&final == 0 || length >= length16):
		f.lost = true
		return
	case op == opClose:
		f.closed = true
		return
	case length < length16:
		f.left = uint64(length)
	case length == length16 && f.got == 4:
		f.left = uint64(binary.BigEndian.Uint16(f.head[2:]))
	case length == length64 && f.got == 10:
		f.left = binary.BigEndian.Uint64(f.head[2:])
	default:
		return
	}
	f.got = 0
}
