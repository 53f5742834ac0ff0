package e2e

import (
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// chaosBackend is the program that the processes run, built once. The race
// detector is for lb.
var chaosBackend = sync.OnceValue(func() string {
	file := filepath.Join(filepath.Dir(binary), "chaosbackend")
	build := exec.Command("go", "build", "-o", file, "./testdata/chaosbackend")
	if out, err := build.CombinedOutput(); err != nil {
		panic(fmt.Sprintf("%v\n%s", err, out))
	}
	return file
})

// process is a backend that is a process of its own, and so can die.
type process struct {
	Name, Addr string

	t       testing.TB
	client  *http.Client
	running *exec.Cmd // nil while it is dead
	stderr  *output
}

// startProcess runs a backend process until the test's end.
func startProcess(t testing.TB, name string) *process {
	t.Helper()
	p := &process{Name: name, Addr: deadAddress(t), t: t, stderr: new(output), client: &http.Client{
		Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second,
	}}
	t.Cleanup(p.kill)
	p.start()
	return p
}

// startProcesses runs three, b1 to b3.
func startProcesses(t testing.TB) (all []*process, addresses []string) {
	t.Helper()
	for i := 1; i <= 3; i++ {
		p := startProcess(t, fmt.Sprintf("b%d", i))
		all, addresses = append(all, p), append(addresses, p.Addr)
	}
	return all, addresses
}

// start runs it, again at the same address, and waits until it answers.
func (p *process) start() {
	p.t.Helper()
	p.running = exec.Command(chaosBackend(), p.Name, p.Addr)
	p.running.Stderr = p.stderr
	require.NoError(p.t, p.running.Start())
	poll(p.t, patience, p.Name+" to answer: "+p.stderr.String(), func() bool {
		_, err := try(p.client, http.MethodGet, "http://"+p.Addr+"/healthz", nil)
		return err == nil
	})
}

// kill ends it as the kernel would for want of memory: no word, and all its
// connections break.
func (p *process) kill() {
	if p.running == nil {
		return
	}
	_ = p.running.Process.Kill() // a stopped one dies too
	_ = p.running.Wait()
	p.running = nil
}

// stop makes it hang: the kernel goes on accepting for it, and nobody answers.
func (p *process) stop() { p.signal(syscall.SIGSTOP) }

// resume lets it go on.
func (p *process) resume() { p.signal(syscall.SIGCONT) }

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	require.NoError(p.t, p.running.Process.Signal(s))
}

// set changes what it answers: "who=500", "health=503".
func (p *process) set(what string) {
	p.t.Helper()
	a, err := try(p.client, http.MethodPost, "http://"+p.Addr+"/set?"+what, nil)
	require.NoError(p.t, err)
	require.Equal(p.t, http.StatusOK, a.Status)
}

// seen returns how many requests of a load came to it.
func (p *process) seen() int {
	p.t.Helper()
	a, err := try(p.client, http.MethodGet, "http://"+p.Addr+"/seen", nil)
	require.NoError(p.t, err)
	n, err := strconv.Atoi(strings.TrimSpace(a.Body))
	require.NoError(p.t, err)
	return n
}

// chaosConfig returns a configuration that sends everything to one of the
// addresses. pool and proxy are further keys of the two.
func chaosConfig(pool, proxy string, addresses ...string) string {
	return listeners + pools(pool, addresses...) +
		"routes: [{ name: all, match: { path_prefix: / }, required: true, proxy: { pool: main" + proxy + " } }]\n"
}
