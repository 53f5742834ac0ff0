package e2e

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Promise: who takes the place of another by force gets all new requests, none
// is refused meanwhile, and the other one ends what it has.
func TestForceTakesAPlace(t *testing.T) {
	t.Parallel()
	d := start(t, registering(""))
	called, let := make(chan struct{}, 1), make(chan struct{})
	old := backend(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/long") {
			called <- struct{}{}
			<-let
		}
	}))
	next := []string{named(t, "even"), named(t, "odd")}
	require.Equal(t, 201, d.enroll("jobs", old, `,"id":"old"`).Status)
	long := make(chan answer, 1)
	go func() { long <- d.do("POST", "/call/jobs/long", nil) }()
	<-called

	stop, refused := make(chan struct{}), make(chan []string)
	go func() {
		var all []string
		for {
			select {
			case <-stop:
				refused <- all
				return
			default:
				if a := d.do("POST", "/call/jobs", nil); a.Status != 200 {
					all = append(all, a.Body)
				}
			}
		}
	}()
	require.Equal(t, 201, d.enroll("jobs", next[1], `,"id":"new","force":true`).Status)
	require.Equal(t, "draining", d.listed("old").State)
	for i := range 50 { // by its own id, too
		require.Equal(t, 201, d.enroll("jobs", next[i%2], `,"id":"new","force":true`).Status)
	}
	close(stop)
	require.Empty(t, <-refused)
	require.Contains(t, d.do("POST", "/call/jobs", nil).Body, "odd POST")

	close(let)
	require.Equal(t, 200, (<-long).Status, "what it had, it ends")
	poll(t, patience, "it to leave", func() bool { return d.listed("old") == nil })
	require.Equal(t, 204, d.dismiss("old", "").Status, "it is known that it left")
}
