// Package web embeds the files for browsers: the client with its types, the page,
// and the descriptions of the two APIs. There is no build step: internal/pages
// serves client.js and page.js in one file with what they import, and the others
// as they are.
package web

import "embed"

// Files has every file that is served from the root under its own name
// (/client.js, /client.d.ts, /page.js, /page.css, ...); index.html is served
// as /. The scripts import each other by these names, so all of them must be
// served. They work under a Content-Security-Policy that allows only script-src,
// style-src, connect-src and img-src 'self'.
//
//go:embed *.html *.js *.css *.svg *.d.ts *.yaml
var Files embed.FS
