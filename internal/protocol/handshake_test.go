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

func TestAHandshakeBringsTokenAndSession(t *testing.T) {
	long := strings.Repeat("x", MaxToken)
	for _, tt := range []struct {
		name    string
		target  string
		headers []string
		want    Offer
	}{
		{"nothing", "/ws", []string{"Sec-WebSocket-Protocol: switchyard.v1"}, Offer{}},
		{"a browser", "/ws", []string{"Sec-WebSocket-Protocol: switchyard.v1, bearer.eyJ.e30.c2ln, session.5PQ.k3_-"}, Offer{Token: "eyJ.e30.c2ln", Session: "5PQ.k3_-"}},
		{"a browser, in lines", "/ws", []string{"Sec-WebSocket-Protocol: session.s", "Sec-WebSocket-Protocol: switchyard.v1,bearer.t"}, Offer{Token: "t", Session: "s"}},
		{"a program", "/ws", []string{"Authorization: Bearer eyJ.e30.c2ln", "Switchyard-Session: 5PQ.k3"}, Offer{Token: "eyJ.e30.c2ln", Session: "5PQ.k3"}},
		{"the scheme's case does not count", "/ws", []string{"Authorization: bEARER t"}, Offer{Token: "t"}},
		{"another scheme is not for us", "/ws", []string{"Authorization: Basic dTpw"}, Offer{}},
		{"one of each kind", "/ws", []string{"Authorization: Bearer t", "Sec-WebSocket-Protocol: session.s"}, Offer{Token: "t", Session: "s"}},
		{"rooms", "/ws?rooms=1", []string{"Sec-WebSocket-Protocol: session.s"}, Offer{Session: "s", Rooms: true}},
		{"rooms, of another mind", "/ws?rooms=0", nil, Offer{}},
		{"secrets in the address are not read", "/ws?session=s&token=t&access_token=t", nil, Offer{}},
		{"the longest token", "/ws", []string{"Authorization: Bearer " + long}, Offer{Token: long}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ReadOffer(handshake(tt.target, tt.headers...))
			if err != nil || got != tt.want {
				t.Errorf("%+v, %v; want %+v", got, err, tt.want)
			}
		})
	}
}

func TestABadHandshakeIsToldWhatIsWrong(t *testing.T) {
	for _, tt := range []struct {
		name, says string
		headers    []string
	}{
		{"an empty token", "token must be of 1 to 8192 bytes", []string{"Authorization: Bearer "}},
		{"an empty entry", "token must be of 1 to 8192 bytes", []string{"Sec-WebSocket-Protocol: bearer."}},
		{"a long token", "token must be of 1 to 8192 bytes", []string{"Authorization: Bearer " + strings.Repeat("hush", MaxToken)}},
		{"two tokens", "token must be given once", []string{"Authorization: Bearer hush", "Sec-WebSocket-Protocol: bearer.hush"}},
		{"two tokens in one line", "token must be given once", []string{"Sec-WebSocket-Protocol: bearer.hush, bearer.hush2"}},
		{"two sessions", "session must be given once", []string{"Sec-WebSocket-Protocol: session.hush", "Switchyard-Session: hush"}},
		{"an empty session", "session must be 1 to 128", []string{"Switchyard-Session: "}},
		{"a long session", "session must be 1 to 128", []string{"Sec-WebSocket-Protocol: session." + strings.Repeat("hush", 33)}},
		{"a session with a colon", "session must be 1 to 128", []string{"Switchyard-Session: hush:hush"}},
		{"a session of bytes", "session must be 1 to 128", []string{"Switchyard-Session: hush\xff"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ReadOffer(handshake("/ws", tt.headers...))
			if err == nil || got != (Offer{}) {
				t.Fatalf("taken as %+v", got)
			}
			if told := ErrorFor(err); told.Code != CodeInvalid || !strings.Contains(told.Message, tt.says) || strings.Contains(told.Message, "hush") {
				t.Errorf("told %+v", told)
			}
		})
	}
}
