// Caller calls a procedure several times at once and prints who answered when.
//
//	caller -calls 4 http://127.0.0.1:8080/call/parallel
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"time"
)

func main() {
	calls := flag.Int("calls", 4, "how many calls")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: caller [-calls N] URL…")
		os.Exit(2)
	}
	if !run(flag.Args(), *calls) {
		os.Exit(1)
	}
}

// run calls each URL and reports whether every call was answered 200.
func run(urls []string, calls int) (ok bool) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ok = true
	for _, url := range urls {
		ok = callAll(ctx, url, calls) && ok
	}
	return ok
}

// callAll calls the URL so many times at once, each begun a moment after the
// one before, and reports whether all were answered 200.
func callAll(ctx context.Context, url string, calls int) (ok bool) {
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: calls}}
	defer client.CloseIdleConnections()
	fmt.Printf("%d calls of %s\n", calls, url)
	start, ok := time.Now(), true
	var mu sync.Mutex // one line at a time
	var running sync.WaitGroup
	for n := range calls {
		running.Go(func() {
			time.Sleep(time.Duration(n) * 10 * time.Millisecond) // so that they come in their order
			status, answer, err := call(ctx, client, url)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				answer = err.Error()
			}
			ok = ok && err == nil && status == http.StatusOK
			fmt.Printf("%7.2f s  call %2d  %d %s\n", time.Since(start).Seconds(), n+1, status, answer)
		})
	}
	running.Wait()
	fmt.Printf("%7.2f s  all of them\n", time.Since(start).Seconds())
	return ok
}

func call(ctx context.Context, client *http.Client, url string) (status int, answer string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, http.NoBody)
	if err != nil {
		return 0, "", err
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(res.Body, 4096))
	if code := res.Header.Get("X-LB-Error"); code != "" {
		if after := res.Header.Get("Retry-After"); after != "" {
			code += ", try again in " + after + " s"
		}
		return res.StatusCode, code, err
	}
	return res.StatusCode, strings.TrimSpace(string(body)), err
}
