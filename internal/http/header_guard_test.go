package http

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"nhooyr.io/websocket"
)

// A header of very many short lines takes far more memory than it has bytes: the connection
// ends. The lines of bodies do not count, and each request of a connection may have as many.
func TestHeadersOfVeryManyLinesAreRefused(t *testing.T) {
	n := startNode(t, nil)
	const most = 256                   // docs/limits.md
	header := func(lines int) string { // with the request line and Host
		return "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n" + strings.Repeat("a:\r\n", lines-2) + "\r\n"
	}
	c, r := n.openRequest("")
	for i := range 3 {
		_, _ = fmt.Fprint(c, header(most))
		if res, err := http.ReadResponse(r, nil); err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("request %d: %v %v", i, res, err)
		}
		if _, err := r.Discard(r.Buffered()); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = fmt.Fprint(c, header(most+1))
	if res, err := http.ReadResponse(r, nil); err != nil || res.StatusCode != http.StatusRequestHeaderFieldsTooLarge || !res.Close {
		t.Errorf("one line too many: %v %v", res, err)
	}
	if got := n.metric("http_connections_refused_total"); got != "1" {
		t.Errorf("%q are counted", got)
	}
	body := `{"data":[` + strings.Repeat("1,\n", 1000) + `1]}`
	if res, text := n.call("POST", "/v1/rooms/a/messages", testKey, body); res.StatusCode != http.StatusCreated {
		t.Errorf("a body of a thousand lines: %d %s", res.StatusCode, text)
	}
}

// A query of thousands of names costs milliseconds to read.
func TestAQueryHasFewNames(t *testing.T) {
	n := startNode(t, nil)
	query := func(names int) string { return "?a=1" + strings.Repeat("&b", names-1) }
	for names, want := range map[int]int{32: http.StatusSwitchingProtocols, 33: http.StatusBadRequest} { // docs/limits.md
		ws, res, err := websocket.Dial(t.Context(), "ws://"+n.addr+"/ws"+query(names), nil)
		if err == nil {
			_ = ws.CloseNow()
		}
		if res == nil || res.StatusCode != want {
			t.Errorf("a handshake with %d names: %v %v, want %d", names, res, err, want)
		}
	}
	for names, want := range map[int]int{32: http.StatusOK, 33: http.StatusBadRequest} {
		if res, body := n.call("GET", "/v1/rooms/a/messages"+query(names), testKey, ""); res.StatusCode != want {
			t.Errorf("a call with %d names: %d %s, want %d", names, res.StatusCode, body, want)
		}
	}
}
