package front

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

// frame is a frame of n bytes, whose length is written in the shortest way.
func frame(first byte, n int) []byte {
	var head []byte
	switch {
	case n < 126:
		head = []byte{first, byte(n)}
	case n < 1<<16:
		head = []byte{first, 126, byte(n >> 8), byte(n)}
	default:
		head = []byte{first, 127, 0, 0, 0, 0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
	}
	return append(head, bytes.Repeat([]byte{0x88}, n)...) // every byte looks like a close frame
}

// A frame may begin behind a whole one and nowhere else, in whatever pieces the
// bytes come.
func TestFramesAreFollowed(t *testing.T) {
	stream := [][]byte{
		frame(0x81, 0), frame(0x82, 1), frame(0x89, 5), frame(0xc1, 125), // one with RSV1: compressed
		frame(0x01, 126), frame(0x8a, 3), frame(0x80, 300), // fragments, a pong between them
		frame(0x82, 1<<16), frame(0x81, 2),
	}
	ends := map[int]bool{0: true}
	var all []byte
	for _, f := range stream {
		all = append(all, f...)
		ends[len(all)] = true
	}
	for _, piece := range []int{1, 2, 3, 7, 127, 4096, len(all)} {
		var f frames
		at := 0
		for ; at < len(all); at = min(at+piece, len(all)) {
			require.Equal(t, ends[at], f.mayBegin(), "at %d, in pieces of %d", at, piece)
			f.follow(all[at:min(at+piece, len(all))])
		}
		require.True(t, f.mayBegin())
		require.False(t, f.lost)
	}
}

func TestNoFrameMayFollow(t *testing.T) {
	for name, c := range map[string]struct {
		said []byte
		lost bool
	}{
		"a close frame":          {[]byte{0x88, 2, 3, 0xe8}, false},
		"one without a status":   {[]byte{0x88, 0}, false},
		"a mask":                 {[]byte{0x81, 0x80, 1, 2, 3, 4}, true},
		"a data opcode too many": {[]byte{0x83, 0}, true},
		"a control one":          {[]byte{0x8b, 0}, true},
		"a long ping":            {[]byte{0x89, 126, 1, 0}, true},
		"a ping in pieces":       {[]byte{0x09, 1}, true},
		"an unknown extension":   {[]byte{0xa1, 1}, true},
		"text":                   {[]byte("hello"), true},
	} {
		var f frames
		f.follow(frame(0x81, 3))
		f.follow(c.said)
		require.False(t, f.mayBegin(), name)
		require.Equal(t, c.lost, f.lost, name)
		f.follow(frame(0x81, 3))
		require.False(t, f.mayBegin(), name)
	}
}

// What a tunnel pays for it: one write of a frame each.
func BenchmarkFrames(b *testing.B) {
	for name, p := range map[string][]byte{"one of 100": frame(0x81, 100), "many of 20 in 32 KiB": bytes.Repeat(frame(0x81, 20), 1489)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(p)))
			var f frames
			for b.Loop() {
				f.follow(p)
			}
		})
	}
}
