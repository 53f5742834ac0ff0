package metrics

import (
	"encoding/json"
	"math"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
)

type shownFamily struct {
	Name, Type, Help string
	Metrics          []struct {
		Labels    map[string]string
		Value     any
		Count     *uint64
		Sum       any
		Buckets   []struct{ Le, Count any }
		Quantiles []struct{ Quantile, Value any }
	}
}

func jsonFamilies(t *testing.T, r *Registry) map[string]shownFamily {
	t.Helper()
	req := httptest.NewRequest("GET", "/metrics", nil)
	req.Header.Set("Accept", "application/json")
	rec := httptest.NewRecorder()
	r.Handler().ServeHTTP(rec, req)
	require.Equal(t, http.StatusOK, rec.Code)
	require.Equal(t, "application/json", rec.Header().Get("Content-Type"))
	require.Equal(t, "Accept", rec.Header().Get("Vary"))
	var list []shownFamily
	require.NoError(t, json.Unmarshal(rec.Body.Bytes(), &list))
	out := map[string]shownFamily{}
	for _, f := range list {
		out[f.Name] = f
	}
	return out
}

func TestJSON(t *testing.T) {
	r := full(t)
	got := jsonFamilies(t, r)

	gathered, err := r.reg.Gather()
	require.NoError(t, err)
	for _, f := range gathered { // the same families as in the text
		require.Contains(t, got, f.GetName())
		require.Len(t, got[f.GetName()].Metrics, len(f.GetMetric()))
		require.Equal(t, f.GetHelp(), got[f.GetName()].Help)
	}

	deliveries := got["lb_fanout_deliveries"]
	require.Equal(t, "gauge", deliveries.Type)
	require.Equal(t, map[string]string{"pool": "users", "state": "parked"}, deliveries.Metrics[0].Labels)
	require.EqualValues(t, 2, deliveries.Metrics[0].Value)

	require.Equal(t, "counter", got["Total_domains_failed_counter_total"].Type)
	require.NotNil(t, got["Total_domains_failed_counter_total"].Metrics[0].Labels)
	require.EqualValues(t, 1, got["Total_domains_failed_counter_total"].Metrics[0].Value)

	duration := got["lb_request_duration_seconds"]
	require.Equal(t, "histogram", duration.Type)
	require.EqualValues(t, 2, *duration.Metrics[0].Count)
	require.InDelta(t, 70.004, duration.Metrics[0].Sum, 1e-9)
	require.Nil(t, duration.Metrics[0].Value)
	buckets := duration.Metrics[0].Buckets
	require.Len(t, buckets, len(durationBuckets)+1)
	require.EqualValues(t, 60, buckets[len(buckets)-2].Le)
	require.EqualValues(t, 1, buckets[len(buckets)-2].Count)
	require.Equal(t, "+Inf", buckets[len(buckets)-1].Le)
	require.EqualValues(t, 2, buckets[len(buckets)-1].Count)

	require.Equal(t, "summary", got["go_gc_duration_seconds"].Type)
	require.NotEmpty(t, got["go_gc_duration_seconds"].Metrics[0].Quantiles)
}

func TestWhoGetsJSON(t *testing.T) {
	for _, c := range []struct {
		accept []string
		json   bool
	}{
		{nil, false},
		{[]string{"*/*"}, false},
		{[]string{"application/*"}, false},
		{[]string{"application/json"}, true},
		{[]string{"Application/JSON; charset=utf-8"}, true},
		{[]string{"text/html", "application/json"}, true},
		{[]string{"application/json, */*;q=0.5"}, true},
		{[]string{"application/json;q=0"}, false},
		{[]string{"application/json;q=0.1, text/plain;q=0.9"}, false},
		{[]string{"application/json;q=oops"}, false},
		{[]string{"application/jsonx"}, false},
		{[]string{";;,,"}, false},
		// What Prometheus itself sends.
		{[]string{"application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.1"}, false},
	} {
		require.Equal(t, c.json, wantsJSON(c.accept), "%q", c.accept)
	}
}

func TestNumbersThatJSONDoesNotHave(t *testing.T) {
	got, err := json.Marshal([]number{1.5, number(math.NaN()), number(math.Inf(1)), number(math.Inf(-1)), 3e9})
	require.NoError(t, err)
	require.JSONEq(t, `[1.5,"NaN","+Inf","-Inf",3e9]`, string(got))
}
