package http

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
)

// FuzzRequests passes any request to the public routes. The service never fails,
// and a refusal is a problem document.
func FuzzRequests(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /v1/rooms?prefix=a&after=b&limit=2 HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /v1/rooms/a%2Fb/messages?after=1&limit=200 HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST /v1/rooms/a/messages HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n{\"data\":1,\"id\":\"id\"}",
		"POST /v1/messages HTTP/1.1\r\nHost: a\r\nContent-Length: 23\r\n\r\n[{\"room\":\"a\",\"data\":1}]",
		"POST /v1/rooms/a/signals HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{\"d\r\n0\r\n\r\n",
		"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\nOrigin: ://\r\n\r\n",
		"HEAD /client.js HTTP/1.1\r\nHost: a\r\nRange: bytes=5-2\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	n := startNode(f, nil)
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil {
			return // net/http answers it
		}
		r.Header.Set("Authorization", "Bearer "+testKey)
		w := httptest.NewRecorder()
		n.Handler().ServeHTTP(w, r)
		switch {
		case w.Code == http.StatusSwitchingProtocols: // a recorder can't be hijacked
		case w.Code >= http.StatusInternalServerError:
			t.Errorf("%q: %d %s", raw, w.Code, w.Body)
		case w.Code == http.StatusRequestedRangeNotSatisfiable, w.Code == http.StatusPreconditionFailed: // by net/http, for files
		case w.Code >= http.StatusBadRequest:
			if err := checkProblem(w); err != nil {
				t.Errorf("%q: %v", raw, err)
			}
		}
	})
}

func checkProblem(w *httptest.ResponseRecorder) error {
	var p problem
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
		return fmt.Errorf("%q: %w", w.Body, err)
	}
	if p.Status != w.Code || p.RequestID == "" || w.Header().Get("Content-Type") != "application/problem+json" {
		return fmt.Errorf("%d: %+v %v", w.Code, p, w.Header())
	}
	return nil
}
