package auth

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// membersOf lists the members that visitObject visits.
func membersOf(text string) (list []string, err error) {
	err = visitObject([]byte(text), func(name string, value json.RawMessage) error {
		list = append(list, name+"="+string(value))
		return nil
	})
	return list, err
}

func TestObjectMembersInOrder(t *testing.T) {
	for text, want := range map[string]string{
		`{}`:                  `[]`,
		" {\t\r\n} ":          `[]`,
		`{"a":1}`:             `[a=1]`,
		`{"b":-1.5e+3,"a":0}`: `[b=-1.5e+3 a=0]`,
		` { "a" : "x" , "b" : true , "c":false,"d" : null } `: `[a="x" b=true c=false d=null]`,
		`{"":"","\u0061":"\\\"}"}`:                            `[="" a="\\\"}"]`,
		`{"a":{"a":[1,{"a":"]}"}]},"b":[],"c":{}}`:            `[a={"a":[1,{"a":"]}"}]} b=[] c={}]`,
		`{"a":[[[[]]]],"A":1}`:                                `[a=[[[[]]]] A=1]`,
		`{"ä":"😀"}`:                                           `[ä="😀"]`,
	} {
		got, err := membersOf(text)
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("%s: %v, %v, want %s", text, got, err, want)
		}
	}
}

func TestInvalidObjects(t *testing.T) {
	for text, says := range map[string]string{
		``: "not JSON", ` `: "not JSON", `{`: "not JSON", `{"a"}`: "not JSON", `{"a":1,}`: "not JSON", `{a:1}`: "not JSON", `{"a":1}x`: "not JSON",
		`{"a":01}`: "not JSON", "{\"a\":\"\n\"}": "not JSON", "{\"a\":\"\xff\"}": "not JSON", strings.Repeat(`{"a":`, 20000): "not JSON",
		`[]`: "not a JSON object", `"{}"`: "not a JSON object", `1`: "not a JSON object", `null`: "not a JSON object",
		`{"a":1,"a":1}`: "a name twice", `{"a":1,"b":2,"\u0061":3}`: "a name twice", `{"":1,"":2}`: "a name twice",
	} {
		if _, err := membersOf(text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.40s: %v, want one that says %q", text, err, says)
		}
	}
	stop := errors.New("enough")
	seen := 0
	if err := visitObject([]byte(`{"a":1,"b":2}`), func(string, json.RawMessage) error { seen++; return stop }); !errors.Is(err, stop) || seen != 1 {
		t.Errorf("%v after %d", err, seen)
	}
}

// Where encoding/json reads an object, visitObject reads the same names and values.
func FuzzObject(f *testing.F) {
	f.Add(`{"a":1,"b":[{"c":"\"}"}],"d":-1e5,"e":{"f":null}}`)
	f.Add(`{"a":1,"a":2}`)
	f.Add(` { "\ud800" : "\u0000" } `)
	f.Fuzz(func(t *testing.T, text string) {
		got := map[string]string{}
		err := visitObject([]byte(text), func(name string, value json.RawMessage) error {
			got[name] = string(value)
			return nil
		})
		var want map[string]json.RawMessage
		if json.Unmarshal([]byte(text), &want) != nil || want == nil {
			if err == nil {
				t.Errorf("read as %v", got)
			}
			return
		}
		if err != nil {
			return // visitObject is stricter on purpose
		}
		if len(got) != len(want) {
			t.Errorf("%d members, want %d", len(got), len(want))
		}
		for name, value := range want {
			if got[name] != string(value) {
				t.Errorf("%q is %q, want %q", name, got[name], value)
			}
		}
	})
}
