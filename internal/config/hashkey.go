package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// What a request can be spread by. The first three need a name.
const (
	HashHeader = "header"
	HashCookie = "cookie"
	HashQuery  = "query"
	HashPath   = "path"
	HashHost   = "host"
)

var (
	namedHashKeys = []string{HashHeader, HashCookie, HashQuery}
	wholeHashKeys = []string{HashPath, HashHost}
)

// hashKeyForms is what may be written for a key.
const hashKeyForms = "write one of header:NAME, cookie:NAME, query:NAME, path, host"

// ParseHashKey reads what hash spreads by: header:NAME, cookie:NAME, query:NAME,
// path or host. kind is one of the words above, and name is empty for path and
// host. The error says what is wrong with the text and what to write.
func ParseHashKey(text string) (kind, name string, err error) {
	kind, name, named := strings.Cut(text, ":")
	switch {
	case text == "":
		return "", "", errors.New("is missing; " + hashKeyForms)
	case slices.Contains(wholeHashKeys, kind) && named:
		return "", "", fmt.Errorf("%s takes no name; write %s", kind, kind)
	case slices.Contains(wholeHashKeys, kind):
		return kind, "", nil
	case !slices.Contains(namedHashKeys, kind):
		return "", "", fmt.Errorf("no key %s; %s", Quote(text), suggestHashKey(kind, name))
	case name == "":
		return "", "", fmt.Errorf("%s lacks the name; write one such as %s:user", Quote(text), kind)
	case !only(name, methodBytes): // a token, as a method is
		return "", "", fmt.Errorf("%s is not the name of a %s; write one such as %s:user", Quote(name), hashKeyNouns[kind], kind)
	}
	return kind, name, nil
}

// hashKeyNouns says what the name of a key names.
var hashKeyNouns = map[string]string{HashHeader: "header field", HashCookie: "cookie", HashQuery: "query parameter"}

// suggestHashKey says what was meant by a key of an unknown kind.
func suggestHashKey(kind, name string) string {
	meant := Suggest(kind, append(slices.Clone(namedHashKeys), wholeHashKeys...))
	switch {
	case meant == "":
		return hashKeyForms
	case slices.Contains(wholeHashKeys, meant):
		return fmt.Sprintf("did you mean %q?", meant)
	case name == "":
		return fmt.Sprintf("did you mean %s:NAME?", meant)
	}
	return fmt.Sprintf("did you mean %s?", Quote(meant+":"+name))
}
