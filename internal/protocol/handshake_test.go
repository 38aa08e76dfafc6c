package protocol

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// handshake is a client's, with headers given as name: value.
func handshake(target string, headers ...string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, target, http.NoBody)
	for _, line := range headers {
		name, value, _ := strings.Cut(line, ": ")
		r.Header.Add(name, value)
	}
	return r
}

func TestAHandshakeCarriesTokenAndSession(t *testing.T) {
	long := strings.Repeat("x", MaxTokenLength)
	for _, tt := range []struct {
		name    string
		target  string
		headers []string
		want    Handshake
	}{
		{"nothing", "/ws", []string{"Sec-WebSocket-Protocol: switchyard.v1"}, Handshake{}},
		{"a browser", "/ws", []string{"Sec-WebSocket-Protocol: switchyard.v1, bearer.eyJ.e30.c2ln, session.5PQ.k3_-"}, Handshake{Token: "eyJ.e30.c2ln", Session: "5PQ.k3_-"}},
		{"a browser, in lines", "/ws", []string{"Sec-WebSocket-Protocol: session.s", "Sec-WebSocket-Protocol: switchyard.v1,bearer.t"}, Handshake{Token: "t", Session: "s"}},
		{"a program", "/ws", []string{"Authorization: Bearer eyJ.e30.c2ln", "Switchyard-Session: 5PQ.k3"}, Handshake{Token: "eyJ.e30.c2ln", Session: "5PQ.k3"}},
		{"the scheme's case does not count", "/ws", []string{"Authorization: bEARER t"}, Handshake{Token: "t"}},
		{"another scheme is not for us", "/ws", []string{"Authorization: Basic dTpw"}, Handshake{}},
		{"one of each kind", "/ws", []string{"Authorization: Bearer t", "Sec-WebSocket-Protocol: session.s"}, Handshake{Token: "t", Session: "s"}},
		{"rooms", "/ws?rooms=1", []string{"Sec-WebSocket-Protocol: session.s"}, Handshake{Session: "s", RejoinRooms: true}},
		{"rooms, of another mind", "/ws?rooms=0", nil, Handshake{}},
		{"secrets in the address are not read", "/ws?session=s&token=t&access_token=t", nil, Handshake{}},
		{"the longest token", "/ws", []string{"Authorization: Bearer " + long}, Handshake{Token: long}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ReadHandshake(handshake(tt.target, tt.headers...))
			if err != nil || got != tt.want {
				t.Errorf("%+v, %v; want %+v", got, err, tt.want)
			}
		})
	}
}

func TestABadHandshakeIsRefusedWithAReason(t *testing.T) {
	for _, tt := range []struct {
		name, wantText string
		headers        []string
	}{
		{"an empty token", "token must be of 1 to 8192 bytes", []string{"Authorization: Bearer "}},
		{"an empty entry", "token must be of 1 to 8192 bytes", []string{"Sec-WebSocket-Protocol: bearer."}},
		{"a long token", "token must be of 1 to 8192 bytes", []string{"Authorization: Bearer " + strings.Repeat("hush", MaxTokenLength)}},
		{"two tokens", "token must be given once", []string{"Authorization: Bearer hush", "Sec-WebSocket-Protocol: bearer.hush"}},
		{"two tokens in one line", "token must be given once", []string{"Sec-WebSocket-Protocol: bearer.hush, bearer.hush2"}},
		{"two sessions", "session must be given once", []string{"Sec-WebSocket-Protocol: session.hush", "Switchyard-Session: hush"}},
		{"an empty session", "session must be 1 to 128", []string{"Switchyard-Session: "}},
		{"a long session", "session must be 1 to 128", []string{"Sec-WebSocket-Protocol: session." + strings.Repeat("hush", 33)}},
		{"a session with a colon", "session must be 1 to 128", []string{"Switchyard-Session: hush:hush"}},
		{"a session of bytes", "session must be 1 to 128", []string{"Switchyard-Session: hush\xff"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ReadHandshake(handshake("/ws", tt.headers...))
			if err == nil || got != (Handshake{}) {
				t.Fatalf("taken as %+v", got)
			}
			if answer := ErrorFor(err); answer.Code != CodeInvalid || !strings.Contains(answer.Message, tt.wantText) || strings.Contains(answer.Message, "hush") {
				t.Errorf("told %+v", answer)
			}
		})
	}
}
