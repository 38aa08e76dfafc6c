package protocol

import (
	"encoding/json"
	"errors"
	"testing"
	"unicode/utf8"

	"switchyard/internal/message"
)

// FuzzDecode compares Decode with encoding/json, and checks that the answer to a
// refused frame is always JSON.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"type":"publish","ref":"1","room":"a","id":"x","data":{"a":[1,2,{"b":"}\""}]}}`))
	f.Add([]byte(`{"type":"join","room":"a","after":1,"epoch":"e"}`))
	f.Add([]byte(` {"":{},"type" : "leave", "room":"\u0061"} `))
	f.Add([]byte(`{"type":"publish","room":"a","data":1,"id":"a\"b"}`))
	f.Add([]byte(`[[[[`))
	f.Add([]byte(`{"type":"presence","ref":"p","room":"a"}`))
	f.Add([]byte(`{"type":"auth","token":"eyJ.e30.\u0061"}`))
	f.Add([]byte(`{"type":"moved","from":"n1","handshake_ms":48}`))
	f.Fuzz(func(t *testing.T, frame []byte) {
		r, err := Decode(frame)
		roomless := r.Type == TypeAuth || r.Type == TypeMoved
		if err == nil && (r.Type == "" || (r.Room == "") != roomless || (r.Token+r.From == "") == roomless) {
			t.Errorf("accepted %q as %+v", frame, r)
		}
		if !utf8.Valid(frame) {
			return // the connection refuses such frames before they are decoded
		}
		if err != nil {
			if answer := Payload(ErrorFor(err).Encode(r.Ref, r.Room, r.ID)); !json.Valid(answer) {
				t.Errorf("%q is answered with %s", frame, answer)
			}
			return
		}
		var reference map[string]json.RawMessage
		if err := json.Unmarshal(frame, &reference); err != nil {
			t.Fatalf("accepted %q: %v", frame, err)
		}
		for field, got := range map[string]string{"room": string(r.Room), "type": string(r.Type), "token": r.Token, "from": r.From} {
			var want string
			_ = json.Unmarshal(reference[field], &want) // on an error want stays "", which differs
			if want != got && got != "" {
				t.Errorf("%s of %q was decoded as %q", field, frame, got)
			}
		}
		if r.Data != nil && string(r.Data) != string(reference["data"]) {
			t.Errorf("%q was decoded as %+v", frame, r)
		}
		if r.Data != nil && !json.Valid(r.Data) {
			t.Errorf("data of %q: %q", frame, r.Data)
		}
	})
}

// FuzzBodies decodes HTTP bodies, and checks that accepted data makes a valid
// frame.
func FuzzBodies(f *testing.F) {
	f.Add([]byte(`{"data":1,"id":"x"}`))
	f.Add([]byte(`[{"room":"a","data":{"b":[]}},{"room":"b","data":"]","id":"1"}]`))
	f.Add([]byte("{\"data\":\"\xff\"}"))
	f.Add([]byte(`[1,{},[],"",{"room":"_"}]`))
	f.Fuzz(func(t *testing.T, body []byte) {
		drafts, err := DecodeBatch(body, 4096)
		if len(drafts) > 256 {
			t.Errorf("a batch of %d messages was accepted", len(drafts))
		}
		var batchErr *message.BatchError
		if errors.As(err, &batchErr) && batchErr.Index < 0 {
			t.Errorf("%q: %v", body, err)
		}
		if d, err := DecodeDraft(body); err == nil {
			d.Room = "a"
			drafts = append(drafts, d)
		}
		if data, err := DecodeSignal(body); err == nil {
			drafts = append(drafts, message.Draft{Room: "a", Data: data})
		}
		for _, d := range drafts {
			frame := Payload(Message(&message.Message{Draft: d}))
			if !json.Valid(frame) || !utf8.Valid(frame) || d.Room == "" {
				t.Errorf("%q was encoded as %q", body, frame)
			}
		}
	})
}
