package store

import (
	"encoding/binary"
	"fmt"
	"hash/crc64"
	"math"
	"time"

	"github.com/ncruces/go-sqlite3"

	"lb/internal/fanout"
)

// How the rows of the journal are written and read.
//
// What is looked up has a column. What is not is in a few values, sealed:
// writes.head is what stays readable until a write is forgotten, request what
// only sending needs (so settling drops it without reading it), reply the
// answer for the client. A row's sum is over its columns, seq and place
// included, but for request, which seals itself, and turn.

// turn says whose turn a delivery is. It follows from the states and stands in
// a column so that an index can hold it: what is due is read in order, however
// many wait for others of their key.
const (
	turnNone   = 0 // settled, or there is nothing to wait for any more
	turnParked = 1
	turnWaits  = 2 // held, or behind another of its key
	turnReady  = 3 // pending, and first in its key
)

// encoder appends values to a buffer, each with its length.
type encoder []byte

func (e *encoder) number(n int64) { *e = binary.AppendVarint(*e, n) }

func (e *encoder) text(s string) {
	*e = append(binary.AppendUvarint(*e, uint64(len(s))), s...)
}

func (e *encoder) bytes(b []byte) {
	*e = append(binary.AppendUvarint(*e, uint64(len(b))), b...)
}

func (e *encoder) fields(fields []fanout.Field) {
	e.number(int64(len(fields)))
	for _, f := range fields {
		e.text(f.Name)
		e.text(f.Value)
	}
}

// decoder takes values off a buffer; bad is set once it does not hold them.
type decoder struct {
	rest []byte
	bad  bool
}

func (d *decoder) number() int64 {
	v, n := binary.Varint(d.rest)
	if n <= 0 {
		d.bad, d.rest = true, nil
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *decoder) bytes() []byte {
	size, n := binary.Uvarint(d.rest)
	if n <= 0 || size > math.MaxInt32 || int(size) > len(d.rest)-n {
		d.bad, d.rest = true, nil
		return nil
	}
	b := d.rest[n : n+int(size)]
	d.rest = d.rest[n+len(b):]
	return b
}

func (d *decoder) text() string { return string(d.bytes()) }

func (d *decoder) fields() []fanout.Field {
	n := d.number()
	if n <= 0 || n > int64(len(d.rest)) {
		d.bad = d.bad || n != 0
		return nil
	}
	fields := make([]fanout.Field, n)
	for i := range fields {
		fields[i] = fanout.Field{Name: d.text(), Value: d.text()}
	}
	return fields
}

func (d *decoder) key() (k fanout.Key) {
	if b := d.bytes(); len(b) == len(k) {
		copy(k[:], b)
	} else {
		d.bad = true
	}
	return k
}

// head is what stays of a write until it is forgotten.
func (j *Journal) head(r *fanout.Record) []byte {
	e := make(encoder, 0, 256)
	e.bytes(r.Order[:])
	e.bytes(r.Claim[:])
	e.bytes(r.Print[:])
	e.text(r.Write.Method)
	e.text(r.Write.Target)
	e.text(r.Write.RequestID)
	e.number(int64(len(r.Deliveries)))
	for i := range r.Deliveries {
		e.text(r.Deliveries[i].Backend)
	}
	return j.seal.seal(e, r.ID, "head")
}

// openHead fills r from a head and returns its backends.
func (j *Journal) openHead(r *fanout.Record, head []byte) (backends []string, err error) {
	plain, err := j.seal.open(head, r.ID, "head")
	if err != nil {
		return nil, err
	}
	d := decoder{rest: plain}
	r.Order, r.Claim, r.Print = d.key(), d.key(), d.key()
	r.Write.Method, r.Write.Target, r.Write.RequestID = d.text(), d.text(), d.text()
	n := d.number()
	for i := int64(0); i < n && !d.bad; i++ {
		backends = append(backends, d.text())
	}
	if d.bad {
		return nil, errSum
	}
	return backends, nil
}

// request is what only sending needs.
func (j *Journal) request(r *fanout.Record) []byte {
	e := make(encoder, 0, 512+len(r.Write.Body))
	e.text(r.Write.Host)
	e.text(r.Write.Key)
	e.fields(r.Write.Fields)
	e.bytes(r.Write.Body)
	return j.seal.seal(e, r.ID, "request")
}

func (j *Journal) openRequest(r *fanout.Record, request []byte) error {
	plain, err := j.seal.open(request, r.ID, "request")
	if err != nil {
		return err
	}
	d := decoder{rest: plain}
	r.Write.Host, r.Write.Key, r.Write.Fields, r.Write.Body = d.text(), d.text(), d.fields(), d.bytes()
	if d.bad {
		return errSum
	}
	return nil
}

func (j *Journal) reply(r *fanout.Record) []byte {
	if r.Reply == nil {
		return nil
	}
	e := make(encoder, 0, 256+len(r.Reply.Response.Body))
	e.text(r.Reply.Backend)
	e.number(int64(r.Reply.Response.Status))
	e.number(int64(r.Reply.Response.RetryAfter))
	e.fields(r.Reply.Response.Fields)
	e.bytes(r.Reply.Response.Body)
	return j.seal.seal(e, r.ID, "reply")
}

func (j *Journal) openReply(r *fanout.Record, reply []byte) error {
	if reply == nil {
		return nil
	}
	plain, err := j.seal.open(reply, r.ID, "reply")
	if err != nil {
		return err
	}
	d := decoder{rest: plain}
	r.Reply = &fanout.Reply{Backend: d.text()}
	r.Reply.Response.Status = int(d.number())
	r.Reply.Response.RetryAfter = time.Duration(d.number())
	r.Reply.Response.Fields, r.Reply.Response.Body = d.fields(), d.bytes()
	if d.bad {
		return errSum
	}
	return nil
}

// errorText is how a delivery's error is stored: nil for none.
func (j *Journal) errorText(id string, d *fanout.Delivery) []byte {
	if d.Error == "" {
		return nil
	}
	return j.seal.seal([]byte(d.Error), id, "error "+d.Backend)
}

// sum is a row's checksum: over every value with its length.
func sum(values ...any) int64 {
	var room [256]byte
	e := encoder(room[:0])
	for _, v := range values {
		switch v := v.(type) {
		case int64:
			e.number(v)
		case string:
			e.text(v)
		case []byte:
			e.number(int64(len(v)))
			if v == nil {
				e.number(-1) // NULL is not an empty value
			}
			e = append(e, v...)
		}
	}
	return int64(crc64.Checksum(e, crc)) //nolint:gosec // G115: the bits count, not the number
}

// writeRow is a row of writes, but for request.
type writeRow struct {
	seq                       int64
	id, route, pool, state    string
	created, clock, settledAt int64 // settledAt 0: NULL
	order, claim              []byte
	size                      int64
	told                      int64
	head, reply               []byte
}

func (w *writeRow) sum() int64 {
	return sum(w.seq, w.id, w.route, w.pool, w.created, w.clock, w.state, w.settledAt, w.order, w.claim, w.size, w.told, w.head, w.reply)
}

// deliveryRow is a row of deliveries.
type deliveryRow struct {
	seq, place    int64
	pool, backend string
	order         []byte
	turn          int64
	state, reason string
	attempts      int64
	reached       int64
	unknown, left int64
	status, next  int64
	err           []byte
}

func (d *deliveryRow) sum() int64 {
	return sum(d.seq, d.place, d.pool, d.backend, d.order, d.state, d.reason, d.attempts, d.reached, d.unknown, d.left, d.status, d.next, d.err)
}

// instant is how a time is stored: nanoseconds since 1970, 0 for the zero time.
func instant(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func timeOf(instant int64) time.Time {
	if instant == 0 {
		return time.Time{}
	}
	return time.Unix(0, instant).UTC()
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// ended tells whether a write in that state waits for nothing any more: it
// goes after a day.
func ended(s fanout.State) bool { return s.Settled() && s != fanout.WriteParked }

// turnOf is a delivery's turn as far as its own states tell.
func turnOf(w fanout.State, d fanout.DeliveryState) int64 {
	switch {
	case ended(w):
		return turnNone
	case d == fanout.DeliveryParked:
		return turnParked
	case d == fanout.DeliveryHeld, d == fanout.DeliveryPending && w != fanout.WritePending:
		return turnWaits
	case d == fanout.DeliveryPending:
		return turnReady
	default:
		return turnNone
	}
}

// row makes the row of r's delivery i; its order is that of the write's row.
func (j *Journal) row(r *fanout.Record, i int, order []byte) deliveryRow {
	d := &r.Deliveries[i]
	return deliveryRow{
		seq: number64(r.Seq), place: int64(i), pool: r.Pool, backend: d.Backend, order: order, turn: turnOf(r.State, d.State),
		state: string(d.State), reason: string(d.Reason), attempts: int64(d.Attempts), reached: int64(d.Reached),
		unknown: flag(d.Unknown), left: int64(d.Left), status: int64(d.LastStatus), next: instant(d.Next),
		err: j.errorText(r.ID, d),
	}
}

// number64 is how a Seq is stored.
func number64(seq uint64) int64 { return int64(min(seq, math.MaxInt64)) }

// delivery is the delivery that a row stands for.
func (j *Journal) delivery(id string, row *deliveryRow) (fanout.Delivery, error) {
	d := fanout.Delivery{
		Backend: row.backend, State: fanout.DeliveryState(row.state), Reason: fanout.Reason(row.reason),
		Attempts: int(row.attempts), Reached: int(row.reached), Unknown: row.unknown != 0, Left: int(row.left),
		LastStatus: int(row.status), Next: timeOf(row.next),
	}
	if row.err != nil {
		text, err := j.seal.open(row.err, id, "error "+row.backend)
		if err != nil {
			return d, err
		}
		d.Error = string(text)
	}
	return d, nil
}

const (
	writeColumns    = `seq, id, route, pool, created, clock, state, settled_at, order_key, claim, size, told, head, reply, sum, request`
	deliveryColumns = `seq, place, pool, backend, order_key, turn, state, reason, attempts, reached, unknown, left_over, last_status, next, error, sum`
)

// blob returns a copy of a column, nil for NULL.
func blob(row *sqlite3.Stmt, column int) []byte {
	if row.ColumnType(column) == sqlite3.NULL {
		return nil
	}
	return row.ColumnBlob(column, []byte{})
}

// scanWrite reads writeColumns but for request, and reports whether the sum is
// right.
func scanWrite(row *sqlite3.Stmt) (w writeRow, ok bool) {
	w = writeRow{
		seq: row.ColumnInt64(0), id: row.ColumnText(1), route: row.ColumnText(2), pool: row.ColumnText(3),
		created: row.ColumnInt64(4), clock: row.ColumnInt64(5), state: row.ColumnText(6), settledAt: row.ColumnInt64(7),
		order: blob(row, 8), claim: blob(row, 9), size: row.ColumnInt64(10), told: row.ColumnInt64(11),
		head: blob(row, 12), reply: blob(row, 13),
	}
	return w, row.ColumnInt64(14) == w.sum()
}

// scanDelivery reads deliveryColumns and reports whether the sum is right.
func scanDelivery(row *sqlite3.Stmt) (d deliveryRow, ok bool) {
	d = deliveryRow{
		seq: row.ColumnInt64(0), place: row.ColumnInt64(1), pool: row.ColumnText(2), backend: row.ColumnText(3),
		order: blob(row, 4), turn: row.ColumnInt64(5), state: row.ColumnText(6), reason: row.ColumnText(7),
		attempts: row.ColumnInt64(8), reached: row.ColumnInt64(9), unknown: row.ColumnInt64(10), left: row.ColumnInt64(11),
		status: row.ColumnInt64(12), next: row.ColumnInt64(13), err: blob(row, 14),
	}
	return d, row.ColumnInt64(15) == d.sum()
}

// dropKept closes the statements that run has kept.
func (s *Store) dropKept() {
	for _, stmt := range s.kept {
		_ = stmt.Close() // repeats the error of the last step
	}
	s.kept = nil
}

// run runs one statement, prepared once and kept, with args (string, int64,
// []byte; nil and a nil []byte are NULL), and calls each, which may be nil,
// with every row until it returns false. Whoever calls it has the turn.
// Statements do not nest in themselves.
func (s *Store) run(sql string, each func(row *sqlite3.Stmt) bool, args ...any) (err error) {
	stmt := s.kept[sql]
	if stmt == nil {
		if stmt, _, err = s.conn.PrepareFlags(sql, sqlite3.PREPARE_PERSISTENT); err != nil {
			return err
		}
		if s.kept == nil {
			s.kept = make(map[string]*sqlite3.Stmt)
		}
		s.kept[sql] = stmt
	}
	for i, arg := range args {
		switch arg := arg.(type) {
		case nil:
			err = stmt.BindNull(i + 1)
		case string:
			err = stmt.BindText(i+1, arg)
		case int64:
			err = stmt.BindInt64(i+1, arg)
		case []byte:
			if arg == nil {
				err = stmt.BindNull(i + 1)
			} else {
				err = stmt.BindBlob(i+1, arg)
			}
		default:
			err = fmt.Errorf("argument %d is a %T", i+1, arg)
		}
		if err != nil {
			return err
		}
	}
	if each == nil {
		return stmt.Exec()
	}
	for stmt.Step() {
		if !each(stmt) || stmt.Err() != nil {
			break
		}
	}
	err = stmt.Err()
	_ = stmt.Reset() // repeats the error of the last step
	return err
}
