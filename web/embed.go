// Package web holds what browsers are given: the client with its types, and
// the page. Nothing is built: the files are served as they lie here.
package web

import "embed"

// Files has every file that is served from the root under its own name
// (/client.js, /client.d.ts, /page.js, /page.css, ...); index.html is served
// as /. The scripts import each other by these names, so all of them must be
// served. They need no more of a Content-Security-Policy than script-src,
// style-src, connect-src and img-src 'self'.
//
//go:embed *.html *.js *.css *.svg *.d.ts *.yaml
var Files embed.FS
