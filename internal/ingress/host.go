package ingress

import (
	"net/http"
	"net/netip"
	"strings"
)

// Hosts are the names of the service, without ports. If there are none, any name is
// accepted. Against DNS rebinding: if a page makes its own name resolve to this
// service, the browser sees one origin, and so does the check of Origin. Only the
// Host header shows the wrong name.
type Hosts struct {
	exact    map[string]bool
	suffixes []string // of patterns: .example.com
}

// NewHosts takes a list that internal/config has validated.
func NewHosts(list []string) Hosts {
	h := Hosts{exact: map[string]bool{}}
	for _, item := range list {
		item = strings.ToLower(item)
		if suffix, ok := strings.CutPrefix(item, "*"); ok {
			h.suffixes = append(h.suffixes, suffix)
		} else if addr, err := netip.ParseAddr(item); err == nil && addr.Is6() {
			h.exact["["+addr.String()+"]"] = true
		} else {
			h.exact[item] = true
		}
	}
	return h
}

// Allow reports whether a host, host[:port], is one of the service.
func (h *Hosts) Allow(host string) bool {
	return len(h.exact) == 0 && len(h.suffixes) == 0 || h.List(host)
}

// List reports whether a host, host[:port], is in the list.
func (h *Hosts) List(host string) bool {
	a, ok := parseAuthority(host)
	if !ok {
		return false
	}
	for _, suffix := range h.suffixes {
		if label, ok := strings.CutSuffix(a.host, suffix); ok && isLabel(label) {
			return true
		}
	}
	return h.exact[a.host]
}

// ShownHost returns the requested host in a form for errors.
func (s *Sender) ShownHost() string { return shown(s.Host) }

// IsAddressOrSingleLabel reports whether a host is an address, or a name without a
// dot as containers and localhost have. An attacker can't own such a name, and
// rebinding needs one.
func IsAddressOrSingleLabel(host string) bool {
	a, ok := parseAuthority(host)
	if !ok {
		return false
	}
	_, err := netip.ParseAddr(strings.Trim(a.host, "[]"))
	return err == nil || isLabel(a.host)
}

// FromForeignPage reports whether a request was made by a page in a browser, other
// than one that the user opened. It protects a listener on loopback, which a page of
// anybody can reach, under a name of its own or without reading the answer.
func FromForeignPage(r *http.Request, from *Sender) bool {
	var none Origins
	site := r.Header.Get("Sec-Fetch-Site")
	return !none.Allow(r, from) || site != "" && site != "none" && site != "same-origin"
}

// IsInternal reports whether a request comes from inside: it has no header of a
// proxy, and its sender has no public address.
func IsInternal(r *http.Request, from *Sender) bool {
	for name := range r.Header { // even an empty one: a proxy may append to it
		if isProxyHeader(name) {
			return false
		}
	}
	return !isPublic(from.Addr) || sharedAddressSpace.Contains(from.Addr)
}

// isProxyHeader reports whether a header, in its canonical form, is written by proxies,
// balancers or CDNs, and not by the programs that read metrics.
func isProxyHeader(name string) bool {
	for _, prefix := range proxyHeaderPrefixes {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return proxyHeaders[name] || strings.HasSuffix(name, "-Client-Ip") || strings.HasSuffix(name, "-Connecting-Ip")
}

// The headers that nginx, HAProxy, Traefik, Caddy, Envoy, Apache and the balancers and
// CDNs of Amazon, Google, Microsoft, Cloudflare, Fastly, Fly and Akamai add to what they
// pass on, as their manuals name them.
var (
	proxyHeaders = map[string]bool{
		"Via": true, "Forwarded": true, "X-Real-Ip": true, "X-Client-Ip": true, "Client-Ip": true, "True-Client-Ip": true,
		"X-Proxyuser-Ip": true, "Cdn-Loop": true, "X-Varnish": true, "X-Cloud-Trace-Context": true, "X-Request-Start": true,
	}
	proxyHeaderPrefixes = []string{"X-Forwarded", "X-Original-", "X-Envoy-", "X-Amzn-", "X-Amz-Cf-", "X-Azure-", "X-Akamai-", "Cf-", "Fastly-", "Fly-"}
)

// sharedAddressSpace is RFC 6598. It is not routed on the Internet, and some VPNs
// assign it to internal machines.
var sharedAddressSpace = netip.MustParsePrefix("100.64.0.0/10")
