package http

import (
	"net/http"
	"net/netip"
	"strconv"
	"strings"
)

// An authority is host[:port] as it is compared: in lower case, an IPv6
// address in its one short form.
type authority struct {
	host, port string // port is "" where none was given
}

// parseAuthority reads host[:port] of a Host header or an origin. It takes what
// browsers write and nothing else: no user, no path, no escape, no byte outside
// ASCII (browsers write an international name in its xn-- form). A dot at the
// end stays: browsers hold such a name for another one, and so do we.
func parseAuthority(s string) (a authority, ok bool) {
	var host, port string
	var hasPort bool
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return a, false
		}
		addr, err := netip.ParseAddr(s[1:end])
		if err != nil || !addr.Is6() {
			return a, false
		}
		host, port = "["+addr.String()+"]", s[end+1:]
		if port != "" {
			port, hasPort = strings.CutPrefix(port, ":")
			if !hasPort {
				return a, false
			}
		}
	} else {
		host, port, hasPort = strings.Cut(s, ":")
		if host = strings.ToLower(host); !isHost(host) {
			return a, false
		}
	}
	if hasPort {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return a, false
		}
	}
	return authority{host, port}, true
}

// isHost says whether s is labels with dots between them, one dot may end it.
func isHost(s string) bool {
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		if !isLabel(label) {
			return false
		}
	}
	return true
}

func isLabel(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return s != ""
}

// withoutDefaultPort returns the authority without the port that its scheme has anyway.
func (a authority) withoutDefaultPort(scheme string) authority {
	if scheme == "http" && a.port == "80" || scheme == "https" && a.port == "443" {
		a.port = ""
	}
	return a
}

func (a authority) String() string {
	if a.port == "" {
		return a.host
	}
	return a.host + ":" + a.port
}

// An origin is where a page came from (RFC 6454).
type origin struct {
	scheme string
	authority
}

func parseOrigin(s string) (o origin, ok bool) {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return o, false
	}
	o.scheme = strings.ToLower(scheme)
	if o.authority, ok = parseAuthority(rest); !ok {
		return o, false
	}
	o.authority = o.withoutDefaultPort(o.scheme)
	return o, true
}

func (o origin) String() string { return o.scheme + "://" + o.authority.String() }

// nullOrigin is what browsers send for a page that has no origin: a sandboxed
// frame, a file, some redirects. Anybody can make such a page.
const nullOrigin = "null"

// origins are the pages that may connect beside the service's own.
type origins struct {
	exact    map[string]bool
	patterns []originPattern
	null     bool
}

// An originPattern matches one label where it has its star, as a certificate
// does: https://*.example.com is https://a.example.com, and neither
// https://example.com nor https://a.b.example.com.
type originPattern struct{ prefix, suffix string }

// newOrigins takes what internal/config has checked.
func newOrigins(list []string) origins {
	all := origins{exact: map[string]bool{}}
	for _, item := range list {
		before, after, isPattern := strings.Cut(item, "*")
		// The star stands for a label while the rest is put into the form that
		// is compared.
		o, ok := parseOrigin(before + "x" + after)
		switch {
		case item == nullOrigin:
			all.null = true
		case ok && isPattern:
			all.patterns = append(all.patterns, originPattern{o.scheme + "://", strings.TrimPrefix(o.authority.String(), "x")})
		default:
			if o, ok = parseOrigin(item); ok {
				all.exact[o.String()] = true
			}
		}
	}
	return all
}

// allow says whether a page may connect. Requests without an Origin come from
// no browser: a browser can't leave it out, and a program could write what it
// likes. There must be one that can be read, and no more than one.
func (all *origins) allow(r *http.Request) bool {
	values := r.Header.Values("Origin")
	if len(values) == 0 {
		return true
	}
	if len(values) > 1 {
		return false
	}
	if values[0] == nullOrigin {
		return all.null
	}
	o, ok := parseOrigin(values[0])
	return ok && (sameOrigin(o, callerOf(r)) || all.listed(o))
}

// sameOrigin compares with the host that the client asked for, and with the
// scheme where a trusted proxy has told it. Without one TLSConfig may end before us
// unheard, so both schemes of the host are its own.
func sameOrigin(o origin, c *caller) bool {
	if o.scheme != "http" && o.scheme != "https" || c.proto != "" && c.proto != o.scheme {
		return false
	}
	host, ok := parseAuthority(c.host)
	return ok && host.withoutDefaultPort(o.scheme) == o.authority
}

func (all *origins) listed(o origin) bool {
	text := o.String()
	if all.exact[text] {
		return true
	}
	for _, p := range all.patterns {
		rest, ok := strings.CutPrefix(text, p.prefix)
		if !ok {
			continue
		}
		if label, ok := strings.CutSuffix(rest, p.suffix); ok && isLabel(label) {
			return true
		}
	}
	return false
}
