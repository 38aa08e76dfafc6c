package pages

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A browser or a CDN that has a file asks whether it has changed.
func TestFilesAreRevalidatedByETag(t *testing.T) {
	all := Handlers(false)
	for _, path := range []string{"/", "/client.js", "/asyncapi.yaml"} {
		get := func(tag string) *httptest.ResponseRecorder {
			r, w := httptest.NewRequest(http.MethodGet, path, nil), httptest.NewRecorder()
			r.Header.Set("If-None-Match", tag)
			all[path](w, r)
			return w
		}
		first := get(`"another"`)
		if tag := first.Header().Get("ETag"); first.Code != http.StatusOK || tag == "" || get(tag).Code != http.StatusNotModified {
			t.Errorf("%s: %d with tag %q, and with that tag %d; want 200 and 304", path, first.Code, tag, get(tag).Code)
		}
		if first.Header().Get("Cache-Control") != "no-cache" {
			t.Errorf("%s may be used without revalidation", path)
		}
	}
}

// Ranges of a small file are of no use, and each costs a part of the answer.
func TestRangesAreIgnored(t *testing.T) {
	r, w := httptest.NewRequest(http.MethodGet, "/openapi.yaml", nil), httptest.NewRecorder()
	r.Header.Set("Range", "bytes=0-0"+strings.Repeat(",0-0", 1000))
	Handlers(false)["/openapi.yaml"](w, r)
	if w.Code != http.StatusOK || w.Header().Get("Content-Range") != "" || w.Body.Len() > 200_000 {
		t.Errorf("%d with %d bytes, want the whole file", w.Code, w.Body.Len())
	}
}
