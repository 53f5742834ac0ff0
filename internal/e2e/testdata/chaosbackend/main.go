// Command chaosbackend is a backend for the chaos tests to kill, to stop and to
// start again. It is called with its name and its address.
//
//	GET /who/{id}     "<name> <id> <padding>\n"; ?pad= bytes of padding, ?ms= of work before
//	GET /healthz      says how it is
//	GET /seen         how many requests came to /who
//	POST /set         ?who= and ?health= are the statuses from now on
package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

func main() {
	name, address := os.Args[1], os.Args[2]
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	b := newBackend(name)
	s := &http.Server{Handler: b.handler(), ReadHeaderTimeout: time.Minute}
	log.Fatal(s.Serve(l))
}

type backend struct {
	name        string
	seen        atomic.Int64
	who, health atomic.Int32 // statuses
}

func newBackend(name string) *backend {
	b := &backend{name: name}
	b.who.Store(http.StatusOK)
	b.health.Store(http.StatusOK)
	return b
}

func (b *backend) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /who/{id}", b.sayWho)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(b.health.Load())) })
	mux.HandleFunc("GET /seen", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, b.seen.Load()) })
	mux.HandleFunc("POST /set", func(_ http.ResponseWriter, r *http.Request) {
		set(&b.who, r.FormValue("who"))
		set(&b.health, r.FormValue("health"))
	})
	return mux
}

func (b *backend) sayWho(w http.ResponseWriter, r *http.Request) {
	b.seen.Add(1)
	time.Sleep(time.Duration(number(r.FormValue("ms"))) * time.Millisecond)
	body := b.name + " " + r.PathValue("id") + " " + strings.Repeat("x", number(r.FormValue("pad"))) + "\n"
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(int(b.who.Load()))
	_, _ = io.WriteString(w, body) // who left needs no answer
}

func set(status *atomic.Int32, text string) {
	if n, err := strconv.ParseInt(text, 10, 32); err == nil {
		status.Store(int32(n))
	}
}

// number reads a number; what is none is 0.
func number(text string) int {
	n, _ := strconv.Atoi(cmp.Or(text, "0"))
	return n
}
