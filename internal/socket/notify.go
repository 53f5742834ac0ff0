package socket

import (
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// States for Notify (sd_notify(3)).
const (
	// Ready says that start-up, or a reload, is over.
	Ready = "READY=1"
	// Stopping says that the stop has begun.
	Stopping = "STOPPING=1"
)

// Reloading says that a reload begins, with the time of the monotonic clock, by
// which Type=notify-reload tells it from the one before; Ready ends it, whether
// it went well or not.
func Reloading() string {
	return fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", monotonic().Microseconds())
}

// Status is a line for systemctl status.
func Status(text string) string { return "STATUS=" + strings.ReplaceAll(text, "\n", " ") }

// notifyEnv names the socket of the service manager.
const notifyEnv = "NOTIFY_SOCKET"

// Notify tells the service manager of one state or several at once, if there is
// one that wants to know (NOTIFY_SOCKET). It takes at most a second.
func Notify(states ...string) error {
	path := os.Getenv(notifyEnv)
	if path == "" {
		return nil
	}
	if path[0] != '/' && path[0] != '@' {
		return fmt.Errorf("%s is %q: expects the path of a socket, or @ and a name", notifyEnv, path)
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("telling the service manager: %w", err)
	}
	defer func() { _ = c.Close() }() // what was written is there
	err = c.SetWriteDeadline(time.Now().Add(time.Second))
	if err == nil {
		_, err = c.Write([]byte(strings.Join(states, "\n")))
	}
	if err != nil {
		return fmt.Errorf("telling the service manager: %w", err)
	}
	return nil
}
