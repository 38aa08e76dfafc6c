package protocol

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// handshake returns a client's handshake. A header is given as "Name: value".
func handshake(target string, headers ...string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, target, http.NoBody)
	for _, line := range headers {
		name, value, _ := strings.Cut(line, ": ")
		r.Header.Add(name, value)
	}
	return r
}

func TestAHandshakeCarriesTokenAndSession(t *testing.T) {
	token, session := strings.Repeat("x", 8192), strings.Repeat("s", 128)
	for _, tt := range []struct {
		name    string
		target  string
		headers []string
		want    Handshake
	}{
		{"nothing", "/ws", []string{"Sec-WebSocket-Protocol: switchyard.v1"}, Handshake{}},
		{"a browser", "/ws", []string{"Sec-WebSocket-Protocol: switchyard.v1, bearer.eyJ.e30.c2ln, session.5PQ.k3_-"}, Handshake{Token: "eyJ.e30.c2ln", Session: "5PQ.k3_-"}},
		{"a browser, in two header lines", "/ws", []string{"Sec-WebSocket-Protocol: session.s", "Sec-WebSocket-Protocol: switchyard.v1,bearer.t"}, Handshake{Token: "t", Session: "s"}},
		{"a client that sets headers", "/ws", []string{"Authorization: Bearer eyJ.e30.c2ln", "Switchyard-Session: 5PQ.k3"}, Handshake{Token: "eyJ.e30.c2ln", Session: "5PQ.k3"}},
		{"the scheme's case does not count", "/ws", []string{"Authorization: bEARER t"}, Handshake{Token: "t"}},
		{"another scheme is ignored", "/ws", []string{"Authorization: Basic dTpw"}, Handshake{}},
		{"a header and an entry", "/ws", []string{"Authorization: Bearer t", "Sec-WebSocket-Protocol: session.s"}, Handshake{Token: "t", Session: "s"}},
		{"rooms", "/ws?rooms=1", []string{"Sec-WebSocket-Protocol: session.s"}, Handshake{Session: "s", RejoinRooms: true}},
		{"rooms=0", "/ws?rooms=0", nil, Handshake{}},
		{"secrets in the address are ignored", "/ws?session=s&token=t&access_token=t", nil, Handshake{}},
		{"the longest token", "/ws", []string{"Authorization: Bearer " + token}, Handshake{Token: token}},
		{"the longest session", "/ws", []string{"Switchyard-Session: " + session}, Handshake{Session: session}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ReadHandshake(handshake(tt.target, tt.headers...))
			if err != nil || got != tt.want {
				t.Errorf("got %+v, %v; want %+v", got, err, tt.want)
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
		{"a long token", "token must be of 1 to 8192 bytes", []string{"Authorization: Bearer secret" + strings.Repeat("x", 8192-len("secret")+1)}},
		{"two tokens", "token must be given once", []string{"Authorization: Bearer secret", "Sec-WebSocket-Protocol: bearer.secret"}},
		{"two tokens in one line", "token must be given once", []string{"Sec-WebSocket-Protocol: bearer.secret, bearer.secret2"}},
		{"two sessions", "session must be given once", []string{"Sec-WebSocket-Protocol: session.secret", "Switchyard-Session: secret"}},
		{"an empty session", "session must be 1 to 128", []string{"Switchyard-Session: "}},
		{"a long session", "session must be 1 to 128", []string{"Sec-WebSocket-Protocol: session.secret" + strings.Repeat("x", 128-len("secret")+1)}},
		{"a session with a colon", "session must be 1 to 128", []string{"Switchyard-Session: secret:secret"}},
		{"a session of bytes", "session must be 1 to 128", []string{"Switchyard-Session: secret\xff"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ReadHandshake(handshake("/ws", tt.headers...))
			if err == nil || got != (Handshake{}) {
				t.Fatalf("accepted as %+v, %v", got, err)
			}
			if answer := ErrorFor(err); answer.Code != CodeInvalid || !strings.Contains(answer.Message, tt.wantText) || strings.Contains(answer.Message, "secret") {
				t.Errorf("answered with %+v, want %q and no secret", answer, tt.wantText)
			}
		})
	}
}
