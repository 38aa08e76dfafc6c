package monitoring

import (
	"strings"
	"testing"

	"nhooyr.io/websocket"

	"switchyard/internal/testkit"
)

// exerciseServer gives a server something to count: a client joins, publishes, makes a
// mistake and closes, and a page and an API route are requested.
func exerciseServer(t *testing.T, s *testkit.Server) {
	t.Helper()
	ctx := testkit.Within(t, testkit.Timeout)
	ws, _, err := websocket.Dial(ctx, s.SocketURL(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	await := func(kind string) {
		for {
			_, frame, err := ws.Read(ctx)
			if err != nil {
				t.Fatalf("no %s came: %v", kind, err)
			}
			if strings.Contains(string(frame), `"type":"`+kind+`"`) {
				return
			}
		}
	}
	for _, step := range [][2]string{
		{`{"type":"join","room":"lobby","after":0}`, "joined"},
		{`{"type":"publish","room":"lobby","data":1}`, "ack"},
		{`{"type":"join","room":"no such name"}`, "error"},
	} {
		if err := ws.Write(ctx, websocket.MessageText, []byte(step[0])); err != nil {
			t.Fatal(err)
		}
		await(step[1])
	}
	if err := ws.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/v1/rooms", "/nothing"} {
		testkit.Get(t, s.URL()+path)
	}
}
