package e2e

import "strings"

// originAttacks are handshakes of foreign pages in a user's browser. Their token is
// valid; only the origin is wrong.
func originAttacks() (all []attack) {
	for _, row := range []struct {
		name  string
		lines []string
		want  string
	}{
		{"a page of another origin connects", []string{"Origin: https://evil.example"}, "403 forbidden"},
		{"an origin begins as one of ours does", []string{"Origin: https://app.example.com.evil.example"}, "403 forbidden"},
		{"an origin ends as one of ours does", []string{"Origin: https://evilapp.example.com"}, "403 forbidden"},
		{"an origin has ours for its user", []string{"Origin: https://app.example.com@evil.example"}, "403 forbidden"},
		{"an origin has ours for its password", []string{"Origin: https://x:app.example.com@evil.example"}, "403 forbidden"},
		{"a page comes without TLS", []string{"Origin: http://app.example.com"}, "403 forbidden"},
		{"a page comes from another port", []string{"Origin: https://app.example.com:8443"}, "403 forbidden"},
		{"an origin has an invalid port", []string{"Origin: https://app.example.com:443x"}, "403 forbidden"},
		{"an origin is null", []string{"Origin: null"}, "403 forbidden"},
		{"an origin is empty", []string{"Origin:"}, "403 forbidden"},
		{"there are two origins, ours first", []string{"Origin: https://app.example.com", "Origin: https://evil.example"}, "403 forbidden"},
		{"there are two origins in one line", []string{"Origin: https://app.example.com, https://evil.example"}, "403 forbidden"},
		{"an origin has a path", []string{"Origin: https://app.example.com/"}, "403 forbidden"},
		{"an origin has a dot at its end", []string{"Origin: https://app.example.com."}, "403 forbidden"},
		{"an origin has two labels for the star", []string{"Origin: https://a.b.pages.example.com"}, "403 forbidden"},
		{"an origin has no label for the star", []string{"Origin: https://pages.example.com"}, "403 forbidden"},
		{"an origin has an empty label for the star", []string{"Origin: https://.pages.example.com"}, "403 forbidden"},
		{"an origin is of another scheme", []string{"Origin: file://app.example.com"}, "403 forbidden"},
		{"an origin has letters that look like ours", []string{"Origin: https://\u0430pp.example.com"}, "403 forbidden"},
		{"an origin is a page of ours", []string{"Origin: https://app.example.com"}, "welcome"},
		{"an origin fits the pattern", []string{"Origin: https://one.pages.example.com"}, "welcome"},
	} {
		all = append(all, attack{row.name, row.want, func(a *attacker) string {
			return a.tryHandshake(upgradeRequest(append(row.lines, "Authorization: Bearer "+tokenOf(a.user, nil))...))
		}})
	}
	return append(all, hostAttacks()...)
}

// hostAttacks come with a foreign host name, or with forged headers of a proxy.
func hostAttacks() (all []attack) {
	at := func(host string, lines ...string) string {
		return strings.Replace(upgradeRequest(lines...), "chat.example.com", host, 1)
	}
	for _, row := range []struct {
		name, sends string
		proxied     bool
		want        string
	}{
		{"a page makes its own name resolve to us", at("evil.example", "Origin: http://evil.example"), false, "421 wrong_host"},
		{"a host has ours for its beginning", at("chat.example.com.evil.example", "Origin: http://chat.example.com.evil.example"), false, "421 wrong_host"},
		{"a host has ours for its user", at("chat.example.com@evil.example"), false, "400"},
		{"a host is empty", at(""), false, "421 wrong_host"},
		{"a request names another host in its line", strings.Replace(upgradeRequest(), "/ws", "http://evil.example/ws", 1), false, "421 wrong_host"},
		{"a stranger forges our host in X-Forwarded-Host", at("evil.example", "X-Forwarded-Host: chat.example.com", "Origin: https://chat.example.com"), false, "421 wrong_host"},
		{"a stranger forges our host in Forwarded", at("evil.example", "Forwarded: host=chat.example.com;proto=https"), false, "421 wrong_host"},
		{"a proxy forwards two hosts", at("chat.example.com", "X-Forwarded-Host: chat.example.com, evil.example"), true, "421 wrong_host"},
		{"a page without TLS comes through the proxy with TLS", at("chat.example.com", "X-Forwarded-Proto: https", "Origin: http://chat.example.com"), true, "403 forbidden"},
		{"a proxy forwards a client's scheme before its own", at("chat.example.com", "X-Forwarded-Proto: https,http", "Origin: https://chat.example.com"), true, "403 forbidden"},
		{"a proxy names a port, and a page comes from another", at("chat.example.com", "X-Forwarded-Port: 8443", "Origin: https://chat.example.com:9443"), true, "403 forbidden"},
		{"a proxy forwards a client's Forwarded", at("evil.example", "X-Forwarded-Proto: https", "Forwarded: host=chat.example.com;proto=https"), true, "421 wrong_host"},
	} {
		all = append(all, attack{row.name, row.want, func(a *attacker) string {
			if row.proxied {
				return a.tryHandshakeFrom("127.0.0.1", row.sends)
			}
			return a.tryHandshake(row.sends)
		}})
	}
	return all
}
