package proxy

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// text returns n bytes that differ along the way.
func text(n int) string {
	var b strings.Builder
	for b.Len() < n {
		b.WriteString("the quick brown fox ")
		b.WriteByte(byte(b.Len() >> 8))
	}
	return b.String()[:n]
}

func TestBodyIsTheSameForEachAttempt(t *testing.T) {
	for _, n := range []int{0, 1, 100, replayLimit - 1, replayLimit} {
		for _, length := range []int64{int64(n), -1} {
			content := text(n)
			b := newBody(strings.NewReader(content), length, true)
			for _, upTo := range []int{0, n / 3, n, n / 2} { // attempts that broke off, or not
				a := b.attempt()
				got, err := io.ReadAll(io.LimitReader(a, int64(upTo)))
				require.NoError(t, err)
				require.Equal(t, content[:upTo], string(got))
				require.NoError(t, a.Close())
				require.True(t, b.replayable())
			}
			got, err := io.ReadAll(b.attempt())
			require.NoError(t, err)
			require.Equal(t, content, string(got), "%d of %d bytes", n, length)
			require.NoError(t, b.broken())
		}
	}
}

func TestBodyInSmallPieces(t *testing.T) {
	content := text(5000)
	b := newBody(iotest.DataErrReader(iotest.HalfReader(strings.NewReader(content))), -1, true)
	first := b.attempt()
	_, err := io.CopyN(io.Discard, iotest.OneByteReader(first), 1234)
	require.NoError(t, err)
	require.NoError(t, first.Close())
	second := b.attempt()
	require.NoError(t, iotest.TestReader(second, []byte(content)))
}

func TestBodyThatOutgrowsTheBuffer(t *testing.T) {
	content := text(replayLimit + 1)
	for _, test := range []struct {
		name   string
		length int64
		keep   bool
	}{
		{"and does not say how long it is", -1, true},
		{"and says so", int64(len(content)), true},
		{"or need not be kept", -1, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBody(strings.NewReader(content), test.length, test.keep)
			require.True(t, b.replayable(), "nothing is lost before a byte is read")
			first := b.attempt()
			require.NoError(t, first.Close())
			require.True(t, b.replayable(), "nor by an attempt that read none")

			got, err := io.ReadAll(b.attempt())
			require.NoError(t, err)
			require.Equal(t, content, string(got), "the attempt that reads it has it whole")
			require.False(t, b.replayable())
			require.Nil(t, b.kept, "nothing is held for nobody")

			_, err = io.ReadAll(b.attempt())
			require.ErrorIs(t, err, errBytesLost, "no attempt takes the rest for the whole")
			require.NoError(t, b.broken(), "that is not the client's fault")
		})
	}
}

// A body is read before its request waits, if that is the whole of it.
func TestBodyThatIsGathered(t *testing.T) {
	for _, test := range []struct {
		size     int
		chunked  bool // its length is not known
		gathered int
	}{
		{size: 0}, {size: 0, chunked: true},
		{size: 100, gathered: 100}, {size: 100, chunked: true, gathered: 100},
		{size: replayLimit, gathered: replayLimit}, {size: replayLimit, chunked: true, gathered: replayLimit},
		{size: replayLimit + 1, gathered: 0}, {size: replayLimit + 1, chunked: true, gathered: replayLimit},
		{size: 5 * replayLimit, gathered: 0}, {size: 5 * replayLimit, chunked: true, gathered: replayLimit},
	} {
		content, length := text(test.size), int64(test.size)
		if test.chunked {
			length = -1
		}
		client := &counted{r: strings.NewReader(content)}
		b := newBody(client, length, false) // no retry, and yet it is kept
		for range 2 {
			require.NoError(t, b.gather())
			require.Equal(t, test.gathered, client.n, "%+v", test)
		}
		require.True(t, b.replayable())
		got, err := io.ReadAll(b.attempt())
		require.NoError(t, err)
		require.Equal(t, content, string(got), "%+v", test)
		require.Equal(t, test.size <= replayLimit && test.gathered == test.size, b.replayable())
		require.LessOrEqual(t, cap(b.kept), 2*replayLimit)
	}
}

// counted counts what is read.
type counted struct {
	r io.Reader
	n int
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}

func TestBodyThatBreaksOffWhileItIsGathered(t *testing.T) {
	broke := errors.New("connection reset by peer")
	b := newBody(io.MultiReader(strings.NewReader("hel"), iotest.ErrReader(broke)), 5, false)
	for range 2 {
		require.ErrorIs(t, b.gather(), broke)
	}
	require.NoError(t, (*body)(nil).gather())
}

func TestBodyReadAfterClose(t *testing.T) {
	b := newBody(strings.NewReader("hello"), 5, true)
	a := b.attempt()
	require.NoError(t, a.Close())
	_, err := a.Read(make([]byte, 1))
	require.ErrorIs(t, err, http.ErrBodyReadAfterClose)
	require.NoError(t, a.Close(), "closing twice is fine")
	got, err := io.ReadAll(b.attempt())
	require.NoError(t, err)
	require.Equal(t, "hello", string(got), "the client's body is not closed with it")
}

func TestBodyThatBreaksOff(t *testing.T) {
	broke := errors.New("connection reset by peer")
	b := newBody(io.MultiReader(strings.NewReader("hel"), iotest.ErrReader(broke)), 5, true)
	for range 2 {
		got, err := io.ReadAll(b.attempt())
		require.ErrorIs(t, err, broke)
		require.Equal(t, "hel", string(got))
		require.ErrorIs(t, b.broken(), broke, "so that nobody blames the backend")
	}
}

func TestNoBody(t *testing.T) {
	var b *body
	require.True(t, b.replayable())
	require.NoError(t, b.broken())
}

// An attempt is given up while it waits for the client's next bytes. They
// belong to the next attempt, although the first one gets to read them.
func TestBytesThatAnAbandonedAttemptReadsAreNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, send := io.Pipe()
		b := newBody(client, -1, true)
		first := b.attempt()
		var reading sync.WaitGroup
		reading.Go(func() {
			n, err := io.ReadFull(first, make([]byte, 6))
			if n != 6 || err != nil {
				t.Error("the first attempt read", n, err)
			}
			_, err = first.Read(make([]byte, 100)) // blocks: the client pauses
			if err != nil && !errors.Is(err, http.ErrBodyReadAfterClose) {
				t.Error("the read under way:", err)
			}
		})
		_, err := io.WriteString(send, "hello ")
		require.NoError(t, err)
		synctest.Wait()
		require.NoError(t, first.Close()) // does not wait for the client

		var got bytes.Buffer
		reading.Go(func() {
			if _, err := got.ReadFrom(b.attempt()); err != nil {
				t.Error("the second attempt:", err)
			}
		})
		_, err = io.WriteString(send, "wor")
		require.NoError(t, err)
		synctest.Wait()
		_, err = io.WriteString(send, "ld")
		require.NoError(t, err)
		require.NoError(t, send.Close())
		reading.Wait()
		require.Equal(t, "hello world", got.String())
	})
}

func TestBodyIsReadByManyAttemptsAtOnce(t *testing.T) {
	content := text(replayLimit)
	b := newBody(iotest.HalfReader(strings.NewReader(content)), -1, true)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			got, err := io.ReadAll(b.attempt())
			if err != nil || string(got) != content {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
}
