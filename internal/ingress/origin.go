package ingress

import (
	"cmp"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// An authority is host[:port] in a form that can be compared: lower case, and IPv6
// addresses in canonical form.
type authority struct {
	host, port string // port is "" if none was given
}

// parseAuthority parses host[:port] of a Host header or an origin. It accepts only
// what browsers write: no user, no path, no escape, and ASCII only (browsers write
// an international name in its xn-- form). A final dot is kept, because browsers
// treat such a name as a different one.
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

// isHost reports whether s is a list of labels separated by dots. One dot may end
// it.
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

// withoutDefaultPort returns the authority without the default port of its scheme.
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

// An origin is the origin of a page (RFC 6454).
type origin struct {
	scheme string
	authority
}

// pageSchemes are the schemes of pages on the web. Some native clients write the
// scheme of the WebSocket instead, which no page can have.
var pageSchemes = map[string]string{"http": "http", "https": "https", "ws": "http", "wss": "https"}

// parseOrigin parses scheme://host[:port]. The pages of an app may have a scheme of
// their own, and then no host or a dot: file:// on Android, app://. in Electron.
func parseOrigin(s string) (o origin, ok bool) {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok || scheme == "" {
		return o, false
	}
	scheme = strings.ToLower(scheme)
	web := pageSchemes[scheme]
	o.scheme = cmp.Or(web, scheme)
	if web == "" && (rest == "" || rest == ".") {
		o.host = rest
		return o, true
	}
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

// anyOrigin in the list stands for every origin but null.
const anyOrigin = "*"

// Origins are the pages that may connect, beside those of the service's own origin.
type Origins struct {
	exact    map[string]bool
	patterns []originPattern
	null     bool
	any      bool // every origin but null
}

// An originPattern matches one label in place of its star, as a certificate does:
// https://*.example.com matches https://a.example.com, but neither
// https://example.com nor https://a.b.example.com. moz-extension://* matches every
// extension in Firefox, whose host is another one in each browser.
type originPattern struct{ prefix, suffix string }

// NewOrigins takes a list that internal/config has validated.
func NewOrigins(list []string) Origins {
	all := Origins{exact: map[string]bool{}}
	for _, item := range list {
		before, after, isPattern := strings.Cut(item, "*")
		// A label stands in for the star while the rest is normalized.
		o, ok := parseOrigin(before + "x" + after)
		switch {
		case item == nullOrigin:
			all.null = true
		case item == anyOrigin:
			all.any = true
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

// Allow reports whether a page may connect. A request without an Origin is allowed:
// it does not come from a browser, and another program could write any Origin. More
// than one Origin, or one that can't be parsed, is refused.
func (o *Origins) Allow(r *http.Request, from *Sender) bool {
	values := r.Header.Values("Origin")
	if len(values) == 0 {
		return true
	}
	if len(values) > 1 {
		return false
	}
	if values[0] == nullOrigin {
		return o.null
	}
	page, ok := parseOrigin(values[0])
	return ok && (sameOrigin(page, from) || o.listed(page))
}

// sameOrigin reports whether a page has one of the service's own origins.
func sameOrigin(page origin, from *Sender) bool {
	return slices.Contains(from.origins(), page)
}

// origins returns the service's own origins, as far as the request says: those of the
// requested host, with the scheme that a trusted proxy named. Without such a proxy,
// TLS may have ended on the way, so both schemes of the host are its own. A host
// without a port may have the scheme's default port, or one of the sender's ports.
func (s *Sender) origins() (all []origin) {
	host, ok := parseAuthority(s.Host)
	if !ok {
		return nil
	}
	for _, scheme := range []string{"http", "https"} {
		if s.proto != "" && s.proto != scheme {
			continue
		}
		all = append(all, origin{scheme, host.withoutDefaultPort(scheme)})
		for _, port := range s.ports {
			if other, ok := parseAuthority(host.host + ":" + port); ok && host.port == "" {
				all = append(all, origin{scheme, other.withoutDefaultPort(scheme)})
			}
		}
	}
	return all
}

// Compared says which origins were compared to refuse a page: the service's own and
// the page's. It is printable ASCII, and bounded.
func Compared(r *http.Request, from *Sender) string {
	own := make([]string, 0, 4)
	for _, o := range from.origins() {
		if text := shown(o.String()); !slices.Contains(own, text) {
			own = append(own, text)
		}
	}
	if len(own) == 0 { // an unknown scheme, or a host that is none
		own = []string{strings.TrimPrefix(from.proto+"://", "://") + shown(from.Host)}
	}
	page := strings.Join(r.Header.Values("Origin"), ", ")
	if o, ok := parseOrigin(page); ok {
		page = o.String()
	}
	return "this service is at " + strings.Join(own, " or ") + ", the page at " + shown(page)
}

// maxShown bounds an origin or a host in an error, in bytes.
const maxShown = 100

// shown returns what a request says in a form for errors: in quotes if it has other
// than printable ASCII characters.
func shown(s string) string {
	rest := ""
	if len(s) > maxShown {
		s, rest = s[:maxShown], "..."
	}
	if quoted := strconv.QuoteToASCII(s); s == "" || len(quoted) > len(s)+2 {
		s = quoted
	}
	return s + rest
}

func (o *Origins) listed(page origin) bool {
	text := page.String()
	if o.any || o.exact[text] {
		return true
	}
	for _, p := range o.patterns {
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
