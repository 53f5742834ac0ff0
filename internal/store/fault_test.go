package store

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/vfs"
	"github.com/stretchr/testify/require"
)

// disk is SQLite's file layer with faults.
type disk struct {
	vfs.VFSFilename
	name string

	mu     sync.Mutex
	fault  func(operation string) error // read, write, sync, delete; nil: all is well
	synced map[string][]byte            // what a power failure would leave, by path

	light       bool          // synced is not kept
	hold, begun atomicChannel // syncs tell begun, and wait until hold is closed
}

type atomicChannel = atomic.Pointer[chan struct{}]

func newDisk(t testing.TB) *disk {
	t.Helper()
	d := &disk{
		VFSFilename: vfs.Find("os").(vfs.VFSFilename), name: strings.NewReplacer("/", "-", "#", "-").Replace(t.Name()),
		synced: make(map[string][]byte),
	}
	vfs.Register(d.name, d)
	t.Cleanup(func() { vfs.Unregister(d.name) })
	return d
}

// open opens a store on the disk.
func (d *disk) open(t *testing.T) *Store {
	t.Helper()
	s, err := open(filepath.Join(t.TempDir(), "lb.db"), d.name)
	require.NoError(t, err)
	t.Cleanup(func() {
		d.set(nil)
		require.NoError(t, s.Close())
	})
	return s
}

// set lets operations fail as fault says from now on.
func (d *disk) set(fault func(operation string) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = fault
}

// failing is a fault of one operation.
func failing(operation string, err error) func(string) error {
	return func(o string) error {
		if o == operation {
			return err
		}
		return nil
	}
}

func (d *disk) try(operation string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fault == nil {
		return nil
	}
	return d.fault(operation)
}

// afterPowerFailure returns a directory with what was synced.
func (d *disk) afterPowerFailure(t *testing.T) string {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	dir := t.TempDir()
	for path, content := range d.synced {
		require.NoError(t, os.WriteFile(filepath.Join(dir, filepath.Base(path)), content, 0o600))
	}
	return dir
}

func (d *disk) OpenFilename(name *vfs.Filename, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	f, flags, err := d.VFSFilename.OpenFilename(name, flags)
	if err != nil {
		return nil, flags, err
	}
	return &file{File: f, disk: d, path: name.String()}, flags, nil
}

func (d *disk) Delete(path string, syncDir bool) error {
	if err := d.try("delete"); err != nil {
		return err
	}
	d.mu.Lock()
	delete(d.synced, path)
	d.mu.Unlock()
	return d.VFSFilename.Delete(path, syncDir)
}

type file struct {
	vfs.File
	disk *disk
	path string
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if err := f.disk.try("read"); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	if err := f.disk.try("write"); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *file) SizeHint(size int64) error {
	if err := f.disk.try("write"); err != nil {
		return err
	}
	return f.File.(vfs.FileSizeHint).SizeHint(size)
}

func (f *file) Truncate(size int64) error {
	if err := f.disk.try("write"); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

func (f *file) Sync(flags vfs.SyncFlag) error {
	if hold := f.disk.hold.Load(); hold != nil {
		*f.disk.begun.Load() <- struct{}{}
		<-*hold
	}
	if err := f.disk.try("sync"); err != nil {
		return err
	}
	if f.disk.light {
		return f.File.Sync(flags)
	}
	content, err := os.ReadFile(f.path)
	if err != nil {
		return err
	}
	f.disk.mu.Lock()
	f.disk.synced[f.path] = content
	f.disk.mu.Unlock()
	return f.File.Sync(flags)
}

func TestWhatIsAcknowledgedSurvivesAPowerFailure(t *testing.T) {
	d := newDisk(t)
	s := d.open(t)
	require.NoError(t, s.SetOperatorState(t.Context(), drained("a"), record("1")))
	require.NoError(t, s.Append(t.Context(), record("2")))
	after := mustOpen(t, filepath.Join(d.afterPowerFailure(t), "lb.db"))
	require.Equal(t, []OperatorState{drained("a")}, states(t, after))
	require.Equal(t, []string{"2", "1"}, details(t, after))

	fill(t, s, maxRecords-10) // more than the log holds: it goes into the file
	require.NoError(t, s.Append(t.Context(), record("3")))
	after = mustOpen(t, filepath.Join(d.afterPowerFailure(t), "lb.db"))
	require.Equal(t, []int64{maxRecords - 7, 1}, extent(t, after))
}

func TestAFullDisk(t *testing.T) {
	for name, fault := range map[string]error{
		"full": sqlite3.FULL, "write error": sqlite3.IOERR_WRITE,
	} {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t)
			s := d.open(t)
			require.NoError(t, s.SetOperatorState(t.Context(), drained("a"), record("before")))

			d.set(failing("write", fault))
			b := drained("b")
			for range 3 {
				err := s.SetOperatorState(t.Context(), b, record("lost"))
				require.ErrorIs(t, err, ErrUnavailable)
				require.ErrorIs(t, err, fault)
				require.ErrorIs(t, s.Append(t.Context(), record("lost")), ErrUnavailable)
				require.Equal(t, []OperatorState{drained("a")}, states(t, s))
				require.Equal(t, []string{"before"}, details(t, s))
			}

			d.set(nil)
			require.NoError(t, s.SetOperatorState(t.Context(), b, record("after")))
			after := mustOpen(t, filepath.Join(d.afterPowerFailure(t), "lb.db"))
			require.Equal(t, []OperatorState{drained("a"), b}, states(t, after))
			require.Equal(t, []string{"after", "before"}, details(t, after))
		})
	}
}

func TestAfterAFailedSyncNothingIsAcknowledged(t *testing.T) {
	d := newDisk(t)
	s := d.open(t)
	require.NoError(t, s.SetOperatorState(t.Context(), drained("a"), record("before")))

	d.set(failing("sync", sqlite3.IOERR_FSYNC))
	require.ErrorIs(t, s.SetOperatorState(t.Context(), drained("b"), record("lost")), ErrUnavailable)
	d.set(nil)
	err := s.Append(t.Context(), record("refused"))
	require.ErrorIs(t, err, ErrUnavailable, "a sync that works again proves nothing")
	require.ErrorContains(t, err, "restart lb")
	require.Equal(t, []OperatorState{drained("a")}, states(t, s), "reads go on")
	require.Equal(t, []string{"before"}, details(t, s))

	path := filepath.Join(d.afterPowerFailure(t), "lb.db")
	require.NoError(t, s.Close())
	for _, path := range []string{path, s.path} {
		after := mustOpen(t, path)
		require.Equal(t, []OperatorState{drained("a")}, states(t, after))
		require.NoError(t, after.Append(t.Context(), record("after")))
		require.Equal(t, []string{"after", "before"}, details(t, after))
	}
}

func TestAReadThatFails(t *testing.T) {
	d := newDisk(t)
	path := filepath.Join(t.TempDir(), "lb.db")
	s := mustOpen(t, path)
	fill(t, s, 1000)
	require.NoError(t, s.Close())
	s, err := open(path, d.name)
	require.NoError(t, err)
	d.set(failing("read", sqlite3.IOERR_READ))
	_, err = s.Audit(t.Context(), 0, 10)
	require.ErrorIs(t, err, ErrUnavailable)
	d.set(nil)
	require.Len(t, details(t, s), 1000)
	require.NoError(t, s.Close())
}

func TestADiskThatFailsAtOpen(t *testing.T) {
	for _, operation := range []string{"read", "write", "sync"} {
		t.Run(operation, func(t *testing.T) {
			d := newDisk(t)
			path := filepath.Join(t.TempDir(), "lb.db")
			d.set(failing(operation, errors.New("the disk is on fire")))
			_, err := open(path, d.name)
			require.ErrorIs(t, err, ErrUnavailable)
			require.ErrorContains(t, err, path)
			d.set(nil)
			require.Empty(t, states(t, mustOpen(t, path)), "nothing is half made")
		})
	}
}

// A new file is made in steps; the process dies before each of them.
func TestMakingAFileMayBeCutOff(t *testing.T) {
	for n, made := 0, false; !made; n++ {
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			d := newDisk(t)
			left := n
			d.set(func(operation string) error {
				if operation == "read" {
					return nil
				}
				if left--; left < 0 {
					return errors.New("dead")
				}
				return nil
			})
			path := filepath.Join(t.TempDir(), "lb.db")
			s, err := open(path, d.name)
			if made = err == nil; made {
				require.Greater(t, n, 10, "there are steps")
				require.NoError(t, s.Close())
			}
			s = mustOpen(t, path)
			require.NoError(t, s.Append(t.Context(), record("1")))
			require.Equal(t, []string{"1"}, details(t, s))
		})
		require.Less(t, n, 100)
	}
}
