package load

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/viper"

	"lb/internal/config"
)

// envPrefix begins the names of the variables that override scalars.
const envPrefix = "LB_"

// scalar is one value outside lists, which a variable or a flag can override.
type scalar struct {
	path  string // log.access.sample
	env   string // LB_LOG_ACCESS_SAMPLE
	index []int  // of the field in config.Config
}

// scalars are all values that can be overridden, in the order of the structs.
var scalars = scalarsOf(reflect.TypeFor[config.Config](), "", nil)

func scalarsOf(t reflect.Type, prefix string, index []int) []scalar {
	var list []scalar
	for i, f := range fieldsOf(t) {
		path, at := prefix+f.key, append(slices.Clone(index), i)
		switch f.typ.Kind() {
		case reflect.Slice:
		case reflect.Struct:
			list = append(list, scalarsOf(f.typ, path+".", at)...)
		default:
			env := envPrefix + strings.ToUpper(strings.ReplaceAll(path, ".", "_"))
			list = append(list, scalar{path: path, env: env, index: at})
		}
	}
	return list
}

// flag is a value from the command line. Its type tells it from a variable once
// viper has decided which of them wins.
type flag string

// override sets the scalars that the environment and the command line name, and
// remembers where each came from.
func (d *decoder) override(c *config.Config, v *viper.Viper) {
	for _, s := range scalars {
		var value string
		switch won := v.Get(s.path).(type) {
		case string:
			value, d.sources[s.path] = won, s.env
		case flag:
			value, d.sources[s.path] = string(won), "command line"
		default:
			continue
		}
		if message := setText(reflect.ValueOf(c).Elem().FieldByIndex(s.index), value); message != "" {
			d.fail(s.path, 0, "", "%s", message)
		}
	}
}

// checkOverrides reports the paths that Options.Overrides cannot set.
func (d *decoder) checkOverrides(overrides map[string]string) {
	known := make([]string, len(scalars))
	for i, s := range scalars {
		known[i] = s.path
	}
	for _, path := range slices.Sorted(maps.Keys(overrides)) {
		if !slices.Contains(known, path) {
			d.sources[path] = "command line"
			d.fail(path, 0, config.DidYouMean(path, known), "cannot be overridden")
		}
	}
}

// misspelt warns of variables that look much like one that is read, unless c
// itself names them.
func misspelt(environ []string, c *config.Config) []config.Problem {
	named := []string{c.Admin.TokenEnv, c.Registration.TokenEnv, c.Storage.KeyEnv}
	known := []string{strings.TrimPrefix(listenEnv, envPrefix), "ADMIN_TOKEN"}
	for _, s := range scalars {
		known = append(known, strings.TrimPrefix(s.env, envPrefix))
	}
	var warnings []config.Problem
	for _, entry := range slices.Sorted(slices.Values(environ)) {
		name, _, _ := strings.Cut(entry, "=")
		key, ours := strings.CutPrefix(name, envPrefix)
		if !ours || slices.Contains(named, name) || slices.Contains(known, key) || key == "ADMIN" { // the commands' own
			continue
		}
		if section, token := strings.CutSuffix(key, "_TOKEN"); token && slices.Contains(known, key+"_ENV") {
			warnings = append(warnings, config.Problem{
				Source: name, Message: "is not read", Suggestion: fmt.Sprintf("if it holds the token, write %s: { token_env: %s } into the file",
					strings.ToLower(section), name),
			})
			continue
		}
		if meant := config.Suggest(key, known); meant != "" {
			warnings = append(warnings, config.Problem{
				Source: name, Message: "is not read", Suggestion: "did you mean " + envPrefix + meant + "?",
			})
		}
	}
	return warnings
}
