package admin

import (
	"context"
	"math"
	"mime"
	"net/http"
	"strings"
	"time"

	"lb/internal/outcome"
)

// Reloader is what the admin listener needs to have another configuration
// served. Its methods are called from any goroutine and may wait for storage and
// for changes before theirs. Their errors are *outcome.Error where the client
// can be told more than "it failed": StorageUnavailable from each of them, after
// which nothing has changed.
type Reloader interface {
	// Reload reads the configuration again and has it served, all of it or
	// nothing. By says who asks, for the audit trail. ConfigInvalid says that it
	// cannot be served and that the one before goes on. Where problems were found
	// in it, Fields has every one: its path in Field, and in Detail the whole line
	// that lb check prints.
	Reload(ctx context.Context, by string) (Reloaded, error)
	// ConfigVersions returns up to limit versions whose id is below before, the
	// newest first and without their documents; before 0 begins with the newest
	// of all. The limit is at least 1 and at most MaxConfigVersions+1, which is
	// how more of them are noticed.
	ConfigVersions(ctx context.Context, before int64, limit int) ([]ConfigVersion, error)
	// ConfigVersion returns one version with its document. ConfigVersionNotFound
	// says that there is none with that id, or not any more.
	ConfigVersion(ctx context.Context, id int64) (ConfigVersion, error)
	// DiffConfig returns what the version to has other than the version from;
	// to 0 is what serves now. The further codes of its errors:
	// ConfigVersionNotFound, ConfigInvalid (this lb cannot read one of them).
	DiffConfig(ctx context.Context, from, to int64) (Changes, error)
	// Rollback puts the document of a version into the configuration's file and
	// reloads. The further codes of its errors: ConfigVersionNotFound;
	// ConfigInvalid, as Reload has it, where the file stays as it is;
	// ConfigNotWritable (there is no file, or it cannot be replaced).
	Rollback(ctx context.Context, id int64, by string) (Reloaded, error)
}

// The values of Reloaded.Result.
const (
	// Applied: what was read serves now.
	Applied = "applied"
	// Unchanged: it says the same as what serves.
	Unchanged = "unchanged"
)

// Reloaded is the answer to a reload that was not refused.
type Reloaded struct {
	// Generation is the number of the configuration that serves now.
	Generation uint64 `json:"generation"`
	// Result is Applied or Unchanged.
	Result string `json:"result"`
	// Changes is what it has other than the one before.
	Changes Changes `json:"changes"`
}

// Changes is what one configuration has other than another.
type Changes struct {
	// Added and Removed name things that one of the two does not have, such as
	// "pool users" or "backend users/server1". A pool brings its backends along:
	// they are not named by themselves.
	Added   List[string] `json:"added"`
	Removed List[string] `json:"removed"`
	// Changed are the things that both have, and that differ.
	Changed List[ChangedPart] `json:"changed"`
}

// ChangedPart is how one thing differs.
type ChangedPart struct {
	// Name is as in Added, or that of a section, such as "admin".
	Name   string             `json:"name"`
	Values List[ChangedValue] `json:"values"`
}

// ChangedValue is one value that differs.
type ChangedValue struct {
	// Path leads to it by keys and names: pools.users.limits.per_backend.
	Path string `json:"path"`
	// From and To are as a configuration writes them; "none" stands for what is
	// not there.
	From string `json:"from"`
	To   string `json:"to"`
}

// ConfigVersion is a configuration that has been in force.
type ConfigVersion struct {
	// ID grows with each version.
	ID int64 `json:"id"`
	// At is since when it was in force.
	At time.Time `json:"at"`
	// By is who put it there, as AuditRecord.Who; Source is where it was read
	// from.
	By     string `json:"by"`
	Source string `json:"source"`
	// Generation is its number in the process that had it.
	Generation uint64 `json:"generation"`
	// Serving says whether it is the one that serves now.
	Serving bool `json:"serving"`
	// Document is its text; empty in a list of versions.
	Document string `json:"document,omitempty"`
}

// ConfigVersionPage is the body of /config/versions.
type ConfigVersionPage struct {
	// Versions are ordered from the newest to the oldest.
	Versions List[ConfigVersion] `json:"versions"`
	// Next is the value of before that the next older page has; nil if this
	// page has the oldest version.
	Next *int64 `json:"next"`
}

// How many versions a page of /config/versions has.
const (
	// DefaultConfigVersions is the number where the client does not say.
	DefaultConfigVersions = 100
	// MaxConfigVersions is the most that a client may ask for.
	MaxConfigVersions = 1000
)

// addReloader adds the paths of what rl does.
func (h *Handler) addReloader(rl Reloader) {
	const one = "/config/versions/{version}"
	h.add("/reload", operators, post(h.reload(rl)))
	h.add("/config/versions", operators, get(h.configVersions(rl)))
	h.add(one, operators, get(h.configVersion(rl)))
	h.add(one+"/diff", operators, get(h.diffConfig(rl)))
	h.add(one+"/rollback", operators, post(h.rollback(rl)))
}

// reload answers who wants the configuration to be read again.
func (h *Handler) reload(rl Reloader) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, by, e := h.order(r)
		if e != nil {
			h.refuse(w, r, e)
			return
		}
		now, err := rl.Reload(r.Context(), by)
		h.answerOrReport(w, r, now, err)
	}
}

// rollback answers who wants a version to be served again.
func (h *Handler) rollback(rl Reloader) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, by, e := h.order(r)
		var id int64
		if e == nil {
			id, e = version(r)
		}
		if e != nil {
			h.refuse(w, r, e)
			return
		}
		now, err := rl.Rollback(r.Context(), id, by)
		h.answerOrReport(w, r, now, err)
	}
}

// configVersions answers with a page of versions.
func (h *Handler) configVersions(rl Reloader) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		before, limit, e := page(r, DefaultConfigVersions, MaxConfigVersions)
		if e != nil {
			h.refuse(w, r, e)
			return
		}
		found, err := rl.ConfigVersions(r.Context(), before, limit+1)
		var answer ConfigVersionPage
		answer.Versions, answer.Next = cut(found, limit, func(v ConfigVersion) int64 { return v.ID })
		h.answerOrReport(w, r, answer, err)
	}
}

// configVersion answers with one version, or with its document alone.
func (h *Handler) configVersion(rl Reloader) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, e := parameters(r)
		var id int64
		if e == nil {
			id, e = version(r)
		}
		if e != nil {
			h.refuse(w, r, e)
			return
		}
		w.Header().Add("Vary", "Accept")
		found, err := rl.ConfigVersion(r.Context(), id)
		if err == nil && wantsYAML(r) {
			answer(w, http.StatusOK, "application/yaml", []byte(found.Document))
			return
		}
		h.answerOrReport(w, r, found, err)
	}
}

// diffConfig answers with what differs between two versions.
func (h *Handler) diffConfig(rl Reloader) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		params, e := parameters(r, "to")
		var from, to int64
		if e == nil {
			from, e = version(r)
		}
		if e == nil {
			to, e = number(params, "to", 0, math.MaxInt64)
		}
		if e != nil {
			h.refuse(w, r, e)
			return
		}
		changes, err := rl.DiffConfig(r.Context(), from, to)
		h.answerOrReport(w, r, changes, err)
	}
}

// version returns the id that stands in the path.
func version(r *http.Request) (int64, *outcome.Error) {
	const name = "version"
	return number(map[string]string{name: r.PathValue(name)}, name, 0, math.MaxInt64)
}

// wantsYAML reports whether a request accepts application/yaml by name, and not
// application/json.
func wantsYAML(r *http.Request) bool {
	yaml := false
	for part := range strings.SplitSeq(strings.Join(r.Header.Values("Accept"), ","), ",") {
		switch name, _, _ := mime.ParseMediaType(part); name {
		case "application/json":
			return false
		case "application/yaml":
			yaml = true
		}
	}
	return yaml
}
