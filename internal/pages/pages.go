// Package pages serves the files of the page, of the JavaScript client and of the
// descriptions of the APIs.
package pages

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/http"
	"path"
	"slices"
	"sync"
	"time"

	"switchyard/web"
)

// contentTypes are types that the host's table does not know or has wrong: .ts is a
// video for some.
var contentTypes = map[string]string{
	".yaml": "application/yaml", // RFC 9512
	".ts":   "text/plain; charset=utf-8",
}

const indexName = "index.html"

// bundles are the files that browsers load by name, each with what it imports. The files
// that they import are served, too: the client.js and page.js of the release before ask
// for them.
var bundles = []string{"client.js", "page.js"}

// contents returns the files by name, as they are served. It makes the bundles once in a
// process, which takes some milliseconds.
var contents = sync.OnceValue(func() map[string][]byte {
	entries, err := web.Files.ReadDir(".")
	if err != nil {
		panic(err) // the files are built into the program
	}
	all := map[string][]byte{}
	for _, e := range entries {
		content, err := web.Files.ReadFile(e.Name())
		if err != nil {
			panic(err)
		}
		if slices.Contains(bundles, e.Name()) {
			content = bundled(web.Files, e.Name())
		}
		all[e.Name()] = content
	}
	return all
})

// Handlers returns a handler for each file, by the path that it is served under. open
// says whether the service is open to everybody, which the page then warns of.
func Handlers(open bool) map[string]http.HandlerFunc {
	all := map[string]http.HandlerFunc{}
	for name, content := range contents() {
		if name == indexName {
			all["/"] = file(name, indexPage(content, open))
		} else {
			all["/"+name] = file(name, content)
		}
	}
	return all
}

// file serves one file, with an ETag that changes with it: a browser or a CDN that has
// the file already is answered 304. The page may load from and connect to its own
// server only.
func file(name string, content []byte) http.HandlerFunc {
	sum := sha256.Sum256(content)
	tag := fmt.Sprintf(`"%x"`, sum[:12])
	return func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-cache")
		// A page of another origin may import the client, which needs CORS for a
		// module. ALLOWED_ORIGINS decides whether that page may connect.
		h.Set("Access-Control-Allow-Origin", "*")
		if kind := contentTypes[path.Ext(name)]; kind != "" {
			h.Set("Content-Type", kind)
		}
		h.Set("ETag", tag)
		r.Header.Del("Range") // nobody needs a part of a small file, and ten thousand of them cost much
		http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(content))
	}
}

// indexPage returns index.html, without its warning if the service is not open to
// everybody.
func indexPage(content []byte, open bool) []byte {
	before, rest, found := bytes.Cut(content, []byte("<!--open-->"))
	_, after, closed := bytes.Cut(rest, []byte("<!--/open-->"))
	if !found || !closed {
		panic("the page has lost its warning")
	}
	if open {
		return content
	}
	return slices.Concat(before, after)
}
