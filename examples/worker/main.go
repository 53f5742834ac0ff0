// Worker registers itself with lb and works on one call at a time, or as many
// as it says. It is what a service of one's own would do, in some hundred lines:
// register, repeat that as a sign of life, unregister before it goes.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	log.SetFlags(log.Ltime)
	w := &worker{client: &http.Client{Timeout: 5 * time.Second}, token: os.Getenv("LB_REGISTRATION_TOKEN")}
	hostname, _ := os.Hostname()
	flag.StringVar(&w.admin, "lb", env("LB_ADMIN", "http://127.0.0.1:9901"), "lb's admin listener (LB_ADMIN)")
	flag.StringVar(&w.name, "name", env("WORKER_NAME", hostname), "the worker's id (WORKER_NAME)")
	procedures := flag.String("procedures", env("WORKER_PROCEDURES", "parallel=roundrobin,sequential=single"),
		"what to register for, each with its invocation policy (WORKER_PROCEDURES)")
	listen := flag.String("listen", env("WORKER_LISTEN", "127.0.0.1:0"), "where to listen (WORKER_LISTEN)")
	flag.IntVar(&w.concurrency, "concurrency", envInt("WORKER_CONCURRENCY", 1), "calls at a time, for each procedure (WORKER_CONCURRENCY)")
	flag.DurationVar(&w.work, "work", envDuration("WORKER_WORK", 5*time.Second), "how long a call takes (WORKER_WORK)")
	flag.DurationVar(&w.ttl, "ttl", envDuration("WORKER_TTL", 15*time.Second), "how long it may be silent (WORKER_TTL)")
	flag.Parse()

	if err := w.run(*listen, *procedures); err != nil {
		log.Fatal(err)
	}
}

type worker struct {
	client             *http.Client
	admin, token, name string
	address            string // where lb finds it
	concurrency        int
	work, ttl          time.Duration
}

// run serves and stays registered until it is told to end.
func (w *worker) run(listen, procedures string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", listen)
	if err != nil {
		return err
	}
	if w.address, err = w.reachable(ctx, l.Addr().(*net.TCPAddr)); err != nil {
		return err
	}
	server := &http.Server{Handler: http.HandlerFunc(w.call), ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	log.Printf("%s works at %s, %d at a time, %v a call", w.name, w.address, w.concurrency, w.work)

	beats, cancel := context.WithCancel(ctx)
	defer cancel()
	var registered sync.WaitGroup
	for _, p := range strings.Split(procedures, ",") {
		pool, policy, _ := strings.Cut(strings.TrimSpace(p), "=")
		registered.Go(func() { w.stayRegistered(beats, pool, policy) })
	}
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	cancel()
	registered.Wait() // lb sends nothing new now; what it has sent ends
	left, done := context.WithTimeout(context.WithoutCancel(ctx), w.work+time.Second)
	defer done()
	return errors.Join(err, server.Shutdown(left))
}

// call is the work.
func (w *worker) call(out http.ResponseWriter, r *http.Request) {
	select {
	case <-time.After(w.work):
		fmt.Fprintf(out, "%s did %s\n", w.name, r.Header.Get("X-Forwarded-Prefix"))
	case <-r.Context().Done(): // nobody wants it any more
	}
}

// registration is what lb wants to know; its documentation has the rest.
type registration struct {
	Pool        string `json:"pool"`
	Address     string `json:"address"`
	ID          string `json:"id"`
	Invoke      string `json:"invoke,omitempty"`
	Concurrency int    `json:"concurrency"`
	TTL         string `json:"ttl"`
}

// stayRegistered registers, and says so again as often as lb asks for, until ctx
// ends; then it unregisters. Somebody else may be in its place (409): it asks
// again, so that it takes over when that one has gone. Whatever else is wrong
// with what it says stays wrong.
func (w *worker) stayRegistered(ctx context.Context, pool, policy string) {
	wait, known, said := time.Duration(0), false, ""
	for {
		select {
		case <-ctx.Done():
			if known {
				w.unregister(context.WithoutCancel(ctx), pool)
			}
			return
		case <-time.After(wait):
		}
		var beat struct{ Heartbeat string }
		status, problem, err := w.ask(ctx, http.MethodPost, "/register", registration{
			Pool: pool, Address: w.address, ID: w.name, Invoke: policy, Concurrency: w.concurrency, TTL: w.ttl.String(),
		}, &beat)
		switch {
		case err != nil && ctx.Err() != nil:
		case err != nil:
			log.Printf("%s: %v", pool, err)
			wait = time.Second
		case status >= 500:
			log.Printf("%s: %s", pool, problem)
			wait = time.Second
		case status == http.StatusConflict:
			if problem != said {
				log.Printf("%s is not for %s now: %s", pool, w.name, problem)
			}
			known, said, wait = false, problem, w.ttl/3
		case status >= 400:
			log.Printf("%s is not for %s: %s", pool, w.name, problem)
			return
		default:
			if !known {
				log.Printf("registered for %s", pool)
			}
			known, said = true, ""
			if wait, err = time.ParseDuration(beat.Heartbeat); err != nil {
				wait = w.ttl / 3
			}
		}
	}
}

func (w *worker) unregister(ctx context.Context, pool string) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	path := "/unregister/" + url.PathEscape(w.name) + "?pool=" + url.QueryEscape(pool)
	if _, problem, err := w.ask(ctx, http.MethodDelete, path, nil, nil); err != nil || problem != "" {
		log.Printf("%s: not unregistered: %s%v", pool, problem, err)
	}
}

// ask sends a request to the admin listener. An answer that is an error comes
// back as its status and words.
func (w *worker) ask(ctx context.Context, method, path string, in, out any) (status int, problem string, err error) {
	var body io.Reader
	if in != nil {
		document, err := json.Marshal(in)
		if err != nil {
			return 0, "", err
		}
		body = bytes.NewReader(document)
	}
	req, err := http.NewRequestWithContext(ctx, method, w.admin+path, body)
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Content-Type", "application/json")
	if w.token != "" {
		req.Header.Set("Authorization", "Bearer "+w.token)
	}
	res, err := w.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = res.Body.Close() }()
	document, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	switch {
	case err != nil:
		return 0, "", err
	case res.StatusCode >= 400:
		var p struct{ Code, Detail string }
		_ = json.Unmarshal(document, &p) // else the status says it
		return res.StatusCode, fmt.Sprintf("%s %s: %s", res.Status, p.Code, p.Detail), nil
	case out != nil:
		return res.StatusCode, "", json.Unmarshal(document, out)
	}
	return res.StatusCode, "", nil
}

// reachable is where lb finds the worker: at the address from which the worker
// reaches lb, if it listens on all.
func (w *worker) reachable(ctx context.Context, bound *net.TCPAddr) (string, error) {
	if !bound.IP.IsUnspecified() {
		return bound.String(), nil
	}
	u, err := url.Parse(w.admin)
	if err != nil {
		return "", err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "udp", net.JoinHostPort(u.Hostname(), "9")) // sends nothing
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	return net.JoinHostPort(conn.LocalAddr().(*net.UDPAddr).IP.String(), fmt.Sprint(bound.Port)), nil
}

func env(name, missing string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return missing
}

func envInt(name string, missing int) int {
	var n int
	if _, err := fmt.Sscan(os.Getenv(name), &n); err != nil {
		return missing
	}
	return n
}

func envDuration(name string, missing time.Duration) time.Duration {
	d, err := time.ParseDuration(os.Getenv(name))
	if err != nil {
		return missing
	}
	return d
}
