package metrics

import (
	"encoding/json"
	"math"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
)

// Handler answers with all series: in the Prometheus text format, or, to a
// client that asks for application/json, as JSON statistics: a list of
// families {name, type, help, metrics}, where a metric has labels and either
// a value, or count, sum and its buckets (or quantiles). A series that cannot
// be gathered is left out; the others are shown.
func (r *Registry) Handler() http.Handler {
	text := promhttp.HandlerFor(r.reg, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Add("Vary", "Accept")
		if wantsJSON(req.Header.Values("Accept")) {
			r.serveJSON(w)
			return
		}
		text.ServeHTTP(w, req)
	})
}

func (r *Registry) serveJSON(w http.ResponseWriter) {
	gathered, err := r.reg.Gather()
	if err != nil && len(gathered) == 0 {
		http.Error(w, "metrics cannot be gathered", http.StatusInternalServerError)
		return
	}
	families := make([]family, 0, len(gathered))
	for _, f := range gathered {
		families = append(families, familyOf(f))
	}
	body, err := json.Marshal(families)
	if err != nil {
		http.Error(w, "metrics cannot be encoded", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(body, '\n')) // a client that left changes nothing
}

// wantsJSON reports whether the Accept fields name application/json, and no
// text format before it.
func wantsJSON(accept []string) bool {
	jsonQ, textQ := 0.0, 0.0
	for _, part := range strings.Split(strings.Join(accept, ","), ",") {
		media, params, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		q := 1.0
		if s, ok := params["q"]; ok {
			if q, err = strconv.ParseFloat(s, 64); err != nil {
				continue
			}
		}
		switch media {
		case "application/json":
			jsonQ = max(jsonQ, q)
		case "text/plain", "application/openmetrics-text":
			textQ = max(textQ, q)
		}
	}
	return jsonQ > 0 && jsonQ >= textQ
}

type family struct {
	Name    string   `json:"name"`
	Type    string   `json:"type"`
	Help    string   `json:"help"`
	Metrics []metric `json:"metrics"`
}

type metric struct {
	Labels    map[string]string `json:"labels"`
	Value     *number           `json:"value,omitempty"`
	Count     *uint64           `json:"count,omitempty"`
	Sum       *number           `json:"sum,omitempty"`
	Buckets   []bucket          `json:"buckets,omitempty"`
	Quantiles []quantile        `json:"quantiles,omitempty"`
}

type bucket struct {
	UpperBound number `json:"le"`
	Count      uint64 `json:"count"` // of all observations up to the bound
}

type quantile struct {
	Quantile number `json:"quantile"`
	Value    number `json:"value"`
}

// number is a float that JSON can always hold: what it has no number for is
// spelled as in the text format: "NaN", "+Inf", "-Inf".
type number float64

// MarshalJSON writes a number, or a string for what is none.
func (n number) MarshalJSON() ([]byte, error) {
	f := float64(n)
	switch {
	case math.IsNaN(f):
		return []byte(`"NaN"`), nil
	case math.IsInf(f, 0):
		return []byte(strconv.Quote(strconv.FormatFloat(f, 'f', -1, 64))), nil
	}
	return json.Marshal(f)
}

func familyOf(f *dto.MetricFamily) family {
	out := family{
		Name:    f.GetName(),
		Type:    strings.ToLower(f.GetType().String()),
		Help:    f.GetHelp(),
		Metrics: make([]metric, 0, len(f.GetMetric())),
	}
	for _, m := range f.GetMetric() {
		out.Metrics = append(out.Metrics, metricOf(m))
	}
	return out
}

func metricOf(m *dto.Metric) metric {
	out := metric{Labels: make(map[string]string, len(m.GetLabel()))}
	for _, l := range m.GetLabel() {
		out.Labels[l.GetName()] = l.GetValue()
	}
	value := func(v float64) *number { n := number(v); return &n }
	switch {
	case m.Counter != nil:
		out.Value = value(m.Counter.GetValue())
	case m.Gauge != nil:
		out.Value = value(m.Gauge.GetValue())
	case m.Untyped != nil:
		out.Value = value(m.Untyped.GetValue())
	case m.Histogram != nil:
		out.Count, out.Sum = m.Histogram.SampleCount, value(m.Histogram.GetSampleSum())
		for _, b := range m.Histogram.GetBucket() {
			out.Buckets = append(out.Buckets, bucket{number(b.GetUpperBound()), b.GetCumulativeCount()})
		}
		// The client leaves the last bound out, the text format shows it.
		out.Buckets = append(out.Buckets, bucket{number(math.Inf(1)), m.Histogram.GetSampleCount()})
	case m.Summary != nil:
		out.Count, out.Sum = m.Summary.SampleCount, value(m.Summary.GetSampleSum())
		for _, q := range m.Summary.GetQuantile() {
			out.Quantiles = append(out.Quantiles, quantile{number(q.GetQuantile()), number(q.GetValue())})
		}
	}
	return out
}
