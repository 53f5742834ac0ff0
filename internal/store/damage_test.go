package store

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3"
	"github.com/stretchr/testify/require"

	"lb/internal/fanout"
)

// ledger is a closed journal with writes of every sort, as it was before it is
// damaged.
type ledger struct {
	content []byte
	open    map[string]fanout.Record // not settled, or parked
	key     []byte
}

const ledgerWrites = 90

func newLedger(t *testing.T, key []byte) *ledger {
	t.Helper()
	l := &ledger{open: make(map[string]fanout.Record), key: key}
	path := filepath.Join(t.TempDir(), "lb.db")
	s := mustOpen(t, path)
	require.NoError(t, s.SetOperatorState(t.Context(), drained("a"), record("1")))
	j, err := s.Journal(JournalOptions{Key: key})
	require.NoError(t, err)
	for i := range ledgerWrites {
		id := fmt.Sprintf("write-%03d", i)
		r := write(id)
		r.Write.Target = "/target-of-" + id
		r.Write.Body = []byte(strings.Repeat("body of "+id+"; ", 1+i%5*20))
		r.Claim = fanout.Key{byte(i + 1), 7}
		if i%4 == 0 {
			r.Order = fanout.Key{byte(1 + i%12), 9}
		}
		require.NoError(t, j.Admit(t.Context(), r))
		c := fanout.Change{ID: id, State: fanout.WritePending, Reply: &fanout.Reply{Backend: "a", Response: fanout.Response{Status: 201, Body: []byte("reply to " + id)}}}
		a := fanout.Delivery{Backend: "a", State: fanout.DeliveryPending, Error: "error of " + id}
		b := fanout.Delivery{Backend: "b", State: fanout.DeliveryDone}
		switch i % 9 {
		case 1:
			a.State = fanout.DeliveryDone
			c.State = fanout.WriteDone
		case 2:
			a.State, c.State = fanout.DeliveryParked, fanout.WriteParked
		case 3:
			a.State = fanout.DeliveryHeld
		}
		c.Deliveries = []fanout.Delivery{a, b}
		j.Update(c)
	}
	require.NoError(t, j.Flush(t.Context()))
	for i := range ledgerWrites {
		r, ok, err := j.Find(t.Context(), fmt.Sprintf("write-%03d", i))
		require.NoError(t, err)
		require.True(t, ok)
		if !ended(r.State) {
			l.open[r.ID] = r
		}
	}
	require.NoError(t, s.Close())
	l.content, err = os.ReadFile(path)
	require.NoError(t, err)
	return l
}

// after opens a copy of the ledger that was damaged.
func (l *ledger) after(t *testing.T, damage func(content []byte)) (path string) {
	t.Helper()
	content := bytes.Clone(l.content)
	damage(content)
	path = filepath.Join(t.TempDir(), "lb.db")
	require.NoError(t, os.WriteFile(path, content, 0o600))
	return path
}

// judge tells what became of a write: "whole", "parked" for what is left of a
// damaged one, or "gone". What is sent must be what was admitted.
func (l *ledger) judge(t *testing.T, id string, r fanout.Record, ok bool) string {
	t.Helper()
	want := l.open[id]
	if !ok {
		return "gone"
	}
	damaged := slices.ContainsFunc(r.Deliveries, func(d fanout.Delivery) bool { return d.Reason == fanout.ReasonDamaged })
	if damaged || r.Write.Method == "" {
		require.Equal(t, fanout.WriteParked, r.State)
		for _, d := range r.Deliveries {
			require.NotEqual(t, fanout.DeliveryPending, d.State)
			require.NotEqual(t, fanout.DeliveryHeld, d.State)
		}
		if r.Write.Method != "" {
			require.Equal(t, want.Write, r.Write, "a retry sends it")
		}
		return "parked"
	}
	require.Equal(t, want, r)
	return "whole"
}

// everything reads all that there is, by every path that the engine takes, and
// returns the open records by number, or the error.
func everything(t *testing.T, j *Journal) (found map[uint64]fanout.Record, told map[uint64]int, err error) {
	t.Helper()
	found, told = make(map[uint64]fanout.Record), make(map[uint64]int)
	for range 2 {
		for _, b := range []string{"a", "b"} {
			rs, err := j.Due(t.Context(), "users", b, time.Now().Add(time.Hour), 1000)
			if err != nil {
				return nil, nil, err
			}
			for _, r := range rs {
				if r.State == fanout.WriteParked {
					told[r.Seq]++
				}
			}
		}
	}
	for _, state := range []fanout.State{fanout.WritePending, fanout.WriteParked} {
		rs, err := j.List(t.Context(), fanout.Filter{State: state, Limit: 1000})
		if err != nil {
			return nil, nil, err
		}
		for _, r := range rs {
			same, ok, err := j.Find(t.Context(), r.ID)
			if err != nil {
				return nil, nil, err
			}
			require.True(t, ok)
			require.Equal(t, r.Seq, same.Seq)
			found[r.Seq] = same
		}
	}
	return found, told, nil
}

// Each record class, damaged at a place that is known.
func TestADamagedRowIsParkedAndItsNeighboursGoOn(t *testing.T) {
	for name, key := range map[string][]byte{"plain": nil} {
		l := newLedger(t, key)
		for text, sendable := range map[string]bool{
			"body of write-050": false, "/target-of-write-050": false, "reply to write-050": true, "error of write-050": true, "request-write-050": false,
			"write-050registerusers": true, // columns of the row itself
		} {
			t.Run(name+" "+text, func(t *testing.T) {
				places := 0
				for at := 0; ; at++ {
					next := bytes.Index(l.content[at:], []byte(text))
					if next < 0 {
						break
					}
					at += next
					places++
					s := mustOpen(t, l.after(t, func(c []byte) { c[at+len(text)-1] ^= 4 }))
					j, err := s.Journal(JournalOptions{Key: key})
					require.NoError(t, err)
					found, told, err := everything(t, j)
					require.NoError(t, err)
					for id, want := range l.open {
						r, ok := found[want.Seq]
						got := l.judge(t, id, r, ok)
						if id != "write-050" {
							require.Equal(t, "whole", got, id)
							continue
						}
						if got == "parked" {
							require.Equal(t, map[uint64]int{want.Seq: 1}, told, "it is returned once")
							require.Equal(t, sendable, r.Write.Method != "")
							require.Equal(t, id, r.ID)
						}
					}
					totals, err := j.Totals(t.Context())
					require.NoError(t, err)
					require.EqualValues(t, ledgerWrites, totals.Seq)
					require.NoError(t, j.Admit(t.Context(), write("later")))
					require.NoError(t, s.Close())
					s = mustOpen(t, s.path)
					j, err = s.Journal(JournalOptions{Key: key})
					require.NoError(t, err)
					again, _, err := everything(t, j)
					require.NoError(t, err)
					require.Len(t, again, len(found)+1, "the same after a restart")
					require.NoError(t, s.Close())
				}
				require.Positive(t, places)
			})
		}
	}
}

// mishaps are what may happen to a file: bits that flip, blocks of zeros.
func mishaps(content []byte, n int) map[string]func([]byte) {
	random := rand.New(rand.NewPCG(1, 2))
	all := make(map[string]func([]byte))
	for range n {
		at := 4096 + random.IntN(len(content)-4096)
		bit := byte(1) << random.IntN(8)
		all["bit "+strconv.Itoa(at)+"/"+strconv.Itoa(int(bit))] = func(c []byte) { c[at] ^= bit }
	}
	for range n / 4 {
		at := (4096 + random.IntN(len(content)-4096)) / 512 * 512
		all["block "+strconv.Itoa(at)] = func(c []byte) { clear(c[at : at+512]) }
		page := at / 4096 * 4096
		all["page "+strconv.Itoa(page)] = func(c []byte) { clear(c[page : page+4096]) }
	}
	return all
}

// Wherever a file is damaged: either the journal says so, or every write is
// there, whole or parked.
func TestNoDamageIsSilent(t *testing.T) {
	for name, key := range map[string][]byte{"plain": nil, "encrypted": testKey(1)} {
		l := newLedger(t, key)
		ends := make(map[string]int)
		for mishap, damage := range mishaps(l.content, 40) {
			path := l.after(t, damage)
			t.Run(name+" "+mishap, func(t *testing.T) {
				s, err := Open(path)
				if err != nil {
					require.ErrorIs(t, err, ErrDamaged)
					ends["refused"]++
					return
				}
				defer func() { require.NoError(t, s.Close()) }()
				j, err := s.Journal(JournalOptions{Key: key})
				if err != nil {
					require.ErrorIs(t, err, ErrDamaged)
					ends["refused"]++
					return
				}
				found, _, err := everything(t, j)
				if err != nil {
					require.ErrorIs(t, err, ErrDamaged)
					isUnavailable(t, err)
					require.ErrorIs(t, j.Admit(t.Context(), write("later")), ErrDamaged)
					_, err = j.Oldest(t.Context())
					require.ErrorIs(t, err, ErrDamaged)
					ends["refused"]++
					return
				}
				parked := false
				for id, want := range l.open {
					r, ok := found[want.Seq]
					got := l.judge(t, id, r, ok)
					require.NotEqual(t, "gone", got, id)
					parked = parked || got == "parked"
				}
				if parked {
					ends["parked"]++
				} else {
					ends["whole"]++
				}
			})
		}
		t.Log(name, ends)
		require.Positive(t, ends["parked"])
		require.Positive(t, ends["whole"])
	}
}

// Salvage brings over what the damaged file still has, and names the rest.
func TestSalvage(t *testing.T) {
	for name, key := range map[string][]byte{"plain": nil, "encrypted": testKey(1)} {
		l := newLedger(t, key)
		all := mishaps(l.content, 20)
		all["nothing"] = func([]byte) {}
		whole := 0
		for mishap, damage := range all {
			path := l.after(t, damage)
			t.Run(name+" "+mishap, func(t *testing.T) {
				to := filepath.Join(t.TempDir(), "new.db")
				before, err := os.ReadFile(path)
				require.NoError(t, err)
				report, err := Salvage(t.Context(), path, to, key)
				require.NoError(t, err)
				after, err := os.ReadFile(path)
				require.NoError(t, err)
				require.True(t, bytes.Equal(before, after), "it stays as it is")
				s := mustOpen(t, to)
				j, err := s.Journal(JournalOptions{Key: key})
				require.NoError(t, err)
				found, _, err := everything(t, j)
				require.NoError(t, err)
				gone, damaged := 0, 0
				for id, want := range l.open {
					r, ok := found[want.Seq]
					switch l.judge(t, id, r, ok) {
					case "gone":
						gone++
					case "parked":
						damaged++
					case "whole":
						whole++
					}
				}
				if gone > 0 {
					require.Contains(t, strings.Join(report.Lost, "\n"), "writes from number ", "%d are gone", gone)
				}
				require.GreaterOrEqual(t, report.Damaged, damaged)
				require.Len(t, found, report.Writes+report.Parked)
				if len(report.Lost) == 0 {
					require.Equal(t, []OperatorState{drained("a")}, states(t, s))
					require.Equal(t, []string{"1"}, details(t, s))
					require.Equal(t, []int{1, 1}, []int{report.Operator, report.Audit})
				}
				if mishap == "nothing" {
					require.Zero(t, gone+damaged+report.Damaged)
					require.Empty(t, report.Lost)
				}
				later := write("later")
				require.NoError(t, j.Admit(t.Context(), later))
				require.Greater(t, later.Seq, uint64(ledgerWrites-10))
				entries, err := os.ReadDir(filepath.Dir(to))
				require.NoError(t, err)
				require.LessOrEqual(t, len(entries), 3, "nothing else is left")
			})
		}
		require.Greater(t, whole, len(all)*len(l.open)*8/10, "most of it")
	}
}

func TestSalvageRefuses(t *testing.T) {
	l := newLedger(t, testKey(1))
	path := l.after(t, func([]byte) {})
	to := filepath.Join(t.TempDir(), "new.db")
	_, err := Salvage(t.Context(), path, path, testKey(1))
	require.ErrorContains(t, err, "choose another path")
	_, err = Salvage(t.Context(), path, to, nil)
	require.ErrorContains(t, err, "was not written with this key")
	_, err = Salvage(t.Context(), path, to, testKey(2))
	require.ErrorContains(t, err, "was not written with this key")
	_, err = Salvage(t.Context(), path+".none", to, nil)
	require.ErrorContains(t, err, "no such file")
	require.NoFileExists(t, path+".none.lock")
	s := mustOpen(t, path)
	_, err = Salvage(t.Context(), path, to, testKey(1))
	require.ErrorIs(t, err, ErrInUse)
	require.NoError(t, s.Close())
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Salvage(ended, path, to, testKey(1))
	require.ErrorIs(t, err, context.Canceled)
	require.NoFileExists(t, to)
}

// A file that a killed process left has its log beside it.
func TestSalvageReadsTheLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lb.db")
	j := mustJournal(t, mustOpen(t, path))
	require.NoError(t, j.Admit(t.Context(), write("in the log")))
	dir := t.TempDir()
	for _, suffix := range []string{"", "-wal"} {
		content, err := os.ReadFile(path + suffix)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "lb.db"+suffix), content, 0o600))
	}
	to := filepath.Join(t.TempDir(), "new.db")
	report, err := Salvage(t.Context(), filepath.Join(dir, "lb.db"), to, nil)
	require.NoError(t, err)
	require.Equal(t, Report{Writes: 1}, report)
	require.Equal(t, []string{"in the log"}, pendingIDs(t, mustJournal(t, mustOpen(t, to))))
}

func TestAnIndexThatLiesIsFound(t *testing.T) {
	l := newLedger(t, nil)
	// The id stands in its row and in the index: damaged in the index alone, the
	// row is found all the same.
	at := -1
	for from := 0; ; {
		next := bytes.Index(l.content[from:], []byte("write-040"))
		if next < 0 {
			break
		}
		page := (from + next) / 4096 * 4096
		if l.content[page] == 10 && !bytes.HasSuffix(l.content[:from+next], []byte("error of ")) { // a leaf of an index
			at = from + next
		}
		from += next + 1
	}
	require.Positive(t, at)
	s := mustOpen(t, l.after(t, func(c []byte) { c[at] ^= 1 }))
	j := mustJournal(t, s)
	r, ok, err := j.Find(t.Context(), "write-040")
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, "whole", l.judge(t, "write-040", r, ok))
	broken := ""
	require.NoError(t, s.read(t.Context(), func(c *sqlite3.Conn) error {
		return query(c, "PRAGMA integrity_check", func(row *sqlite3.Stmt) { broken += row.ColumnText(0) })
	}))
	require.Equal(t, "ok", broken)
}
