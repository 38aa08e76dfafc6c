package protocol

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"switchyard/internal/message"
)

func TestDecodeDraftAndSignalBodies(t *testing.T) {
	d, err := DecodeDraft([]byte(` {"id":"k","data": [1, 2] ,"room":"ignored"} `))
	if err != nil || d.ID != "k" || string(d.Data) != "[1, 2]" || d.Room != "" {
		t.Errorf("got draft %+v, %v", d, err)
	}
	data, err := DecodeSignal([]byte(`{"data":null}`))
	if err != nil || string(data) != "null" {
		t.Errorf("got data %s, %v", data, err)
	}
	for body, want := range map[string]string{
		``: CodeMalformed, `1`: CodeMalformed, `[{"data":1}]`: CodeMalformed, `{"data":1`: CodeMalformed, "{\"data\":\"\xff\"}": CodeMalformed,
		`{}`: CodeInvalid, `{"data":` + nested(129) + `}`: CodeInvalid,
	} {
		_, draft := DecodeDraft([]byte(body))
		_, signal := DecodeSignal([]byte(body))
		for _, err := range []error{draft, signal} {
			if err == nil || ErrorFor(err).Code != want {
				t.Errorf("%.40q: got %v, want %s", body, err, want)
			}
		}
	}
}

func TestDecodeBatchKeepsTheOrder(t *testing.T) {
	drafts, err := DecodeBatch([]byte(` [ {"room":"a","data":1,"id":"x"} , {"data":{"b":"]"},"room":"b"} ] `), 100)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%q", drafts); got != `[{"a" "x" "" "1"} {"b" "" "" "{\"b\":\"]\"}"}]` {
		t.Errorf("got %s", got)
	}
}

func TestDecodeBatchNamesTheInvalidMessage(t *testing.T) {
	good := `{"room":"a","data":1}`
	const most = 256
	many := "[" + strings.Repeat(good+",", most-1) + good
	if d, err := DecodeBatch([]byte(many+"]"), 100); err != nil || len(d) != most {
		t.Errorf("a batch of %d gave %d messages: %v", most, len(d), err)
	}
	for _, tt := range []struct {
		name, body, code string
		index            int // of the message that the error names, -1: none
	}{
		{"no JSON", `[`, CodeMalformed, -1},
		{"an object", good, CodeMalformed, -1},
		{"not UTF-8", "[{\"room\":\"a\",\"data\":\"\xff\"}]", CodeMalformed, -1},
		{"empty", `[]`, CodeInvalid, -1},
		{"one too many", many + "," + good + "]", CodeInvalid, -1},
		{"no object", `[` + good + `,7]`, CodeMalformed, 1},
		{"no room", `[` + good + `,` + good + `,{"data":1}]`, CodeInvalid, 2},
		{"a reserved room", `[{"room":"_x","data":1}]`, CodeForbidden, 0},
		{"no data", `[{"room":"a"}]`, CodeInvalid, 0},
		{"a bad id", `[{"room":"a","data":1,"id":""}]`, CodeInvalid, 0},
		{"too deep", `[` + good + `,{"room":"a","data":` + nested(129) + `}]`, CodeInvalid, 1},
		{"too large", `[` + good + `,{"room":"a","data":"` + strings.Repeat("x", 400-len(`{"room":"a","data":""}`)+1) + `"}]`, CodeTooLarge, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			const maxItem = 400
			_, err := DecodeBatch([]byte(tt.body), maxItem)
			index := -1
			var batchErr *message.BatchError
			if errors.As(err, &batchErr) {
				index = batchErr.Index
			}
			if err == nil || ErrorFor(err).Code != tt.code || index != tt.index {
				t.Errorf("got %v for message %d, want %s for message %d", err, index, tt.code, tt.index)
			}
		})
	}
}
