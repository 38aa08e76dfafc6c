package http

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/http"
	"path"
	"slices"
	"time"

	"switchyard/web"
)

// pages are the files of the page.
type pages struct{ index []byte }

// pageFiles returns the names of the page's files, without the page itself.
func pageFiles() []string {
	entries, err := web.Files.ReadDir(".")
	if err != nil {
		panic(err) // the files are built into the program
	}
	var names []string
	for _, e := range entries {
		if e.Name() != pageName {
			names = append(names, e.Name())
		}
	}
	return names
}

// contentTypes are types that the host's table does not know or has wrong: .ts is a
// video for some.
var contentTypes = map[string]string{
	".yaml": "application/yaml", // RFC 9512
	".ts":   "text/plain; charset=utf-8",
}

// file serves one of the page's files. The page may load from and connect to its
// own server only.
func (p pages) file(name string) http.HandlerFunc {
	content, tag := p.content(name)
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
		http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(content))
	}
}

// content returns a file and an ETag that changes with it. A browser or a CDN that
// has the file already is answered 304.
func (p pages) content(name string) (content []byte, tag string) {
	content = p.index
	if name != pageName {
		var err error
		if content, err = web.Files.ReadFile(name); err != nil {
			panic(err) // the files are built into the program
		}
	}
	sum := sha256.Sum256(content)
	return content, fmt.Sprintf(`"%x"`, sum[:12])
}

const pageName = "index.html"

// indexPage returns index.html. It has a warning if the service is open to everybody.
func indexPage(open bool) []byte {
	b, err := web.Files.ReadFile(pageName)
	if err != nil {
		panic(err) // the files are built into the program
	}
	before, rest, found := bytes.Cut(b, []byte("<!--open-->"))
	_, after, closed := bytes.Cut(rest, []byte("<!--/open-->"))
	if !found || !closed {
		panic("the page has lost its warning")
	}
	if open {
		return b
	}
	return slices.Concat(before, after)
}
