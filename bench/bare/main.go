// Command bare runs the proxy that lb is measured against.
package main

import (
	"flag"
	"fmt"
	"log"
	"net/http"
	"runtime"
	"time"

	"lb/bench/internal/bare"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:8081", "address to serve on")
	backend := flag.String("backend", "127.0.0.1:8080", "host:port of the backend")
	counters := flag.String("counters", "127.0.0.1:8082", "address that answers with allocations and bytes since start")
	flag.Parse()

	side := &http.Server{
		Addr:              *counters,
		Handler:           http.HandlerFunc(serveCounters),
		ReadHeaderTimeout: time.Second,
	}
	go func() { log.Fatal(side.ListenAndServe()) }()

	front := bare.NewServer(*backend)
	front.Addr = *listen
	log.Fatal(front.ListenAndServe())
}

// serveCounters answers in the names that lb's metrics use.
func serveCounters(w http.ResponseWriter, _ *http.Request) {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	fmt.Fprintf(w, "go_memstats_mallocs_total %d\ngo_memstats_alloc_bytes_total %d\n", m.Mallocs, m.TotalAlloc)
}
