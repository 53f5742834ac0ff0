package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// bodySize is how many bytes a write's body has.
const bodySize = 200

var body = strings.Repeat("x", bodySize)

// connection is one client's connection to lb. It costs less than an
// http.Client, and what the clients use is not there for lb.
type connection struct {
	net.Conn
	in *bufio.Reader
}

func dial(ctx context.Context, address string) (*connection, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return &connection{conn, bufio.NewReader(conn)}, nil
}

// ask sends a request. Any answer but 2xx is an error.
func (c *connection) ask(request string) error {
	if err := c.SetDeadline(time.Now().Add(40 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, request); err != nil {
		return err
	}
	res, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(res.Body)
	_ = res.Body.Close() // it was read to its end
	if err == nil && res.StatusCode/100 != 2 {
		err = fmt.Errorf("lb answers %s: %s", res.Status, text)
	}
	return err
}

func (c *connection) get() error {
	return c.ask("GET / HTTP/1.1\r\nHost: lb\r\n\r\n")
}

func (c *connection) post() error {
	sent := strconv.FormatInt(int64(time.Since(epoch)), 10)
	return c.ask("POST /write HTTP/1.1\r\nHost: lb\r\nContent-Type: text/plain\r\n" + sentField + ": " + sent +
		"\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body)
}

// load lets so many clients write for a while, each as soon as it has its
// answer and has rested, and returns how long each write took. Rests are drawn
// from 0 to twice rest, so that clients do not fall into step.
func load(ctx context.Context, address string, clients int, rest, length time.Duration) ([]time.Duration, error) {
	end := time.Now().Add(length)
	var mu sync.Mutex
	var took []time.Duration
	var failed error
	var running sync.WaitGroup
	for range clients {
		running.Go(func() {
			mine, err := write(ctx, address, rest, end)
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
			if err != nil {
				failed = err
			}
		})
	}
	running.Wait()
	return took, failed
}

// write is one client of load.
func write(ctx context.Context, address string, rest time.Duration, end time.Time) (took []time.Duration, err error) {
	c, err := dial(ctx, address)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	for ctx.Err() == nil {
		if rest > 0 {
			time.Sleep(rand.N(2 * rest))
		}
		began := time.Now()
		if !began.Before(end) {
			return took, nil
		}
		if err := c.post(); err != nil {
			return took, err
		}
		took = append(took, time.Since(began))
	}
	return took, ctx.Err()
}
