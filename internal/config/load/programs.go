package load

import (
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"strings"

	"lb/internal/config"
)

// programs reports the exec checks that could not start: a check that fails
// only because of a misspelt path would take a whole pool down.
func programs(c *config.Config) config.Problems {
	var problems config.Problems
	for i, p := range c.Pools {
		if p.Health == nil || p.Health.Type != config.CheckExec || len(p.Health.Command) == 0 {
			continue
		}
		if message := notExecutable(p.Health.Command[0]); message != "" {
			problems = append(problems, config.Problem{
				Path: fmt.Sprintf("pools[%d].health.command[0]", i), Message: message,
				Suggestion: "write the whole path of a program that lb may run",
			})
		}
	}
	return problems
}

// notExecutable says why program cannot be started, or "". A name without a
// slash is looked up in PATH; a path that depends on the working directory is
// refused, as another daemon start would make it another program.
func notExecutable(program string) string {
	if strings.ContainsRune(program, filepath.Separator) && !filepath.IsAbs(program) {
		return fmt.Sprintf("the path %s is relative", config.Quote(program))
	}
	_, err := exec.LookPath(program)
	var failed *exec.Error
	switch {
	case program == "" || err == nil:
		return "" // an empty word is the validator's to report
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist), errors.Is(err, exec.ErrDot):
		return "no such program " + config.Quote(program)
	case errors.As(err, &failed):
		err = cause(failed.Err)
	}
	return fmt.Sprintf("%s cannot be started: %s", config.Quote(program), err)
}
