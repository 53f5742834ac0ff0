package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// Exec finds a backend well if a command exits with 0.
//
// The command gets nothing on its standard input, and of the daemon's
// environment only PATH and HOME, so that no secret leaks to it; beside them
// LB_BACKEND_ADDRESS, LB_BACKEND_HOST and LB_BACKEND_PORT. Whatever it started
// in its process group ends with it.
type Exec struct {
	// Command is the program and its arguments; no shell reads them.
	Command []string
}

const (
	// maxOutput is how many bytes of the end of a command's output are kept.
	maxOutput = 1 << 10
	// Who left the process group and kept the output open, or cannot be killed,
	// is waited for no longer than this.
	outputDelay = 100 * time.Millisecond
)

// canStart returns why command cannot be started: it is empty, not found, or
// not executable.
func canStart(command []string) error {
	if len(command) == 0 || command[0] == "" {
		return errors.New("names no program: write the program and its arguments as a list")
	}
	if _, err := exec.LookPath(command[0]); err != nil {
		return fmt.Errorf("cannot start: %w", err)
	}
	return nil
}

// Probe implements Check.
func (c Exec) Probe(ctx context.Context, address string) error {
	return failure(ctx, c.run(ctx, address))
}

func (c Exec) run(ctx context.Context, address string) error {
	if err := canStart(c.Command); err != nil {
		return err
	}
	var output tail
	cmd := exec.CommandContext(ctx, c.Command[0], c.Command[1:]...)
	cmd.Env = environment(address)
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return killGroup(cmd) }
	cmd.WaitDelay = outputDelay
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot start: %w", err)
	}
	err := cmd.Wait()
	_ = killGroup(cmd) // what the command left behind, if anything
	bury(cmd)
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return reason(exit, output.lastLine())
	case errors.Is(err, exec.ErrWaitDelay): // it exited with 0
		return nil
	default:
		return err
	}
}

func killGroup(cmd *exec.Cmd) error {
	return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
}

// bury waits for those of the command's group that are now children of lb: in
// a container it is often process 1, which inherits all orphans, and whom
// nobody waits for keeps its place in the table of processes. They have been
// killed, so it does not take long, unless lb may not kill them.
func bury(cmd *exec.Cmd) {
	for deadline := time.Now().Add(outputDelay); time.Now().Before(deadline); {
		switch pid, err := syscall.Wait4(-cmd.Process.Pid, nil, syscall.WNOHANG, nil); {
		case err != nil && !errors.Is(err, syscall.EINTR):
			return // none is left
		case pid == 0:
			time.Sleep(time.Millisecond)
		}
	}
}

func reason(exit *exec.ExitError, lastLine []byte) error {
	how := fmt.Sprintf("exit code %d", exit.ExitCode())
	if exit.ExitCode() < 0 {
		how = exit.Error() // signal: …
	}
	if len(lastLine) == 0 {
		return errors.New(how)
	}
	return fmt.Errorf("%s: %s", how, lastLine)
}

func environment(address string) []string {
	env := []string{"LB_BACKEND_ADDRESS=" + address}
	if host, port, err := net.SplitHostPort(address); err == nil {
		env = append(env, "LB_BACKEND_HOST="+host, "LB_BACKEND_PORT="+port)
	}
	for _, name := range []string{"PATH", "HOME"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// tail keeps the end of what is written to it.
type tail struct{ kept []byte }

func (t *tail) Write(p []byte) (int, error) {
	n := len(p)
	p = p[max(0, n-maxOutput):]
	if excess := len(t.kept) + len(p) - maxOutput; excess > 0 {
		t.kept = append(t.kept[:0], t.kept[excess:]...)
	}
	t.kept = append(t.kept, p...)
	return n, nil
}

// lastLine returns the last line that is not blank.
func (t *tail) lastLine() []byte {
	text := bytes.TrimSpace(t.kept)
	return text[bytes.LastIndexByte(text, '\n')+1:]
}
