// Package field knows which header fields belong to one connection and end
// where it ends.
package field

import "strings"

// Named reports whether a Connection field, given by its lines, names the
// field: such a field is meant for the next hop alone, and counts as absent.
func Named(connection []string, name string) bool {
	for _, line := range connection {
		for word := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(word), name) {
				return true
			}
		}
	}
	return false
}

// HopByHop reports whether a field, by its canonical name, concerns one
// connection only: the fields of RFC 9110 §7.6.1, and those that the message's
// Connection lines name.
func HopByHop(name string, connection []string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return true
	}
	return len(connection) > 0 && Named(connection, name)
}
