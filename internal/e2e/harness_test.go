package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// patience is how long a test waits for what must come. It bounds a failure;
// nothing that works takes it.
const patience = 20 * time.Second

// binary is the lb under test.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "lb-e2e")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "lb")
	build := exec.Command("go", "build", raceFlag, "-o", binary, "../../cmd/lb")
	if out, err := build.CombinedOutput(); err != nil {
		panic(fmt.Sprintf("%v\n%s", err, out))
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// poll waits until cond holds.
func poll(t testing.TB, timeout time.Duration, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(timeout); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			require.FailNow(t, "waited in vain for "+what)
		}
	}
}

// output is what a process has written to one of its streams so far.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// lines returns the whole lines that are JSON objects.
func (o *output) lines() []map[string]any {
	var all []map[string]any
	for line := range strings.Lines(o.String()) {
		var fields map[string]any
		if strings.HasSuffix(line, "\n") && json.Unmarshal([]byte(line), &fields) == nil {
			all = append(all, fields)
		}
	}
	return all
}

// noteSources walks over the daemon's sources. They are no imports of these
// tests, but go test, before it shows a remembered result, looks whether the
// directories that the tests read are still the same.
var noteSources = sync.OnceFunc(func() {
	for _, dir := range []string{"../../cmd", "../../internal"} {
		if err := filepath.WalkDir(dir, func(string, os.DirEntry, error) error { return nil }); err != nil {
			panic(err)
		}
	}
})

// command prepares the binary with an environment of its own, in an empty
// directory: nothing of the machine's configures it.
func command(t testing.TB, env []string, args ...string) (cmd *exec.Cmd, stdout, stderr *output) {
	noteSources()
	stdout, stderr = new(output), new(output)
	cmd = exec.Command(binary, args...)
	cmd.Dir, cmd.Env = t.TempDir(), append([]string{
		"PATH=" + os.Getenv("PATH"),
		"GORACE=atexit_sleep_ms=0", // else each process that ends costs a second
	}, env...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	return cmd, stdout, stderr
}

// runLB runs a command of lb to its end.
func runLB(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return runLBWith(t, nil, args...)
}

// runLBWith is runLB with variables.
func runLBWith(t testing.TB, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd, out, errs := command(t, env, args...)
	require.NoError(t, cmd.Start())
	overdue := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer overdue.Stop()
	if err := cmd.Wait(); err != nil {
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// configFile writes a configuration to a file.
func configFile(t testing.TB, config string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "lb.yaml")
	require.NoError(t, os.WriteFile(file, []byte(config), 0o600))
	return file
}

// daemon is a running lb.
type daemon struct {
	// URL is the base URL of the listener "public", Addr its host:port, Admin
	// the base URL of the admin listener.
	URL, Addr, Admin string

	t              testing.TB
	client         *http.Client
	cmd            *exec.Cmd
	stdout, stderr *output
	exited         chan struct{}
	told, killed   bool // to end, and how
}

// start runs `lb serve` with a configuration, whose listener "public" and
// admin listener are on 127.0.0.1:0, and waits until it is ready. At the
// test's end it is stopped, and must end well.
func start(t testing.TB, config string, env ...string) *daemon {
	t.Helper()
	return startCommand(t, env, "serve", "-c", configFile(t, config))
}

// startCommand is start with another command line.
func startCommand(t testing.TB, env []string, args ...string) *daemon {
	t.Helper()
	d := &daemon{t: t, exited: make(chan struct{}), client: newClient(t)}
	d.cmd, d.stdout, d.stderr = command(t, env, args...)
	require.NoError(t, d.cmd.Start())
	go func() {
		_ = d.cmd.Wait() // the exit code is read from the state
		close(d.exited)
	}()
	t.Cleanup(d.verifyEnd)
	poll(t, patience, "the daemon to listen", func() bool {
		d.Addr = d.address("public")
		d.URL, d.Admin = "http://"+d.Addr, "http://"+d.address("admin")
		return d.Addr != "" && d.Admin != "http://" || d.hasExited()
	})
	require.False(t, d.hasExited(), "the daemon ended at once")
	poll(t, patience, "the daemon to be ready", func() bool {
		res, err := d.client.Get(d.Admin + "/readyz")
		if err != nil {
			return false
		}
		_ = res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	return d
}

// address returns where a listener is bound, by what the log says, in either
// of its formats.
func (d *daemon) address(listener string) string {
	found := regexp.MustCompile(`"listener": ?"` + listener + `", ?"address": ?"([^"]+)"`).FindStringSubmatch(d.log())
	if found == nil {
		return ""
	}
	return found[1]
}

// terminate sends SIGTERM, once: a second one means something else.
func (d *daemon) terminate() {
	if !d.told {
		d.told = true
		_ = d.cmd.Process.Signal(syscall.SIGTERM)
	}
}

// wait waits for the end and returns the exit code.
func (d *daemon) wait() int {
	d.t.Helper()
	poll(d.t, patience, "the daemon to end", d.hasExited)
	return d.cmd.ProcessState.ExitCode()
}

func (d *daemon) hasExited() bool {
	select {
	case <-d.exited:
		return true
	default:
		return false
	}
}

// stop ends the daemon as an operator does, and returns its exit code. Idle
// connections of the test's client are closed first: a drain waits for them.
func (d *daemon) stop() int {
	d.t.Helper()
	d.client.CloseIdleConnections()
	d.terminate()
	return d.wait()
}

// kill ends the daemon without a word.
func (d *daemon) kill() {
	d.t.Helper()
	d.killed = true
	_ = d.cmd.Process.Kill()
	d.wait()
}

// verifyEnd stops the daemon, and fails the test if it did not end well.
func (d *daemon) verifyEnd() {
	d.client.CloseIdleConnections()
	d.terminate()
	select {
	case <-d.exited:
	case <-time.After(patience):
		d.t.Error("the daemon did not end")
		_ = d.cmd.Process.Kill()
		<-d.exited
	}
	if code := d.cmd.ProcessState.ExitCode(); code != 0 && !d.killed {
		d.t.Errorf("exit code %d", code)
	}
	for _, bad := range []string{"panic", "DATA RACE", "goroutine "} {
		if strings.Contains(d.log(), bad) {
			d.t.Errorf("the log tells of a %s", strings.TrimSpace(bad))
		}
	}
	if d.t.Failed() {
		for _, crash := range []string{"panic: ", "fatal error: ", "SIG", "WARNING: DATA RACE"} {
			if at := strings.Index(d.log(), crash); at >= 0 {
				lines := strings.SplitAfter(d.log()[at:], "\n")
				d.t.Logf("how the daemon crashed:\n%s", strings.Join(lines[:min(len(lines), 40)], ""))
				break
			}
		}
		d.t.Logf("the end of the daemon's log:\n%s", lastLines(d.log(), 40))
	}
}

// lastLines returns the last n lines of a text.
func lastLines(text string, n int) string {
	lines := strings.SplitAfter(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "")
}

// log returns what the daemon has written to stderr.
func (d *daemon) log() string { return d.stderr.String() }

// events returns the log lines with that message.
func (d *daemon) events(msg string) []map[string]any {
	var found []map[string]any
	for _, line := range d.stderr.lines() {
		if line["msg"] == msg {
			found = append(found, line)
		}
	}
	return found
}

// accessLog returns the access lines written so far: all of them after stop,
// up to a second late before.
func (d *daemon) accessLog() []map[string]any { return d.stdout.lines() }

// metric returns the sum of the series of that name with these labels, given
// as name, value, name, value.
func (d *daemon) metric(name string, labels ...string) float64 {
	d.t.Helper()
	sum := 0.0
	for line := range strings.Lines(d.get(d.Admin + "/metrics").Body) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if family, _, _ := strings.Cut(series, "{"); family != name || !labelled(series, labels) {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		require.NoError(d.t, err, line)
		sum += v
	}
	return sum
}

func labelled(series string, labels []string) bool {
	series = strings.NewReplacer("{", ",", "}", ",").Replace(series)
	for i := 0; i < len(labels); i += 2 {
		if !strings.Contains(series, fmt.Sprintf(",%s=%q,", labels[i], labels[i+1])) {
			return false
		}
	}
	return true
}
