//go:build crashpoints

package crash

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// deadly is the point where the process dies, empty for nowhere; countdown is
// how often it is still reached until then.
var (
	deadly    string
	countdown atomic.Int64
)

// hits is the file that every hit is noted in, nil for none.
var hits *os.File

func init() {
	if name := os.Getenv("LB_CRASH_HITS"); name != "" {
		f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			panic(fmt.Sprintf("LB_CRASH_HITS: %v", err))
		}
		hits = f
	}
	where := os.Getenv("LB_CRASH")
	if where == "" {
		return
	}
	name, count, _ := strings.Cut(where, ":")
	n, err := strconv.Atoi(count)
	if name == "" || err != nil || n < 1 {
		panic(fmt.Sprintf("LB_CRASH=%s: write the name of a crash point, a colon, and at which hit, from 1", where))
	}
	deadly = name
	countdown.Store(int64(n))
}

// At is a place where the process can be made to die.
func At(name string) {
	if hits != nil {
		_, _ = hits.WriteString(name + "\n") // one write, which O_APPEND keeps whole
	}
	if name == deadly && countdown.Add(-1) == 0 {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // until the signal is there
	}
}
