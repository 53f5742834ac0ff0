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

// The processors: the proxy under test has one for itself, everything else
// shares the other.
const (
	proxyCPU = "0"
	otherCPU = "1"
)

// stage is what the measurement plays on: the backend and both proxies, all
// running from the first run to the last.
type stage struct {
	options options
	dir     string
	started []*exec.Cmd
	proxies []*proxy
}

type proxy struct {
	name     string
	pid      int
	url      string // what wrk asks for
	counters string // URL that answers with allocations since start
}

// pauseScript tells wrk how long each connection rests between two requests.
const pauseScript = "pause.lua"

// newStage builds the proxies and starts everything.
func newStage(ctx context.Context, o options) (s *stage, err error) {
	tools := []string{"nginx", "wrk"}
	if !o.unpinned {
		tools = append(tools, "taskset")
	}
	if o.strace {
		tools = append(tools, "strace")
	}
	if err := haveTools(tools); err != nil {
		return nil, err
	}
	s = &stage{options: o}
	if s.dir, err = os.MkdirTemp("", "lb-bench-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	lb := o.lb
	if lb == "" {
		if lb, err = s.build(ctx, "lb", "lb/cmd/lb"); err != nil {
			return nil, err
		}
	}
	bare, err := s.build(ctx, "bare", "lb/bench/bare")
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(ctx, 5)
	if err != nil {
		return nil, err
	}
	backend, lbAddress, lbAdmin, bareAddress, bareSide := ports[0], ports[1], ports[2], ports[3], ports[4]

	nginxFile, err := s.write("nginx.conf", nginxConfig(s.dir, backend))
	if err != nil {
		return nil, err
	}
	lbFile, err := s.write("lb.yaml", lbConfig(lbAddress, lbAdmin, backend))
	if err != nil {
		return nil, err
	}
	if _, err := s.write(pauseScript, fmt.Sprintf("function delay() return %d end\n", o.pause.Milliseconds())); err != nil {
		return nil, err
	}
	if _, err := s.start(ctx, otherCPU, "nginx", "-c", nginxFile, "-p", s.dir); err != nil {
		return nil, err
	}
	if err := await(ctx, "http://"+backend+"/"); err != nil {
		return nil, err
	}
	lbPID, err := s.start(ctx, proxyCPU, lb, "serve", "-c", lbFile)
	if err != nil {
		return nil, err
	}
	barePID, err := s.start(ctx, proxyCPU, bare, "-listen", bareAddress, "-backend", backend, "-counters", bareSide)
	if err != nil {
		return nil, err
	}
	s.proxies = []*proxy{
		{name: "bare", pid: barePID, url: "http://" + bareAddress + "/hello", counters: "http://" + bareSide + "/"},
		{name: "lb", pid: lbPID, url: "http://" + lbAddress + "/hello", counters: "http://" + lbAdmin + "/metrics"},
	}
	for _, p := range s.proxies {
		for _, url := range []string{p.url, p.counters} {
			if err := await(ctx, url); err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
		}
	}
	return s, nil
}

func haveTools(names []string) error {
	var missing []string
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("not installed: %s. On Debian: apt-get install nginx-light wrk util-linux strace",
			strings.Join(missing, ", "))
	}
	return nil
}

func (s *stage) build(ctx context.Context, name, pkg string) (string, error) {
	file := filepath.Join(s.dir, name)
	cmd := exec.CommandContext(ctx, "go", "build", "-o", file, pkg)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build %s (call from within the module): %w\n%s", pkg, err, out)
	}
	return file, nil
}

func (s *stage) write(name, content string) (string, error) {
	file := filepath.Join(s.dir, name)
	return file, os.WriteFile(file, []byte(content), 0o600)
}

// pinned returns a command that runs on one processor, unless nothing is pinned.
func (s *stage) pinned(ctx context.Context, cpu, name string, args ...string) *exec.Cmd {
	if s.options.unpinned {
		return exec.CommandContext(ctx, name, args...)
	}
	return exec.CommandContext(ctx, "taskset", append([]string{"-c", cpu, name}, args...)...)
}

// start starts a process that runs until close and returns its id. taskset
// replaces itself, so the id is the program's own.
func (s *stage) start(ctx context.Context, cpu, name string, args ...string) (pid int, err error) {
	cmd := s.pinned(context.WithoutCancel(ctx), cpu, name, args...)
	cmd.Env = os.Environ()
	if !s.options.unpinned {
		cmd.Env = append(cmd.Env, "GOMAXPROCS=1")
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	s.started = append(s.started, cmd)
	return cmd.Process.Pid, nil
}

// close ends the started processes, last first, and removes the files.
func (s *stage) close() {
	keptOpen.CloseIdleConnections() // lb waits for open connections when it stops
	for i := len(s.started) - 1; i >= 0; i-- {
		cmd := s.started[i]
		_ = cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		kill.Stop()
	}
	_ = os.RemoveAll(s.dir)
}

// freePorts returns addresses on loopback that nobody listens on just now.
func freePorts(ctx context.Context, n int) ([]string, error) {
	var lc net.ListenConfig
	var addresses []string
	var open []net.Listener
	defer func() {
		for _, l := range open {
			_ = l.Close()
		}
	}()
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

// await polls url until it answers 200.
func await(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		_, err := fetch(ctx, url)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// keptOpen is used for the counters: a connection less to set up is an
// allocation less to see.
var keptOpen = &http.Client{Timeout: 5 * time.Second}

func fetch(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := keptOpen.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	var body bytes.Buffer
	if _, err := body.ReadFrom(res.Body); err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", url, res.Status)
	}
	return body.Bytes(), nil
}

// allocations are counters since a process began.
type allocations struct{ objects, bytes float64 }

func (p *proxy) allocations(ctx context.Context) (a allocations, err error) {
	text, err := fetch(ctx, p.counters)
	if err != nil {
		return a, err
	}
	if a.objects, err = sample(text, "go_memstats_mallocs_total"); err != nil {
		return a, err
	}
	a.bytes, err = sample(text, "go_memstats_alloc_bytes_total")
	return a, err
}

// sample reads an unlabelled series in the Prometheus text format.
func sample(text []byte, name string) (float64, error) {
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("no %s among the counters", name)
}

// clockTick is the unit of the times in /proc: USER_HZ, the same on every Linux
// that Go runs on.
const clockTick = 10 * time.Millisecond

// cpuTime is what a process has used so far, in user and system mode.
func cpuTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, ok := strings.Cut(string(text), ") ") // the name may hold blanks
	fields := strings.Fields(rest)
	if !ok || len(fields) < 13 {
		return 0, errors.New("cannot read /proc/PID/stat")
	}
	return ticks(fields[11:13])
}

// processorTime is what all processes together have used of one processor.
type processorTime struct{ busy, idle time.Duration }

func processor(cpu string) (t processorTime, err error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return t, err
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line) // name user nice system idle iowait irq softirq steal …
		if len(f) < 9 || f[0] != "cpu"+cpu {
			continue
		}
		if t.idle, err = ticks(f[4:6]); err != nil {
			return t, err
		}
		t.busy, err = ticks(append(f[1:4:4], f[6:9]...))
		return t, err
	}
	return t, fmt.Errorf("no processor %s in /proc/stat", cpu)
}

func ticks(fields []string) (sum time.Duration, err error) {
	for _, f := range fields {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * clockTick
	}
	return sum, nil
}
