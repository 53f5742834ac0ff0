// Package demo holds what the demonstration needs beside the daemon itself. Backend is the
// little user service behind it: run as its own process by demo-backend, in-process by `lb demo`.
package demo

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"unicode/utf8"
)

const (
	maxBody  = 1 << 20
	maxKeys  = 10_000 // answers remembered by Idempotency-Key
	dropEach = 5      // with SkipSome, every fifth request is dropped
)

// Options says what one demo backend is called and how it behaves.
type Options struct {
	Name     string
	SkipSome bool // answer every fifth request to the three demo paths with 500
}

// Backend keeps users in memory, and in a file if KeepIn was called. It is safe for concurrent use.
type Backend struct {
	opts    Options
	mux     *http.ServeMux
	counted atomic.Uint64 // requests to the three demo paths

	mu    sync.Mutex
	users map[string]digest // username → digest of the password; the password itself is not kept
	seen  replays
	file  *os.File // nil: memory only
}

type digest [sha256.Size]byte

func (d digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

func (d *digest) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(d)) {
		return fmt.Errorf("a SHA-256 has %d hex digits, not %d", hex.EncodedLen(len(d)), len(text))
	}
	_, err := hex.Decode(d[:], text)
	return err
}

// answer is what a write was answered, as kept for a repeat under the same Idempotency-Key.
type answer struct {
	status int
	text   string
}

// NewBackend returns a backend that holds no users yet.
func NewBackend(opts Options) *Backend {
	b := &Backend{
		opts:  opts,
		mux:   http.NewServeMux(),
		users: map[string]digest{},
		seen:  newReplays(maxKeys),
	}
	b.mux.HandleFunc("GET /login", b.flaky(b.login))
	b.mux.HandleFunc("POST /register", b.flaky(b.write("registered")))
	b.mux.HandleFunc("POST /changePassword", b.flaky(b.write("password changed")))
	b.mux.HandleFunc("GET /state", b.state)
	b.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, answer{http.StatusOK, "ok"})
	})
	return b
}

func (b *Backend) ServeHTTP(w http.ResponseWriter, r *http.Request) { b.mux.ServeHTTP(w, r) }

// flaky drops every fifth request before it has any effect, so a caller may always repeat it.
func (b *Backend) flaky(next http.HandlerFunc) http.HandlerFunc {
	if !b.opts.SkipSome {
		return next
	}
	return func(w http.ResponseWriter, r *http.Request) {
		if b.counted.Add(1)%dropEach == 0 {
			reply(w, answer{http.StatusInternalServerError, "request dropped by server"})
			return
		}
		next(w, r)
	}
}

func (b *Backend) login(w http.ResponseWriter, _ *http.Request) {
	reply(w, answer{http.StatusOK, "logged in on " + b.opts.Name})
}

// write stores a user. Registering and changing a password are both an upsert: a backend that
// missed one write must still take the next, else the copies could never agree again.
func (b *Backend) write(done string) http.HandlerFunc {
	success := answer{http.StatusCreated, done + " on " + b.opts.Name}
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			status := http.StatusBadRequest
			if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
				status = http.StatusRequestEntityTooLarge
			}
			reply(w, answer{status, err.Error()})
			return
		}
		reply(w, b.once(r, body, func() answer {
			username, password, refusal := credentials(r.Header.Get("Content-Type"), body)
			if refusal.status != 0 {
				return refusal
			}
			if err := b.put(username, sha256.Sum256([]byte(password))); err != nil {
				return answer{http.StatusInternalServerError, "cannot keep the user"}
			}
			return success
		}))
	}
}

// once runs apply under the lock, or gives again the answer that the same request got before
// under the same Idempotency-Key.
func (b *Backend) once(r *http.Request, body []byte, apply func() answer) answer {
	b.mu.Lock()
	defer b.mu.Unlock()

	key := r.Header.Get("Idempotency-Key")
	if key == "" {
		return apply()
	}
	// Digests, so that neither a long key nor a long body is kept.
	id := digest(sha256.Sum256([]byte(key)))
	request := digest(sha256.Sum256(fmt.Appendf(nil, "%s %q %s", r.Method, r.URL.Path, body)))
	if first, ok := b.seen.get(id); ok {
		if first.request != request {
			return answer{http.StatusUnprocessableEntity, "Idempotency-Key was used for another request"}
		}
		return first.answer
	}
	a := apply()
	if a.status < http.StatusInternalServerError {
		b.seen.put(id, replay{request, a})
	}
	return a
}

// credentials reads username and password from a form or a JSON object.
func credentials(contentType string, body []byte) (username, password string, refusal answer) {
	media := "application/x-www-form-urlencoded"
	if contentType != "" {
		var err error
		if media, _, err = mime.ParseMediaType(contentType); err != nil {
			return "", "", answer{http.StatusUnsupportedMediaType, "unreadable Content-Type"}
		}
	}
	switch media {
	case "application/x-www-form-urlencoded":
		form, err := url.ParseQuery(string(body))
		if err != nil {
			return "", "", answer{http.StatusBadRequest, "malformed form"}
		}
		username, password = form.Get("username"), form.Get("password")
	case "application/json":
		var doc struct{ Username, Password string }
		if err := json.Unmarshal(body, &doc); err != nil {
			return "", "", answer{http.StatusBadRequest, "malformed JSON"}
		}
		username, password = doc.Username, doc.Password
	default:
		return "", "", answer{http.StatusUnsupportedMediaType, "send a form or JSON"}
	}
	if username == "" || password == "" {
		return "", "", answer{http.StatusBadRequest, "username and password are required"}
	}
	if !utf8.ValidString(username) { // JSON could not tell it from another such name
		return "", "", answer{http.StatusBadRequest, "the username is not UTF-8"}
	}
	return username, password, answer{}
}

// KeepIn makes b remember its users over a restart: it takes in those that an earlier backend left
// in the file, a user a line, and adds a line for each write from now on. Call it before serving,
// and Close at the end.
func (b *Backend) KeepIn(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if err := b.load(file); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", path, err), file.Close())
	}
	b.file = file
	return nil
}

func (b *Backend) load(lines io.Reader) error {
	for in := json.NewDecoder(lines); ; {
		var u User
		if err := in.Decode(&u); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		b.users[u.Username] = u.PasswordSHA256
	}
}

// Close closes the file, if there is one.
func (b *Backend) Close() error {
	if b.file == nil {
		return nil
	}
	return b.file.Close()
}

// put stores a user; with a file, there first.
func (b *Backend) put(username string, password digest) error {
	if b.file != nil {
		line, err := json.Marshal(User{username, password})
		if err != nil {
			return err
		}
		if _, err := b.file.Write(append(line, '\n')); err != nil {
			return err
		}
	}
	b.users[username] = password
	return nil
}

// User is one entry of GET /state, and one line of the file.
type User struct {
	Username       string `json:"username"`
	PasswordSHA256 digest `json:"password_sha256"`
}

// State is the answer of GET /state. Backends that hold the same users show the same Hash.
type State struct {
	Name  string `json:"name"`
	Users []User `json:"users"`
	Hash  string `json:"hash"`
}

func (b *Backend) state(w http.ResponseWriter, _ *http.Request) {
	b.mu.Lock()
	users := maps.Clone(b.users)
	b.mu.Unlock()

	s := State{Name: b.opts.Name, Users: make([]User, 0, len(users))}
	for name, password := range users {
		s.Users = append(s.Users, User{name, password})
	}
	slices.SortFunc(s.Users, func(a, b User) int { return cmp.Compare(a.Username, b.Username) })

	hash := sha256.New()
	for _, u := range s.Users {
		// Both parts have a fixed length, so no two lists of users run into the same bytes.
		name := sha256.Sum256([]byte(u.Username))
		hash.Write(name[:])
		hash.Write(u.PasswordSHA256[:])
	}
	s.Hash = hex.EncodeToString(hash.Sum(nil))

	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(s) // the client left
}

func reply(w http.ResponseWriter, a answer) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(a.status)
	_, _ = io.WriteString(w, a.text+"\n") // the client left
}

// replay is a request, by its digest, and the answer it got.
type replay struct {
	request digest
	answer  answer
}

// replays remembers a fixed number of keys; the oldest makes room for the newest.
type replays struct {
	byKey map[digest]replay
	ring  []digest
	next  int
}

func newReplays(limit int) replays {
	return replays{byKey: map[digest]replay{}, ring: make([]digest, 0, limit)}
}

func (s *replays) get(key digest) (replay, bool) {
	r, ok := s.byKey[key]
	return r, ok
}

func (s *replays) put(key digest, r replay) {
	if len(s.ring) < cap(s.ring) {
		s.ring = append(s.ring, key)
	} else {
		delete(s.byKey, s.ring[s.next])
		s.ring[s.next] = key
		s.next = (s.next + 1) % len(s.ring)
	}
	s.byKey[key] = r
}
