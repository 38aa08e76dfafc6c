package ingress

import (
	"net/http/httptest"
	"testing"
)

func TestTheClientAddressBehindProxies(t *testing.T) {
	trusted := Proxies(prefixes("10.0.0.0/8", "192.0.2.1/32", "fd00::/8"))
	for _, tt := range []struct {
		name, peer string
		lines      []string
		want       string
	}{
		{"no proxy", "203.0.113.7:5555", nil, "203.0.113.7"},
		{"a header of an untrusted peer", "203.0.113.7:5555", []string{"198.51.100.1"}, "203.0.113.7"},
		{"a header of a trusted proxy", "10.0.0.2:80", []string{"198.51.100.1"}, "198.51.100.1"},
		{"a trusted proxy without the header", "10.0.0.2:80", nil, "10.0.0.2"},
		{"an empty line", "10.0.0.2:80", []string{""}, "10.0.0.2"},
		{"an entry that the client invented", "10.0.0.2:80", []string{"127.0.0.1, 198.51.100.1"}, "198.51.100.1"},
		{"two proxies", "10.0.0.2:80", []string{"1.1.1.1, 198.51.100.1, 192.0.2.1"}, "198.51.100.1"},
		{"two proxies, two lines", "10.0.0.2:80", []string{"1.1.1.1, 198.51.100.1", "192.0.2.1"}, "198.51.100.1"},
		{"the client's own line first", "10.0.0.2:80", []string{"10.9.9.9", "198.51.100.1"}, "198.51.100.1"},
		{"only proxies", "10.0.0.2:80", []string{"10.0.0.4, 10.0.0.3"}, "10.0.0.4"},
		{"an invalid entry between", "10.0.0.2:80", []string{"198.51.100.1, unknown, 10.0.0.3"}, "10.0.0.3"},
		{"only an invalid entry", "10.0.0.2:80", []string{"<script>"}, "10.0.0.2"},
		{"a name", "10.0.0.2:80", []string{"evil.example"}, "10.0.0.2"},
		{"an empty entry", "10.0.0.2:80", []string{"198.51.100.1, "}, "10.0.0.2"},
		{"with a port", "10.0.0.2:80", []string{"198.51.100.1:4711"}, "198.51.100.1"},
		{"IPv6", "[fd00::2]:80", []string{"2001:db8::7"}, "2001:db8::7"},
		{"IPv6 with a port", "[fd00::2]:80", []string{"[2001:db8::7]:4711"}, "2001:db8::7"},
		{"IPv6 in brackets", "[fd00::2]:80", []string{"[2001:db8::7]"}, "2001:db8::7"},
		{"IPv6 with a zone", "[fd00::2]:80", []string{"fe80::1%eth0"}, "fe80::1"},
		{"an IPv4-mapped IPv6 address", "[::ffff:10.0.0.2]:80", []string{"::ffff:198.51.100.1"}, "198.51.100.1"},
		{"an address next to the proxies' network", "11.0.0.2:80", []string{"198.51.100.1"}, "11.0.0.2"},
		{"leading zeros, which some read as octal", "10.0.0.2:80", []string{"010.0.0.1"}, "10.0.0.2"},
		{"an address as one number", "10.0.0.2:80", []string{"3325256705"}, "10.0.0.2"},
		{"spaces and tabs", "10.0.0.2:80", []string{" \t198.51.100.1\t , 10.0.0.9 "}, "198.51.100.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/ws", nil)
			r.RemoteAddr = tt.peer
			r.Header["X-Forwarded-For"] = tt.lines
			r.Header["X-Real-Ip"] = []string{"9.9.9.9"}
			if len(tt.lines) > 0 {
				r.Header["Forwarded"] = []string{"for=9.9.9.9"}
			}
			if got := trusted.Sender(r).Addr.String(); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
			if got := Proxies(nil).Sender(r).Addr; got != parseAddr(tt.peer) {
				t.Errorf("with no proxy trusted: %s, want %s", got, tt.peer)
			}
		})
	}
}

// A proxy that writes Forwarded (RFC 7239) and no X-Forwarded header names the client,
// too. Where the proxy writes any of those, a Forwarded is the client's invention.
func TestTheClientAddressInForwarded(t *testing.T) {
	for _, tt := range []struct {
		name  string
		lines []string
		other string // an X-Forwarded header of the proxy, beside X-Forwarded-For
		want  string
	}{
		{"an address", []string{"for=198.51.100.1"}, "", "198.51.100.1"},
		{"with a port", []string{`for="198.51.100.1:4711";proto=https`}, "", "198.51.100.1"},
		{"IPv6", []string{`proto=https; For="[2001:db8::7]"`}, "", "2001:db8::7"},
		{"IPv6 with a port", []string{`for="[2001:db8::7]:4711"`}, "", "2001:db8::7"},
		{"an entry that the client invented", []string{"for=127.0.0.1, for=198.51.100.1"}, "", "198.51.100.1"},
		{"two proxies, two lines", []string{"for=1.1.1.1, for=198.51.100.1", `for="10.0.0.3"`}, "", "198.51.100.1"},
		{"a hidden name", []string{"for=198.51.100.1, for=_hidden"}, "", "10.0.0.2"},
		{"unknown", []string{"for=unknown;proto=https"}, "", "10.0.0.2"},
		{"no address", []string{"proto=https"}, "", "10.0.0.2"},
		{"empty pairs and elements", []string{" , ;for=198.51.100.1;; ,"}, "", "198.51.100.1"},
		{"nothing", []string{""}, "", "10.0.0.2"},
		{"no value", []string{"for"}, "", "10.0.0.2"},
		{"no name", []string{"=198.51.100.1"}, "", "10.0.0.2"},
		{"text behind a value", []string{"for=198.51.100.1 x"}, "", "10.0.0.2"},
		{"a quote that ends in a backslash", []string{`for="198.51.100.1\`}, "", "10.0.0.2"},
		{"beside a scheme of the proxy", []string{"for=9.9.9.9"}, "X-Forwarded-Proto", "10.0.0.2"},
		{"beside a host of the proxy", []string{"for=9.9.9.9"}, "X-Forwarded-Host", "10.0.0.2"},
		{"beside a port of the proxy", []string{"for=9.9.9.9"}, "X-Forwarded-Port", "10.0.0.2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/ws", nil)
			r.RemoteAddr = "10.0.0.2:80"
			r.Header["Forwarded"] = tt.lines
			if tt.other != "" {
				r.Header.Set(tt.other, "443")
			}
			if got := Proxies(prefixes("10.0.0.0/8")).Sender(r).Addr.String(); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
			if got := Proxies(nil).Sender(r).Addr.String(); got != "10.0.0.2" {
				t.Errorf("with no proxy trusted: %s", got)
			}
		})
	}
}

// Whatever the headers of a trusted proxy contain, they are read to their end, and no
// page of another host becomes one of our own.
func FuzzForwarding(f *testing.F) {
	for _, s := range []string{
		"https, http", `for="[2001:db8::7]:4711";host=chat.example;proto=https, for=_x`, `;,;=",\"`, "for=a;for=b,,", ", , ,", "8443",
	} {
		f.Add(s, s, s, s)
	}
	f.Fuzz(func(t *testing.T, forwarded, client, proto, port string) {
		r := httptest.NewRequest("GET", "/ws", nil)
		r.RemoteAddr, r.Host = "10.0.0.2:80", "chat.example"
		for name, value := range map[string]string{"Forwarded": forwarded, "X-Forwarded-For": client, "X-Forwarded-Proto": proto, "X-Forwarded-Port": port} {
			if value != "" {
				r.Header.Set(name, value)
			}
		}
		from := Proxies(prefixes("10.0.0.0/8")).Sender(r)
		if !from.Addr.IsValid() {
			t.Error("the address is invalid")
		}
		for _, o := range from.origins() {
			if forwarded == "" && o.host != "chat.example" || o.scheme != "http" && o.scheme != "https" {
				t.Errorf("an own origin is %s", o)
			}
		}
	})
}

func TestConnectionsAreCountedByAddressPrefix(t *testing.T) {
	for addr, want := range map[string]string{
		"198.51.100.1":             "198.51.100.1/32",
		"::ffff:198.51.100.1":      "198.51.100.1/32",
		"2001:db8:1:2:3:4:5:6":     "2001:db8:1:2::/64",
		"2001:db8:1:2:ffff::":      "2001:db8:1:2::/64",
		"2001:db8:1:3::":           "2001:db8:1:3::/64",
		"[2001:db8:1:2::1]:1":      "2001:db8:1:2::/64",
		"fe80::1%a-very-long-zone": "fe80::/64",
		"nonsense":                 "invalid Prefix",
	} {
		if got := network(parseAddr(addr)).String(); got != want {
			t.Errorf("%s is counted by %s, want %s", addr, got, want)
		}
	}
	for peer, want := range map[string]bool{
		"198.51.100.1:1": true, "127.0.0.1:1": false, "10.1.2.3:1": false, "172.31.0.9:1": false, "192.168.0.1:1": false,
		"169.254.1.1:1": false, "[::1]:1": false, "[fd00::1]:1": false, "[fe80::1]:1": false, "[2001:db8::1]:1": true, "@": false,
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = peer
		if got := Proxies(nil).Sender(r).Network.IsValid(); got != want {
			t.Errorf("%s is counted: %v, want %v", peer, got, want)
		}
	}
}

// Behind a trusted proxy the client that it names is counted, though its address be
// internal, and the proxy itself never: all clients behind it would share one limit.
func TestATrustedProxyIsNotCountedByItsAddress(t *testing.T) {
	trusted := Proxies(prefixes("198.51.100.0/28", "10.0.0.1/32", "2001:db8::/64"))
	for _, tt := range []struct{ peer, header, value, want string }{
		{"198.51.100.1:1", "X-Forwarded-For", "203.0.113.7", "203.0.113.7/32"},
		{"10.0.0.1:1", "X-Forwarded-For", "10.0.0.9", "10.0.0.9/32"},
		{"198.51.100.1:1", "Forwarded", "for=203.0.113.7", "203.0.113.7/32"},
		{"198.51.100.1:1", "X-Other", "", "invalid Prefix"},
		{"10.0.0.1:1", "X-Other", "", "invalid Prefix"},
		{"[2001:db8::1]:1", "X-Other", "", "invalid Prefix"},
		{"198.51.100.1:1", "X-Forwarded-For", "", "invalid Prefix"},
		{"198.51.100.1:1", "X-Forwarded-For", "unknown", "invalid Prefix"},
		{"198.51.100.1:1", "Forwarded", "for=_hidden", "invalid Prefix"},
		{"198.51.100.1:1", "X-Forwarded-For", "203.0.113.7, unknown, 198.51.100.2", "invalid Prefix"},
		{"198.51.100.1:1", "X-Forwarded-For", "198.51.100.2", "invalid Prefix"},
		{"198.51.100.99:1", "X-Forwarded-For", "203.0.113.7", "198.51.100.99/32"}, // not trusted
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = tt.peer
		r.Header.Set(tt.header, tt.value)
		if got := trusted.Sender(r).Network.String(); got != tt.want {
			t.Errorf("%s with %s %q is counted by %s, want %s", tt.peer, tt.header, tt.value, got, tt.want)
		}
	}
}
