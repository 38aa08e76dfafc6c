package ingress

import (
	"net/http/httptest"
	"testing"
)

func TestAllowedHosts(t *testing.T) {
	hosts := NewHosts([]string{"Chat.example", "*.rooms.example", "192.0.2.7", "2001:db8::7"})
	for _, tt := range []struct {
		name, host string
		want       bool
	}{
		{"listed", "chat.example", accepted},
		{"in capitals", "CHAT.EXAMPLE", accepted},
		{"with any port", "chat.example:8443", accepted},
		{"an address", "192.0.2.7", accepted},
		{"an IPv6 address", "[2001:db8:0::7]:8000", accepted},
		{"a pattern", "a.rooms.example", accepted},
		{"a pattern's bare name", "rooms.example", refused},
		{"a pattern, two labels", "a.b.rooms.example", refused},
		{"an attacker's name that resolves to us", "evil.example", refused},
		{"the service's own address, not listed", "127.0.0.1", refused},
		{"localhost, not listed", "localhost:8000", refused},
		{"a listed name with a suffix", "chat.example.evil.example", refused},
		{"a listed name with a prefix", "evilchat.example", refused},
		{"a dot at the end", "chat.example.", refused},
		{"a user", "chat.example@evil.example", refused},
		{"a user before a listed name", "evil@chat.example", refused},
		{"no port after the colon", "chat.example:", refused},
		{"an invalid port", "chat.example:evil", refused},
		{"two colons", "chat.example:80:80", refused},
		{"nothing", "", refused},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := hosts.Allow(tt.host); got != tt.want {
				t.Errorf("%q is allowed: %v, want %v", tt.host, got, tt.want)
			}
		})
	}
	if none := NewHosts(nil); !none.Allow("evil.example") || !none.Allow("") {
		t.Error("a host is refused, though no list is given")
	}
}

// Only what comes from inside, past no proxy, is internal.
func TestWhatIsInternal(t *testing.T) {
	for _, tt := range []struct {
		name, peer, header string
		want               bool
	}{
		{"loopback", "127.0.0.1:1", "", true},
		{"a private network", "10.0.0.7:1", "", true},
		{"a VPN", "100.64.0.7:1", "", true},
		{"a public address", "198.51.100.1:1", "", false},
		{"a public IPv6 address", "[2001:db8::1]:1", "", false},
		{"a proxy", "10.0.0.7:1", "X-Forwarded-For", false},
		{"another proxy", "10.0.0.7:1", "Forwarded", false},
		{"one more", "10.0.0.7:1", "X-Real-Ip", false},
		{"any proxy", "10.0.0.7:1", "Via", false},
		{"a proxy that names the host only", "10.0.0.7:1", "X-Forwarded-Host", false},
		{"a proxy with a header of its own of the kind", "10.0.0.7:1", "X-Forwarded-Ssl", false},
		{"a CDN", "10.0.0.7:1", "Cf-Ray", false},
		{"a CDN that names the client", "10.0.0.7:1", "Fastly-Client-Ip", false},
		{"a CDN of a CDN", "10.0.0.7:1", "Cdn-Loop", false},
		{"a balancer", "10.0.0.7:1", "X-Amzn-Trace-Id", false},
		{"a mesh", "10.0.0.7:1", "X-Envoy-External-Address", false},
		{"Prometheus", "10.0.0.7:1", "X-Prometheus-Scrape-Timeout-Seconds", true},
	} {
		r := httptest.NewRequest("GET", "/metrics", nil)
		r.RemoteAddr = tt.peer
		if tt.header != "" {
			r.Header[tt.header] = []string{""}
		}
		from := Proxies(nil).Sender(r)
		if got := IsInternal(r, &from); got != tt.want {
			t.Errorf("%s is internal: %v, want %v", tt.name, got, tt.want)
		}
	}
}
