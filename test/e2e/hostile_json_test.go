package e2e

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"strings"
)

// jsonAttacks are frames that may break a JSON parser.
func jsonAttacks() (all []attack) {
	digits := strings.Repeat("9", 60000)
	publish := func(data string) string {
		return `{"type":"publish","ref":"x","room":"own.json","data":` + data + `}`
	}
	for _, row := range []struct{ name, frame, want string }{
		{"brackets are nested thirty thousand deep", publish(nestedArrays(30000)), "error malformed"},
		{"braces are nested ten thousand deep", publish(strings.Repeat(`{"a":`, 10000) + "1" + strings.Repeat("}", 10000)), "error malformed"},
		{"data are nested a level too deep", publish(nestedArrays(129)), "error invalid"},
		{"a seq has sixty thousand digits", `{"type":"join","ref":"x","room":"own.a","after":` + digits + `,"epoch":"e"}`, "error invalid"},
		{"a seq is over what float64 holds", `{"type":"join","ref":"x","room":"own.a","after":9007199254740993,"epoch":"e"}`, "error invalid"},
		{"a seq is minus zero point five", `{"type":"join","ref":"x","room":"own.a","after":-0.5,"epoch":"e"}`, "error invalid"},
		{"a limit has an exponent of a billion", `{"type":"history","ref":"x","room":"own.a","limit":1e1000000000}`, "error invalid"},
		{"data are a number that no float holds", publish("1e400"), "ack"},
		{"data are a number of sixty thousand digits", publish(digits), "ack"},
		{"a frame has ten thousand unknown fields", `{"type":"leave","ref":"x",` + strings.Repeat(`"k":0,`, 10000) + `"room":"own.a"}`, "error invalid"},
		{"a room comes twice, the permitted one first", `{"type":"join","ref":"x","room":"own.a","room":"vault"}`, "error forbidden"},
		{"a room comes twice, the second time escaped", `{"type":"join","ref":"x","room":"own.a","\u0072oom":"vault"}`, "error forbidden"},
		{"a type comes twice", `{"type":"leave","type":"publish","ref":"x","room":"vault","data":1}`, "error forbidden"},
		{"field names are in capitals", `{"TYPE":"publish","ref":"x","ROOM":"vault","DATA":1}`, "error malformed"},
		{"a room is half a surrogate", `{"type":"join","ref":"x","room":"\ud800"}`, "error invalid"},
		{"a room is an object", `{"type":"join","ref":"x","room":{"$ne":null}}`, "error invalid"},
		{"a type is a list", `{"type":["publish"],"ref":"x","room":"own.a","data":1}`, "error malformed"},
		{"a ref is longer than allowed", `{"type":"leave","room":"own.a","ref":"` + strings.Repeat(`\\`, 33) + `"}`, "error invalid"},
		{"an id contains fields for the answer", `{"type":"publish","ref":"x","room":"own.a","data":1,"id":"a\",\"seq\":7,\"b\":\""}`, "error invalid"},
		{"an id has a NUL", `{"type":"publish","ref":"x","room":"own.a","data":1,"id":"a\u0000"}`, "error invalid"},
		{"a frame has two objects", `{"type":"leave","room":"own.a"}{"type":"leave","room":"own.a"}`, "error malformed"},
		{"a frame begins with a byte order mark", "\ufeff" + `{"type":"leave","room":"own.a"}`, "error malformed"},
		{"a frame has a comment", `{"type":"leave",/* */"room":"own.a"}`, "error malformed"},
		{"a number is NaN", publish("NaN"), "error malformed"},
		{"a frame is null", `null`, "error malformed"},
		{"a type is unknown", `{"type":"eval","ref":"x","room":"own.a"}`, "error unknown_type"},
		{"a token is a byte longer than allowed", `{"type":"auth","ref":"x","token":"` + strings.Repeat("a", 8193) + `"}`, "error invalid"},
		{"a client reports a move of centuries", `{"type":"moved","ref":"x","from":"n","handshake_ms":9007199254740991}`, "error invalid"},
	} {
		all = append(all, attack{row.name, row.want, func(a *attacker) string {
			w := a.connectAsOwnUser()
			w.send(row.frame)
			return w.answer()
		}})
	}
	return append(all, attack{"three frames in a row are not JSON", "close 1008", func(a *attacker) string {
		w := a.connectAsOwnUser()
		w.send("<", "<", "<")
		_, end := w.readUntil(func(*receivedFrame) bool { return false })
		return end
	}})
}

// bodyAttacks are bodies of HTTP requests that may break a JSON parser, with an API key.
func bodyAttacks() (all []attack) {
	const one, many = "POST /v1/rooms/own.a/messages", "POST /v1/messages"
	var bomb bytes.Buffer
	packed := gzip.NewWriter(&bomb)
	_, _ = packed.Write(make([]byte, 200_000))
	_ = packed.Close()
	for _, row := range []struct {
		name, line, body string
		lines            []string
		want             string
	}{
		{"a body is nested thirty thousand deep", one, nestedArrays(30000), nil, "400 malformed"},
		{"a batch is a million brackets", many, strings.Repeat("[", 1<<20), nil, "400 malformed"},
		{"a batch is 262,144 empty lists", many, "[" + strings.Repeat("[],", 1<<18) + "[]]", nil, "400 malformed"},
		{"a batch has a message too many", many, "[" + strings.Repeat(`{"room":"own.a","data":1},`, 256) + `{"room":"own.a","data":1}]`, nil, "400 invalid"},
		{"a body is a byte over the limit", one, `{"data":"` + strings.Repeat("x", 65537-11) + `"}`, nil, "413 too_large"},
		{"a body is a gzip bomb", one, bomb.String(), []string{"Content-Encoding: gzip"}, "415 unsupported_encoding"},
		{"a body has data twice, and an id that is not a string", one, `{"data":1,"data":2,"id":[]}`, nil, "400 invalid"},
		{"a body is not UTF-8", one, `{"data":"` + "\xff" + `"}`, nil, "400 malformed"},
		{"a body names a sender", one, `{"data":1,"from":"ada","seq":1}`, nil, "201"},
		{"a ban is for centuries", "POST /v1/users/nobody/disconnect", `{"for":"2540400h10m10.000000001s"}`, nil, "400 invalid"},
		{"a ban has a negative duration", "POST /v1/users/nobody/disconnect", `{"for":"-10m"}`, nil, "400 invalid"},
		{"a page of history begins at a negative seq", "GET /v1/rooms/own.a/messages?after=-1", "", nil, "400 invalid"},
		{"a page of history has a limit that overflows", "GET /v1/rooms/own.a/messages?limit=9223372036854775808", "", nil, "400 invalid"},
		{"a query has a name twice", "GET /v1/rooms/own.a/messages?limit=1&limit=200", "", nil, "400 invalid"},
		{"a query has half an escape", "GET /v1/rooms/own.a/messages?limit=%", "", nil, "400 invalid"},
	} {
		all = append(all, attack{row.name, row.want, func(a *attacker) string {
			return a.roundTrip(request(row.line, row.body, append(row.lines, "Authorization: Bearer "+tillKey)...))
		}})
	}
	return append(all, attack{"a chunked body does not end", "413 too_large", func(a *attacker) string {
		chunk := fmt.Sprintf("%x\r\n%s\r\n", 30000, strings.Repeat(" ", 30000))
		return a.roundTrip(request(one, "", "Transfer-Encoding: chunked", "Authorization: Bearer "+shopKey) + strings.Repeat(chunk, 4))
	}})
}
