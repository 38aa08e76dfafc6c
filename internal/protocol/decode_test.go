package protocol

import (
	"errors"
	"strings"
	"testing"
	"time"

	"switchyard/internal/message"
)

func TestDecodeUnderstandsEveryRequest(t *testing.T) {
	tests := []struct {
		name, frame string
		want        Request
	}{
		{"join from now", `{"type":"join","room":"a"}`, Request{Type: TypeJoin, Room: "a"}},
		{"join from the start", `{"type":"join","room":"a","after":0}`, Request{Type: TypeJoin, Room: "a", HasAfter: true}},
		{
			"resume", `{"type":"join","ref":"r1","room":"a.b:c-d_e","after":41,"epoch":"e1"}`,
			Request{Type: TypeJoin, Ref: `"r1"`, Room: "a.b:c-d_e", After: 41, HasAfter: true, Epoch: "e1"},
		},
		{"nulls count as absent", `{"type":"join","room":"a","after":null,"epoch":null}`, Request{Type: TypeJoin, Room: "a"}},
		{"leave", `{"type":"leave","room":"a"}`, Request{Type: TypeLeave, Room: "a"}},
		{"publish", ` { "room" : "a" , "data" : { "x" : [1, "}"] } , "id":"7","type":"publish"} `, Request{Type: TypePublish, Room: "a", ID: "7", Data: []byte(`{ "x" : [1, "}"] }`)}},
		{"publish a string", `{"type":"publish","room":"a","data":"q\"\\"}`, Request{Type: TypePublish, Room: "a", Data: []byte(`"q\"\\"`)}},
		{"publish a number", `{"type":"publish","room":"a","data":1e400}`, Request{Type: TypePublish, Room: "a", Data: []byte(`1e400`)}},
		{"publish null", `{"type":"publish","room":"a","data":null}`, Request{Type: TypePublish, Room: "a", Data: []byte(`null`)}},
		{"a null id counts as absent", `{"type":"publish","room":"a","data":1,"id":null}`, Request{Type: TypePublish, Room: "a", Data: []byte(`1`)}},
		{"signal", `{"type":"signal","room":"a","data":true}`, Request{Type: TypeSignal, Room: "a", Data: []byte(`true`)}},
		{"history", `{"type":"history","room":"a","before":9,"limit":200}`, Request{Type: TypeHistory, Room: "a", Before: 9, HasBefore: true, Limit: 200}},
		{"presence", `{"type":"presence","ref":"p","room":"a"}`, Request{Type: TypePresence, Ref: `"p"`, Room: "a"}},
		{"auth", `{"type":"auth","ref":"t","token":"eyJ.e30.c2ln"}`, Request{Type: TypeAuth, Ref: `"t"`, Token: "eyJ.e30.c2ln"}},
		{"the longest token", `{"type":"auth","token":"` + strings.Repeat("x", 8192) + `"}`, Request{Type: TypeAuth, Token: strings.Repeat("x", 8192)}},
		{"auth ignores a room, even an invalid one", `{"type":"auth","token":"t","room":"a b"}`, Request{Type: TypeAuth, Token: "t"}},
		{"moved", `{"type":"moved","from":"n1","handshake_ms":48}`, Request{Type: TypeMoved, From: "n1", HandshakeMS: 48}},
		{"moved in 0 ms", `{"type":"moved","handshake_ms":0,"from":"n\u0031"}`, Request{Type: TypeMoved, From: "n1"}},
		{"the longest move", `{"type":"moved","handshake_ms":600000,"from":"n1"}`, Request{Type: TypeMoved, From: "n1", HandshakeMS: 600_000}},
		{"moved from the longest name", `{"type":"moved","from":"` + strings.Repeat("n", 128) + `","handshake_ms":1}`, Request{Type: TypeMoved, From: strings.Repeat("n", 128), HandshakeMS: 1}},
		{"the longest ref", `{"type":"leave","room":"a","ref":"` + strings.Repeat("r", 64) + `"}`, Request{Type: TypeLeave, Ref: Ref(`"` + strings.Repeat("r", 64) + `"`), Room: "a"}},
		{"the longest epoch and the highest seq", `{"type":"join","room":"a","after":9007199254740991,"epoch":"` + strings.Repeat("e", 64) + `"}`, Request{Type: TypeJoin, Room: "a", After: 9007199254740991, HasAfter: true, Epoch: message.Epoch(strings.Repeat("e", 64))}},
		{"unknown fields", `{"type":"leave","future":{"a":[{}]},"room":"a","x":-1.5}`, Request{Type: TypeLeave, Room: "a"}},
		{"the last of two equal fields counts", `{"type":"leave","room":"b","room":"a"}`, Request{Type: TypeLeave, Room: "a"}},
		{"escapes in a field's name", `{"t\u0079pe":"leave","room":"a"}`, Request{Type: TypeLeave, Room: "a"}},
		{"data of the greatest depth", `{"type":"publish","room":"a","data":` + nested(128) + `}`, Request{Type: TypePublish, Room: "a", Data: []byte(nested(128))}},
		{"escapes in a room's name", `{"type":"leave","room":"\u0061"}`, Request{Type: TypeLeave, Room: "a"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Decode([]byte(tt.frame))
			if err != nil {
				t.Fatalf("Decode: %v", err)
			}
			if !equal(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

// nested returns arrays in arrays, n deep.
func nested(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }

func equal(a, b Request) bool {
	sameData := string(a.Data) == string(b.Data)
	a.Data, b.Data = nil, nil
	return sameData && a.Type == b.Type && a.Ref == b.Ref && a.Room == b.Room && a.After == b.After &&
		a.HasAfter == b.HasAfter && a.Before == b.Before && a.HasBefore == b.HasBefore &&
		a.Epoch == b.Epoch && a.Limit == b.Limit && a.ID == b.ID &&
		a.Token == b.Token && a.From == b.From && a.HandshakeMS == b.HandshakeMS
}

func TestDecodeErrorsNameTheProblem(t *testing.T) {
	long, ref := strings.Repeat("x", 129), strings.Repeat("r", 65)
	tests := []struct {
		name, frame, code, wantText string
	}{
		{"not JSON", `hello`, CodeMalformed, "JSON object"},
		{"empty", ``, CodeMalformed, "JSON object"},
		{"cut", `{"type":"join"`, CodeMalformed, "JSON object"},
		{"an array", `[{"type":"join"}]`, CodeMalformed, "JSON object"},
		{"two objects", `{} {}`, CodeMalformed, "JSON object"},
		{"no type", `{"room":"a"}`, CodeMalformed, "type"},
		{"type no string", `{"type":7}`, CodeMalformed, "type"},
		{"unknown type", `{"type":"dance","room":"a"}`, CodeUnknownType, "join"},
		{"no room", `{"type":"join"}`, CodeInvalid, "room must be 1 to 128"},
		{"empty room", `{"type":"join","room":""}`, CodeInvalid, "room"},
		{"long room", `{"type":"join","room":"` + long + `"}`, CodeInvalid, "room"},
		{"room with a space", `{"type":"join","room":"a b"}`, CodeInvalid, "room"},
		{"room no string", `{"type":"join","room":{}}`, CodeInvalid, "room"},
		{"negative after", `{"type":"join","room":"a","after":-1}`, CodeInvalid, "after must be a whole number"},
		{"fraction", `{"type":"join","room":"a","after":1.5}`, CodeInvalid, "after"},
		{"after as string", `{"type":"join","room":"a","after":"1"}`, CodeInvalid, "after"},
		{"after too large", `{"type":"join","room":"a","after":9007199254740992}`, CodeInvalid, "9007199254740991"},
		{"after without epoch", `{"type":"join","room":"a","after":1}`, CodeInvalid, "epoch is required"},
		{"epoch no string", `{"type":"join","room":"a","after":1,"epoch":1}`, CodeInvalid, "epoch"},
		{"long epoch", `{"type":"join","room":"a","after":1,"epoch":"` + ref + `"}`, CodeInvalid, "epoch must be a string of 1 to 64 bytes"},
		{"no data", `{"type":"publish","room":"a"}`, CodeInvalid, "data is required"},
		{"signal without data", `{"type":"signal","room":"a"}`, CodeInvalid, "data is required"},
		{"data too deep", `{"type":"publish","room":"a","data":` + nested(129) + `}`, CodeInvalid, "data must be nested at most 128 deep"},
		{"signal too deep", `{"type":"signal","room":"a","data":` + nested(9000) + `}`, CodeInvalid, "data must be nested at most 128 deep"},
		{"deeper than any JSON", `{"type":"leave","room":"a","x":` + nested(30000) + `}`, CodeMalformed, "JSON object"},
		{"bad id", `{"type":"publish","room":"a","data":1,"id":"a b"}`, CodeInvalid, "id must be 1 to 64"},
		{"id no string", `{"type":"publish","room":"a","data":1,"id":1}`, CodeInvalid, "id"},
		{"long ref", `{"type":"join","room":"a","ref":"` + ref + `"}`, CodeInvalid, "ref must be a string of at most 64"},
		{"ref no string", `{"type":"join","room":"a","ref":1}`, CodeInvalid, "ref"},
		{"both ends", `{"type":"history","room":"a","before":1,"after":1}`, CodeInvalid, "before"},
		{"before the first", `{"type":"history","room":"a","before":0}`, CodeInvalid, "before must be a whole number from 1"},
		{"large limit", `{"type":"history","room":"a","limit":201}`, CodeInvalid, "limit must be"},
		{"presence without a room", `{"type":"presence"}`, CodeInvalid, "room must be 1 to 128"},
		{"no token", `{"type":"auth"}`, CodeInvalid, "token must be a string of 1 to 8192 bytes"},
		{"empty token", `{"type":"auth","token":""}`, CodeInvalid, "token must be"},
		{"token no string", `{"type":"auth","token":{}}`, CodeInvalid, "token must be"},
		{"long token", `{"type":"auth","token":"` + strings.Repeat("x", 8193) + `"}`, CodeInvalid, "token must be"},
		{"moved without from", `{"type":"moved","handshake_ms":1}`, CodeInvalid, "from must be a string of 1 to 128 bytes"},
		{"moved from a long name", `{"type":"moved","handshake_ms":1,"from":"` + long + `"}`, CodeInvalid, "from must be"},
		{"moved without a time", `{"type":"moved","from":"n1"}`, CodeInvalid, "handshake_ms must be a whole number from 0 to 600000"},
		{"moved for too long", `{"type":"moved","from":"n1","handshake_ms":600001}`, CodeInvalid, "handshake_ms must be"},
		{"moved in a negative time", `{"type":"moved","from":"n1","handshake_ms":-1}`, CodeInvalid, "handshake_ms must be"},
		{"moved in a fraction", `{"type":"moved","from":"n1","handshake_ms":1.5}`, CodeInvalid, "handshake_ms must be"},
		{"zero limit", `{"type":"history","room":"a","limit":0}`, CodeInvalid, "limit must be"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Decode([]byte(tt.frame))
			if err == nil {
				t.Fatal("no error")
			}
			got := ErrorFor(err)
			if got.Code != tt.code || !strings.Contains(got.Message, tt.wantText) {
				t.Errorf("got %q with text %q, want %q with text %q", got.Code, got.Message, tt.code, tt.wantText)
			}
			if IsMalformed(err) != (tt.code == CodeMalformed) {
				t.Errorf("IsMalformed is %v", IsMalformed(err))
			}
		})
	}
}

func TestBracketsInStringsAreNotNesting(t *testing.T) {
	data := `"` + strings.Repeat(`[{\"`, 200) + `"`
	r, err := Decode([]byte(`{"type":"publish","room":"a","data":` + data + `}`))
	if err != nil || string(r.Data) != data {
		t.Errorf("got data %.20q, %v", r.Data, err)
	}
}

func TestDecodeKeepsTheRefOfABadRequest(t *testing.T) {
	r, err := Decode([]byte(`{"type":"publish","ref":"7","room":"a b","data":1}`))
	if err == nil || r.Ref != `"7"` {
		t.Errorf("ref %q, error %v: the client could not match the answer", r.Ref, err)
	}
}

// A client must not be able to end the JSON of the answer by what it sends, and
// no answer repeats a secret.
func TestABadFieldIsNotEchoed(t *testing.T) {
	for _, frame := range []string{
		`{"type":"publish","room":"a","data":1,"id":"a\"b"}`, `{"type":"publish","room":"a","data":1,"id":"\u0000"}`,
		`{"type":"publish","room":"a\"b","data":1}`, `{"type":"join","room":"a","ref":"\ud800"}`,
		`{"type":"auth","token":"` + strings.Repeat("secret", 8192) + `"}`, `{"type":"auth","token":["secret"]}`, `{"type":"moved","from":["secret"]}`,
	} {
		r, err := Decode([]byte(frame))
		if err == nil {
			err = errors.New("injected")
		}
		if strings.Contains(ErrorFor(err).Message, "secret") {
			t.Errorf("%s is answered with the secret: %v", frame, err)
		}
		decodeFrame(t, ErrorFor(err).Encode(r.Ref, r.Room, r.ID))
	}
}

// Decoding takes time in proportion to the size of a frame, whatever it nests or
// repeats. The largest frame that MAX_FRAME allows, 1 MiB, is decoded in an
// instant; if each field or bracket cost a scan of the whole frame, it would take
// a minute. The test counts the processor's time: a busy machine changes nothing.
func TestDecodeTakesLinearTime(t *testing.T) {
	const size = 1 << 20
	for name, frame := range map[string]string{
		"open brackets": strings.Repeat("[", size),
		"deep data":     `{"type":"publish","room":"a","data":` + nested(size/2) + `}`,
		"many members":  `{` + strings.Repeat(`"type":"x",`, size/11) + `"room":"a"}`,
		"long number":   `{"type":"join","room":"a","after":` + strings.Repeat("9", size) + `}`,
		"long exponent": `{"type":"join","room":"a","after":1e` + strings.Repeat("9", size) + `}`,
		"escapes":       `{"type":"join","room":"` + strings.Repeat(`\u0061`, size/6) + `"}`,
		"escaped names": `{` + strings.Repeat(`"\u0061":1,`, size/11) + `"room":"a"}`,
		"many objects":  `{"type":"publish","room":"a","data":[` + strings.Repeat(`{},`, size/3) + `{}]}`,
	} {
		before := processorTime(t)
		_, _ = Decode([]byte(frame))
		_, _ = DecodeBatch([]byte("["+frame+"]"), size)
		if took := processorTime(t) - before; took > 15*time.Second {
			t.Errorf("%s took %v", name, took)
		}
	}
}

func TestErrorForHidesInternalErrors(t *testing.T) {
	got := ErrorFor(errors.New("pq: password authentication failed for user admin"))
	if got.Code != CodeInternal || strings.Contains(got.Message, "admin") {
		t.Errorf("an internal error is revealed to the client: %+v", got)
	}
	if got := ErrorFor(message.ErrUnavailable); got.RetryAfter <= 0 {
		t.Errorf("unavailable without retry_after: %+v", got)
	}
}

// A publish says by follows that an earlier one has no answer yet; null and false are as
// if it were absent.
func TestAPublishMayFollowAnother(t *testing.T) {
	for value, want := range map[string]bool{"true": true, "false": false, "null": false} {
		r, err := Decode([]byte(`{"type":"publish","room":"a","follows":` + value + `,"data":1}`))
		if err != nil || r.Follows != want {
			t.Errorf("%s: %v, %v", value, r.Follows, err)
		}
	}
}
