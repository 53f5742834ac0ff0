package admin

import (
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/stretchr/testify/require"

	"lb/internal/outcome"
)

// openapi is the document that describes the admin listener to users.
func openapi(t *testing.T) *openapi3.T {
	doc, err := openapi3.NewLoader().LoadFromFile("../../docs/openapi.yaml")
	require.NoError(t, err)
	require.NoError(t, doc.Validate(t.Context()))
	return doc
}

// everything is a handler that has all its paths.
func everything() *Handler {
	o := new(operator)
	return New(Options{Registrar: o, Reloader: o}, healthy(), o, metricsStub)
}

// Every path and method is documented, and none that is not there. (That HEAD is
// answered as GET the document says once.)
func TestDocumentHasTheRoutes(t *testing.T) {
	served, documented := make(map[string][]string), make(map[string][]string)
	for path, to := range everything().routes {
		for _, method := range allowed(to) {
			if method != http.MethodHead {
				served[path] = append(served[path], method)
			}
		}
	}
	for path, item := range openapi(t).Paths.Map() {
		documented[path] = slices.Sorted(maps.Keys(item.Operations()))
	}
	require.Equal(t, served, documented)
}

// Every key of every answer is documented, and none that is not there; those
// that are left out when empty are not required.
func TestDocumentHasTheKeys(t *testing.T) {
	schemas := openapi(t).Components.Schemas
	for name, v := range map[string]any{
		"Health": Health{}, "PoolHealth": PoolHealth{}, "BackendHealth": BackendHealth{}, "Instance": Instance{},
		"ConfigHealth": ConfigHealth{}, "ConfigError": ConfigError{}, "AuditPage": AuditPage{}, "AuditRecord": AuditRecord{},
		"FanoutPage": FanoutPage{}, "Fanout": Fanout{}, "Delivery": Delivery{},
		"Registered": Registered{}, "FieldError": outcome.FieldError{},
		"Reloaded": Reloaded{}, "Changes": Changes{}, "ChangedPart": ChangedPart{}, "ChangedValue": ChangedValue{},
		"ConfigVersionPage": ConfigVersionPage{}, "ConfigVersion": ConfigVersion{},
	} {
		var keys, required []string
		for _, field := range reflect.VisibleFields(reflect.TypeOf(v)) {
			key, optional, _ := strings.Cut(field.Tag.Get("json"), ",")
			keys = append(keys, key)
			if optional == "" {
				required = append(required, key)
			}
		}
		require.ElementsMatch(t, keys, slices.Collect(maps.Keys(schemas[name].Value.Properties)), name)
		require.Equal(t, required, schemas[name].Value.Required, name)
	}
	require.EqualValues(t, MaxFanouts, *parameter(t, "FanoutLimit").Max)
	require.EqualValues(t, DefaultFanouts, parameter(t, "FanoutLimit").Default)
	require.EqualValues(t, MaxAuditRecords, *parameter(t, "AuditLimit").Max)
	require.EqualValues(t, DefaultAuditRecords, parameter(t, "AuditLimit").Default)
	require.EqualValues(t, MaxConfigVersions, *parameter(t, "ConfigVersionLimit").Max)
	require.EqualValues(t, DefaultConfigVersions, parameter(t, "ConfigVersionLimit").Default)
	require.Equal(t, []any{Applied, Unchanged}, schemas["Reloaded"].Value.Properties["result"].Value.Enum)
	require.EqualValues(t, MaxOperatorBytes, *parameter(t, "Operator").MaxLength)
	require.ElementsMatch(t, FanoutStates, schemas["FanoutState"].Value.Enum)
}

func parameter(t *testing.T, name string) *openapi3.Schema {
	return openapi(t).Components.Parameters[name].Value.Schema.Value
}

// Every error that is documented has the title and the status that lb gives it.
func TestDocumentHasTheErrors(t *testing.T) {
	doc := openapi(t)
	known := doc.Components.Schemas["Code"].Value.Enum
	used := []any{"not_found", "method_not_allowed"} // of paths and methods that are not there
	for name, response := range doc.Components.Responses {
		content := response.Value.Content["application/problem+json"]
		own := content.Schema.Value.AllOf[1].Value.Properties
		require.Len(t, own["status"].Value.Enum, 1, name)
		for _, code := range own["code"].Value.Enum {
			require.EqualValues(t, outcome.Code(code.(string)).Status(), own["status"].Value.Enum[0], "%s in %s", code, name)
			used = append(used, code)
		}
		example := content.Example.(map[string]any)
		code := outcome.Code(example["code"].(string))
		require.Equal(t, "urn:lb:error:"+string(code), example["type"])
		require.Equal(t, code.Title(), example["title"])
		require.EqualValues(t, code.Status(), example["status"])
	}
	slices.SortFunc(used, func(a, b any) int { return strings.Compare(a.(string), b.(string)) })
	require.ElementsMatch(t, known, slices.Compact(used))
}
