package fanout

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"lb/internal/outcome"
)

const (
	formType = "application/x-www-form-urlencoded"
	jsonType = "application/json"
)

var (
	byUsername = OrderBy{Kind: OrderField, Name: "username"}
	byHeader   = OrderBy{Kind: OrderHeader, Name: "X-User"}
	byPointer  = OrderBy{Kind: OrderJSON, Name: "/user/id"}
	bySegment  = OrderBy{Kind: OrderPathSegment, Segment: 2}
)

// sent is a write with a body of a content type; none for an empty one.
func sent(contentType, body string) *Write {
	w := &Write{Method: "POST", Target: "/register", Body: []byte(body)}
	if contentType != "" {
		w.Fields = append(w.Fields, Field{"Content-Type", contentType})
	}
	return w
}

func withField(w *Write, name, value string) *Write {
	w.Fields = append(w.Fields, Field{name, value})
	return w
}

func withTarget(target string) *Write { return &Write{Method: "PUT", Target: target} }

// keyOf is what a value has as its key, wherever it stood.
func keyOf(value string) Key { return digest("order", "users", value) }

// TestOrderKey lists, by their value, requests that must have the same key.
func TestOrderKey(t *testing.T) {
	pointer := func(p string) OrderBy { return OrderBy{Kind: OrderJSON, Name: p} }
	for _, row := range []struct {
		value string
		by    OrderBy
		in    *Write
	}{
		{"ada", byUsername, sent(formType, "username=ada")},
		{"ada", byUsername, sent(formType, "password=x&username=ada&")},
		{"ada", byUsername, sent(formType, "%75sername=%61da")},
		{"ada", byUsername, sent(formType, "USERNAME=bob&username=ada&user=name")},
		{"ada", byUsername, sent("Application/X-WWW-Form-URLEncoded ; charset=utf-8", "username=ada")},
		{"a b", byUsername, sent(formType, "username=a+b")},
		{"a b", byUsername, sent(formType, "username=a%20b")},
		{"a+b=c", byUsername, sent(formType, "username=a%2bb=c")},
		{"ada;username=bob", byUsername, sent(formType, "username=ada;username=bob")},
		{"\xff", byUsername, sent(formType, "username=%ff")},
		{"ada", byUsername, sent(jsonType, `{"username":"ada"}`)},
		{"ada", byUsername, sent(jsonType, "\n{ \"a\" : [1,{\"username\":\"bob\"}] ,\t\"\\u0075sername\" :\r\n\"\\u0061d\\u0061\" , \"b\":{} } ")},
		{"ada", byUsername, sent("application/vnd.users+JSON; v=1", `{"Username":"bob","username":"ada"}`)},
		{"ada", byUsername, sent(jsonType, `{"x":{"a":1,"a":2},"username":"ada"}`)},
		{"ada", byUsername, withField(sent(jsonType, `{"username":"ada"}`), "Content-Encoding", " Identity ")},
		{"a b", byUsername, sent(jsonType, `{"username":"a b"}`)},
		{"\"}\\", byUsername, sent(jsonType, `{"username":"\"}\\","a":"}"}`)},
		{"\U0001f600", byUsername, sent(jsonType, `{"username":"\ud83d\ude00"}`)},
		{"\U0001f600", byUsername, sent(jsonType, "{\"username\":\"\U0001f600\"}")},
		{"7", byUsername, sent(jsonType, `{"username":7}`)},
		{"7", byUsername, sent(jsonType, `{"username":"7"}`)},
		{"-7.50E+1", byUsername, sent(jsonType, `{"username":-7.50E+1}`)},
		{"12345678901234567890123", byUsername, sent(jsonType, `{"username": 12345678901234567890123 }`)},
		{"true", byUsername, sent(jsonType, `{"username":true}`)},
		{"false", byUsername, sent(jsonType, `{"username":false,"a":1}`)},
		{`a\n`, OrderBy{Kind: OrderField, Name: `a\n`}, sent(jsonType, `{"a\n":"no","a\\n":"a\\n"}`)},
		{"ada", OrderBy{Kind: OrderField, Name: "a/~0"}, sent(jsonType, `{"a/~0":"ada"}`)},

		{"ada", byHeader, withField(&Write{Target: "/"}, "x-user", "ada")},
		{"ada", byHeader, withField(sent("a/b", "x"), "X-User", " ada\t")},
		{"ada, bob", byHeader, withField(&Write{Target: "/"}, "X-User", "ada, bob")},
		{"ada", byHeader, withField(withField(&Write{Target: "/"}, "Content-Encoding", "gzip"), "X-User", "ada")},

		{"ada", byPointer, sent(jsonType, `{"user":{"name":"x","id":"ada"},"id":"bob"}`)},
		{"ada", byPointer, sent(jsonType, `{"id":1,"id":2,"user":{"x":{"id":1,"id":2},"id":"ada"}}`)},
		{"ada", pointer(""), sent(jsonType, ` "ada" `)},
		{"ada", pointer("/"), sent(jsonType, `{"":"ada"}`)},
		{"ada", pointer("/a~1b/m~0n/~01"), sent(jsonType, `{"a/b":{"m~n":{"~1":"ada"}}}`)},
		{"ada", pointer("/0"), sent(jsonType, `["ada","bob"]`)},
		{"ada", pointer("/users/2/id"), sent(jsonType, `{"users":[ [0,"]"] , {"id":"bob"},{"id":"ada"}, {"id":"eve"}]}`)},
		{"ada", pointer("/10"), sent("text/x+json", `[0,1,2,3,4,5,6,7,8,9,"ada"]`)},
		{"ada", pointer("/01"), sent(jsonType, `{"01":"ada"}`)},

		{"ada", bySegment, withTarget("/users/ada")},
		{"ada", bySegment, withTarget("/users/%61da/password?username=bob")},
		{"a+b c", bySegment, withTarget("/users/a+b%20c")},
		{"ada", OrderBy{Kind: OrderPathSegment, Segment: 1}, withTarget("/ada")},
		{"ada", OrderBy{Kind: OrderPathSegment, Segment: 4}, withTarget("/a//b/ada/")},
	} {
		key, err := row.by.Key("users", row.in)
		require.NoError(t, err, "%+v %s", row.by, row.in.Body)
		require.Equal(t, keyOf(row.value), key, "%+v %s %s", row.by, row.in.Target, row.in.Body)
	}
}

// TestOrderKeyIsRefused lists requests without a usable value, and the end of
// what the client reads.
func TestOrderKeyIsRefused(t *testing.T) {
	const (
		missing  = "it is missing; send it once, with a value"
		empty    = "it is empty; send it with a value"
		repeated = "it is given more than once; send it once"
		noText   = "it is an object, an array or null; send a string, a number or a boolean"
		badJSON  = "the body is not valid JSON in UTF-8; send one JSON value and nothing after it"
		badForm  = "the body has a % that begins no escape; write % itself as %25"
		encoded  = "the body has a Content-Encoding, which lb does not decode; send it without"
		noType   = "the Content-Type is neither of those that it can be read from; send application/x-www-form-urlencoded or application/json"
	)
	pointer := func(p string) OrderBy { return OrderBy{Kind: OrderJSON, Name: p} }
	for _, row := range []struct {
		want string
		by   OrderBy
		in   *Write
	}{
		{missing, byUsername, sent(formType, "")},
		{missing, byUsername, sent(formType, "user=ada&Username=ada")},
		{missing, byUsername, &Write{Target: "/register?username=ada", Body: []byte("a=b"), Fields: []Field{{"Content-Type", formType}}}},
		{missing, OrderBy{Kind: OrderField}, sent(formType, "a=b&&c=d&")},
		{empty, byUsername, sent(formType, "username=&a=b")},
		{empty, byUsername, sent(formType, "username")},
		{repeated, byUsername, sent(formType, "username=ada&username=ada")},
		{repeated, byUsername, sent(formType, "username=ada&userna%6de=")},
		{badForm, byUsername, sent(formType, "username=%zz")},
		{badForm, byUsername, sent(formType, "username=ada&a=%4")},
		{badForm, byUsername, sent(formType, "username=ada&%=1")},
		{noType, byUsername, sent("", "username=ada")},
		{noType, byUsername, sent("text/plain", "username=ada")},
		{noType, byUsername, sent("application/json, text/plain", `{"username":"ada"}`)},
		{noType, byUsername, sent("multipart/form-data; boundary=x", "--x--")},
		{"the request has more than one Content-Type; send one", byUsername,
			withField(sent(formType, "username=ada"), "content-type", formType)},
		{encoded, byUsername, withField(sent(formType, "username=ada"), "Content-Encoding", "gzip")},
		{encoded, byUsername, withField(withField(sent(jsonType, `{"username":1}`), "Content-Encoding", "identity"), "content-encoding", "br")},
		{encoded, byPointer, withField(sent(jsonType, `{"user":{"id":1}}`), "Content-Encoding", "identity, gzip")},

		{missing, byUsername, sent(jsonType, `{}`)},
		{missing, byUsername, sent(jsonType, ` { "a" : {"username":"ada"} } `)},
		{empty, byUsername, sent(jsonType, `{"username":""}`)},
		{repeated, byUsername, sent(jsonType, `{"username":"ada","username":"ada"}`)},
		{repeated, byUsername, sent(jsonType, `{"username":"ada","a":0,"\u0075sername":null}`)},
		{noText, byUsername, sent(jsonType, `{"username":null}`)},
		{noText, byUsername, sent(jsonType, `{"username":{"username":"ada"}}`)},
		{noText, byUsername, sent(jsonType, `{"username":["ada"]}`)},
		{"the body is no JSON object; send one that has the field", byUsername, sent(jsonType, `["username"]`)},
		{"the body is no JSON object; send one that has the field", byUsername, sent(jsonType, `"username"`)},
		{badJSON, byUsername, sent(jsonType, ``)},
		{badJSON, byUsername, sent(jsonType, `username=ada`)},
		{badJSON, byUsername, sent(jsonType, `{"username":"ada"`)},
		{badJSON, byUsername, sent(jsonType, `{"username":"ada"} {}`)},
		{badJSON, byUsername, sent(jsonType, `{"username":"ada",}`)},
		{badJSON, byUsername, sent(jsonType, `{username:"ada"}`)},
		{badJSON, byUsername, sent(jsonType, "{\"username\":\"ada\",\"a\":\"\xff\"}")},
		{badJSON, byUsername, sent(jsonType, `{"username":"ada","a":`+strings.Repeat("[", 1<<20)+strings.Repeat("]", 1<<20)+`}`)},

		{missing, byHeader, withField(sent(formType, "X-User=ada"), "X-Users", "ada")},
		{empty, byHeader, withField(&Write{Target: "/"}, "X-User", " \t")},
		{repeated, byHeader, withField(withField(&Write{Target: "/"}, "X-User", "ada"), "x-user", "ada")},

		{missing, byPointer, sent(jsonType, `{"user":{}}`)},
		{missing, byPointer, sent(jsonType, `{"user/id":"ada"}`)},
		{missing, byPointer, sent(jsonType, `{"user":"ada"}`)},
		{missing, byPointer, sent(jsonType, `null`)},
		{missing, pointer("/1"), sent(jsonType, `["ada"]`)},
		{missing, pointer("/0"), sent(jsonType, `[]`)},
		{missing, pointer("/-"), sent(jsonType, `["ada"]`)},
		{missing, pointer("/00"), sent(jsonType, `["ada"]`)},
		{missing, pointer("/+0"), sent(jsonType, `["ada"]`)},
		{missing, pointer("/-1"), sent(jsonType, `["ada"]`)},
		{missing, pointer("/99999999999999999999"), sent(jsonType, `["ada"]`)},
		{missing, pointer("/0/"), sent(jsonType, `["ada"]`)},
		{repeated, byPointer, sent(jsonType, `{"user":{"id":"ada"},"user":{"id":"ada"}}`)},
		{repeated, byPointer, sent(jsonType, `{"user":{"id":"ada","id":"ada"}}`)},
		{empty, byPointer, sent(jsonType, `{"user":{"id":""}}`)},
		{noText, byPointer, sent(jsonType, `{"user":{"id":{}}}`)},
		{badJSON, byPointer, sent(jsonType, `{"user":{"id":"ada"}}x`)},
		{"the Content-Type is not that of JSON; send application/json", byPointer, sent(formType, "user=ada")},
		{"the Content-Type is not that of JSON; send application/json", byPointer, sent("", `{"user":{"id":"ada"}}`)},

		{missing, bySegment, withTarget("/users")},
		{missing, bySegment, withTarget("/users?/ada")},
		{missing, bySegment, withTarget("*")},
		{empty, bySegment, withTarget("/users/")},
		{empty, bySegment, withTarget("/users//ada")},
		{"the path has a % that begins no escape; write % itself as %25", bySegment, withTarget("/users/%")},
	} {
		key, err := row.by.Key("users", row.in)
		require.Zero(t, key)
		failure := requireBadRequest(t, err)
		require.True(t, strings.HasSuffix(failure.Detail, ": "+row.want), "%+v %.100s: %s", row.by, row.in.Body, failure.Detail)
		require.NotContains(t, failure.Detail, "ada", "a value is not repeated")
	}
}

// requireBadRequest checks that err is one that a client gets as 400.
func requireBadRequest(t testing.TB, err error) *outcome.Error {
	t.Helper()
	var failure *outcome.Error
	require.ErrorAs(t, err, &failure)
	require.Equal(t, outcome.BadRequest, failure.Code)
	return failure
}

// TestOrderKeyNamesWhatIsWrong is the whole sentence that a client reads.
func TestOrderKeyNamesWhatIsWrong(t *testing.T) {
	for want, by := range map[string]OrderBy{
		`this route orders writes by the field "username" of the body: `:       byUsername,
		`this route orders writes by the header field X-User: it is missing`:   byHeader,
		`this route orders writes by the value at "/user/id" in the JSON body`: byPointer,
		`this route orders writes by segment 2 of the path: it is missing`:     bySegment,
	} {
		_, err := by.Key("users", sent("", ""))
		require.True(t, strings.HasPrefix(requireBadRequest(t, err).Detail, want), "%s", err)
	}
}

func TestOrderKeyOfNothing(t *testing.T) {
	key, err := OrderBy{}.Key("users", sent(jsonType, "no JSON"))
	require.NoError(t, err)
	require.Zero(t, key)
}

// TestOrderKeyIsOfOnePool: writes of two pools wait for each other nowhere.
func TestOrderKeyIsOfOnePool(t *testing.T) {
	in := sent(formType, "username=ada")
	users, err := byUsername.Key("users", in)
	require.NoError(t, err)
	shops, err := byUsername.Key("shops", in)
	require.NoError(t, err)
	require.NotEqual(t, users, shops)
	require.NotEqual(t, digest("order", "usersa", "da"), users)
}

// FuzzOrderKey checks that no body makes a Key panic, that what is said about
// one is said again, and that a decoder finds the same value in it.
func FuzzOrderKey(f *testing.F) {
	for _, body := range []string{
		`{"a":"b"}`, `{"a":{"b":[1,true,null]},"a":"\u0061\ud800"}`, ` { "a" : 1e5 } `, `[["a"],{}]`, `"a"`, "1", "a=b&a=c", "%61=+%zz", "",
		`{"":"","a\"b":"}"}`, "{\"a\":\"\xff\"}", `{"a":1}{}`,
	} {
		f.Add(body, "a", "/a/b/1")
	}
	f.Fuzz(func(t *testing.T, body, name, pointer string) {
		for _, by := range []OrderBy{
			{Kind: OrderField, Name: name}, {Kind: OrderJSON, Name: pointer}, {Kind: OrderHeader, Name: name}, {Kind: OrderPathSegment, Segment: len(name)},
		} {
			for _, contentType := range []string{formType, jsonType} {
				in := sent(contentType, body)
				in.Target = body
				key, err := by.Key("users", in)
				again, errAgain := by.Key("users", in)
				require.Equal(t, key, again)
				require.Equal(t, err, errAgain)
				require.Equal(t, err == nil, key != Key{})
				if err != nil {
					_ = requireBadRequest(t, err)
				}
			}
		}
		key, err := OrderBy{Kind: OrderField, Name: name}.Key("users", sent(jsonType, body))
		value, ok := decoded(body, name)
		require.Equal(t, ok, err == nil, "%v", err)
		if ok {
			require.Equal(t, keyOf(value), key)
		}
	})
}

// decoded finds the one value of a member with a decoder: slower, and simpler.
func decoded(body, name string) (value string, ok bool) {
	if !utf8.ValidString(body) || !json.Valid([]byte(body)) {
		return "", false
	}
	d := json.NewDecoder(strings.NewReader(body))
	if token, err := d.Token(); err != nil || token != json.Delim('{') {
		return "", false
	}
	found := 0
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return "", false
		}
		var raw json.RawMessage
		if d.Decode(&raw) != nil {
			return "", false
		}
		if key != name {
			continue
		}
		found++
		var v any
		n := json.NewDecoder(bytes.NewReader(raw))
		n.UseNumber()
		if n.Decode(&v) != nil {
			return "", false
		}
		switch v.(type) {
		case string, json.Number, bool:
			value = fmt.Sprint(v)
		default:
			value = ""
		}
	}
	return value, found == 1 && value != ""
}

// FuzzOrderKeyAgrees checks that a value has one key, however it is written.
func FuzzOrderKeyAgrees(f *testing.F) {
	for _, value := range []string{"ada", "a b", "a+b", "%", "\"\\/\n\u2028", "é\U0001f600", "&=;", "\x00"} {
		f.Add("username", value)
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		if !utf8.ValidString(name) || !utf8.ValidString(value) || value == "" {
			return
		}
		by, want := OrderBy{Kind: OrderField, Name: name}, keyOf(value)
		form := url.Values{name: {value}, name + "2": {"other"}}.Encode()
		object, err := json.Marshal(map[string]any{name: value, name + "2": []any{name, value}})
		require.NoError(t, err)
		pointer := "/" + strings.ReplaceAll(strings.ReplaceAll(name, "~", "~0"), "/", "~1")
		for _, row := range []struct {
			by OrderBy
			in *Write
		}{
			{by, sent(formType, form)},
			{by, sent(jsonType, string(object))},
			{by, sent(jsonType, escaped(string(object)))},
			{OrderBy{Kind: OrderJSON, Name: pointer}, sent(jsonType, string(object))},
			{bySegment, withTarget("/users/" + url.PathEscape(value))},
		} {
			key, err := row.by.Key("users", row.in)
			require.NoError(t, err, "%s", row.in.Body)
			require.Equal(t, want, key, "%s %s", row.in.Target, row.in.Body)
		}
	})
}

// escaped writes every letter of the strings in a JSON text as an escape.
func escaped(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\\' && text[i+1] == 'u':
			b.WriteString(text[i : i+6])
			i += 5
		case c == '\\':
			b.WriteString(text[i : i+2])
			i++
		case 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z':
			fmt.Fprintf(&b, `\u%04x`, c)
		default:
			_ = b.WriteByte(c)
		}
	}
	return b.String()
}

func BenchmarkOrderKey(b *testing.B) {
	large := func(item, sep string) string {
		return strings.TrimSuffix(strings.Repeat(item+sep, (1<<20)/len(item+sep)), sep)
	}
	for _, row := range []struct {
		name string
		by   OrderBy
		in   *Write
	}{
		{"form", byUsername, sent(formType, "username=ada&password=secret")},
		{"json", byUsername, sent(jsonType, `{"username":"ada","password":"secret"}`)},
		{"header", byHeader, withField(&Write{Target: "/"}, "X-User", "ada")},
		{"segment", bySegment, withTarget("/users/ada")},
		{"form-1MiB", byUsername, sent(formType, large("a=%41", "&")+"&username=ada")},
		{"json-1MiB", byUsername, sent(jsonType, `{"a":[`+large(`{"b":[1]}`, ",")+`],"username":"ada"}`)},
		{"json-1MiB-names", byUsername, sent(jsonType, "{"+large(`"\u0061":1`, ",")+`,"username":"ada"}`)},
	} {
		b.Run(row.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(row.in.Body)))
			for b.Loop() {
				if _, err := row.by.Key("users", row.in); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
