package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The names that the filled storage and the configuration have in common.
const (
	route = "write"
	pool  = "main"
)

// stage is what the measures play on: the binary, and a directory.
type stage struct {
	options
	root  string
	files int
}

func newStage(ctx context.Context, o options) (*stage, error) {
	s := &stage{options: o}
	var err error
	if s.root, err = os.MkdirTemp(o.dir, "lb-bench-fanout-"); err != nil {
		return nil, err
	}
	if s.lb == "" {
		s.lb = filepath.Join(s.root, "lb")
		build := exec.CommandContext(ctx, "go", "build", "-o", s.lb, "lb/cmd/lb")
		if out, err := build.CombinedOutput(); err != nil {
			s.close()
			return nil, fmt.Errorf("go build lb/cmd/lb (call from within the module): %w\n%s", err, out)
		}
	}
	return s, nil
}

func (s *stage) close() { _ = os.RemoveAll(s.root) }

// file returns a new name below the stage's directory.
func (s *stage) file(kind string) string {
	s.files++
	return filepath.Join(s.root, fmt.Sprintf("%d.%s", s.files, kind))
}

// storage returns a new storage, as a copy if there is something to copy.
func (s *stage) storage(from string) (path string, err error) {
	path = s.file("db")
	if from != "" {
		err = copyFile(from, path)
	}
	return path, err
}

// forget removes a storage and what SQLite keeps beside it.
func (s *stage) forget(storage string) {
	files, _ := filepath.Glob(storage + "*")
	for _, file := range files {
		_ = os.Remove(file)
	}
}

// daemon is one lb. It keeps its addresses and its storage from one start to
// the next.
type daemon struct {
	stage          *stage
	address, admin string
	config, log    string
	backends       []*backend
	under          []string // the command that runs it
	keepOpen       *http.Client

	cmd   *exec.Cmd
	began time.Time     // the last start
	ended chan struct{} // closed when it is over
}

// daemon prepares an lb over the backends. An empty storage is one in memory.
func (s *stage) daemon(ctx context.Context, storage string, backends []*backend) (*daemon, error) {
	addresses, err := freeAddresses(ctx, 2)
	if err != nil {
		return nil, err
	}
	d := &daemon{
		stage: s, address: addresses[0], admin: addresses[1], config: s.file("yaml"), log: s.file("log"),
		backends: backends, keepOpen: &http.Client{Timeout: 10 * time.Second},
	}
	return d, os.WriteFile(d.config, []byte(lbConfig(d.address, d.admin, storage, backends)), 0o600)
}

// lbConfig is lb as it is measured: one fan-out route with bounds that are not
// reached, one route to read, the defaults for all else.
func lbConfig(listen, admin, storage string, backends []*backend) string {
	var members strings.Builder
	for _, b := range backends {
		fmt.Fprintf(&members, "      - { address: %q, id: %s }\n", b.address, b.id)
	}
	return fmt.Sprintf(`listeners:
  - { name: public, address: %q }
pools:
  - name: %s
    backends:
%sroutes:
  - { name: %s, match: { methods: [POST], path: /write }, fanout: { pool: %[2]s, wait: 1s, max_pending: 10000000, max_pending_bytes: 64GiB } }
  - { name: read, match: { methods: [GET], path_prefix: / }, proxy: { pool: %[2]s } }
admin: { address: %[5]q }
storage: { path: %[6]q }
shutdown: { drain: 2s }
log: { level: warn, access: { enabled: false } }
`, listen, pool, members.String(), route, admin, storage)
}

// start starts lb and returns when it has answered a GET, and when that was.
func (d *daemon) start(ctx context.Context) (ready time.Duration, err error) {
	log, err := os.Create(d.log)
	if err != nil {
		return 0, err
	}
	defer func() { _ = log.Close() }() // the process has its own
	command := append(append([]string{}, d.under...), d.stage.lb, "serve", "-c", d.config)
	d.cmd = exec.CommandContext(context.WithoutCancel(ctx), command[0], command[1:]...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.began = time.Now()
	if err := d.cmd.Start(); err != nil {
		return 0, err
	}
	cmd, ended := d.cmd, make(chan struct{})
	d.ended = ended
	go func() {
		_ = cmd.Wait() // the log tells how it ended
		close(ended)
	}()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		if c, err := dial(ctx, d.address); err == nil {
			err = c.get()
			_ = c.Close()
			if err == nil {
				return time.Since(d.began), nil
			}
		}
		select {
		case <-d.ended:
			text, _ := os.ReadFile(d.log)
			return 0, fmt.Errorf("lb has ended:\n%s", text)
		case <-ctx.Done():
			text, _ := os.ReadFile(d.log)
			return 0, errors.Join(fmt.Errorf("lb does not answer: %w\n%s", ctx.Err(), text), d.kill())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// kill ends lb as kill -9 does.
func (d *daemon) kill() error { return d.end(syscall.SIGKILL) }

// stop ends lb as operators do.
func (d *daemon) stop() error { return d.end(syscall.SIGTERM) }

// end sends a signal and waits for what it does. Nothing is done to one that
// has not begun, or is over.
func (d *daemon) end(signal syscall.Signal) error {
	if d.ended == nil {
		return nil
	}
	d.keepOpen.CloseIdleConnections() // lb waits for open connections when it stops
	if err := d.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-d.ended:
		return nil
	case <-time.After(20 * time.Second):
		_ = d.cmd.Process.Kill()
		<-d.ended
		return fmt.Errorf("lb has not ended 20 s after %v", signal)
	}
}

// metrics returns the samples of lb's, by their names with labels.
func (d *daemon) metrics(ctx context.Context) (map[string]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.admin+"/metrics", http.NoBody)
	if err != nil {
		return nil, err
	}
	res, err := d.keepOpen.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	var text bytes.Buffer
	if _, err := text.ReadFrom(res.Body); err != nil {
		return nil, err
	}
	samples := make(map[string]float64)
	for line := range strings.Lines(text.String()) {
		if at := strings.LastIndexByte(line, ' '); at > 0 && line[0] != '#' {
			if samples[line[:at]], err = strconv.ParseFloat(strings.TrimSpace(line[at:]), 64); err != nil {
				return nil, err
			}
		}
	}
	return samples, nil
}

// pending returns how many deliveries lb shows as pending.
func (d *daemon) pending(ctx context.Context) (float64, error) {
	samples, err := d.metrics(ctx)
	return samples[fmt.Sprintf(`lb_fanout_deliveries{pool=%q,state="pending"}`, pool)], err
}

// known waits until lb shows so many deliveries as pending.
func (d *daemon) known(ctx context.Context, backlog float64) error {
	return until(ctx, time.Minute, "the backlog to be known", func() (bool, error) {
		n, err := d.pending(ctx)
		return n >= backlog, err
	})
}

// until polls until done says so.
func until(ctx context.Context, patience time.Duration, what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		ok, err := done()
		if ok && err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("waited %v in vain for %s", patience, what), err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// memoryOf returns what a process has in memory, in MiB.
func memoryOf(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 64)
			return kib / 1024, err
		}
	}
	return 0, errors.New("no VmRSS in /proc: this needs Linux")
}

// clockTick is the unit of the times in /proc: USER_HZ, the same on every Linux
// that Go runs on.
const clockTick = 10 * time.Millisecond

// cpuTime is what lb has used so far, in user and system mode.
func (d *daemon) cpuTime() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	// The fields after the name in parentheses; utime and stime are the 14th
	// and 15th of all.
	_, rest, _ := strings.Cut(string(text), ") ")
	var sum time.Duration
	for _, field := range strings.Fields(rest)[11:13] {
		ticks, err := strconv.Atoi(field)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(ticks) * clockTick
	}
	return sum, nil
}

// freeAddresses returns addresses on loopback that nobody listens on just now.
func freeAddresses(ctx context.Context, n int) ([]string, error) {
	var addresses []string
	var open []net.Listener
	defer func() {
		for _, l := range open {
			_ = l.Close()
		}
	}()
	var lc net.ListenConfig
	for range n {
		l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		open = append(open, l)
		addresses = append(addresses, l.Addr().String())
	}
	return addresses, nil
}
