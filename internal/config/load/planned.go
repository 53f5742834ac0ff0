package load

import "regexp"

// planned holds the keys that the documentation names and this version does not
// build, by the place where they belong. They are refused whatever their value.
var planned = map[string][]string{
	"": {
		"discovery",
		"tls", "acme", "alerts", "batch", "rate_limit",
	},
	"listeners[]":        {"tls", "http2", "h2c", "proxy_protocol", "rate_limit"},
	"pools[]":            {"sticky", "tls"},
	"pools[].backends[]": {"health", "limits", "concurrency", "tls"},
	"pools[].transport":  {"tls", "http2", "h2c", "grpc", "proxy_protocol"},
	"routes[]": {
		"priority", "headers", "cors",
		"tls", "sticky", "split", "mirror", "rate_limit", "redirect", "rewrite", "canary",
	},
	"routes[].match": {"path_regexp", "headers", "query", "cookies", "client_ips"},
	"routes[].proxy": {"sticky", "split", "mirror", "rewrite", "canary"},
	"admin":          {"tls"},
	"metrics":        {"tls"},
}

var listIndex = regexp.MustCompile(`\[[0-9]+\]`)

// place turns pools[3].backends[0] into pools[].backends[].
func place(path string) string { return listIndex.ReplaceAllString(path, "[]") }
