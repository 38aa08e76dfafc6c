package ingress

import (
	"iter"
	"net/http"
	"strings"
)

// A forwarding is what proxies say about a request. Each proxy appends one value to
// a list, so the last value is of the proxy that is nearest to this service.
type forwarding struct {
	clients, hosts, protos, ports []string
}

// readForwarding reads X-Forwarded-For, -Host, -Proto and -Port. Forwarded (RFC 7239)
// is read if there is none of them: a proxy that writes them passes on a Forwarded
// that the client invented.
func readForwarding(h http.Header) forwarding {
	f := forwarding{
		clients: h.Values("X-Forwarded-For"), hosts: h.Values("X-Forwarded-Host"),
		protos: h.Values("X-Forwarded-Proto"), ports: h.Values("X-Forwarded-Port"),
	}
	if len(f.clients)+len(f.hosts)+len(f.protos)+len(f.ports) > 0 {
		return f
	}
	return parseForwarded(strings.Join(h.Values("Forwarded"), ","))
}

// parseForwarded parses Forwarded. A header that breaks the grammar says nothing: it
// is not known which of its values are true.
func parseForwarded(s string) (f forwarding) {
	for s != "" {
		element := map[string]string{}
		for more := true; more; more = strings.HasPrefix(s, ";") {
			var name, value string
			var ok bool
			s = strings.TrimLeft(strings.TrimPrefix(s, ";"), " \t")
			if strings.IndexAny(s, ";,") == 0 || s == "" {
				continue // RFC 7230 §7 and old senders: an empty pair or element
			}
			if name, value, s, ok = cutPair(s); !ok {
				return forwarding{}
			}
			element[strings.ToLower(name)] = strings.ReplaceAll(value, ",", " ") // a comma is in no valid value
		}
		if s != "" && s[0] != ',' {
			return forwarding{}
		}
		s = strings.TrimPrefix(s, ",")
		if len(element) == 0 {
			continue
		}
		f.clients = append(f.clients, element["for"])
		f.hosts = append(f.hosts, element["host"])
		f.protos = append(f.protos, element["proto"])
	}
	return f
}

// cutPair cuts name=value from the beginning of s. The value is a token, or quoted.
func cutPair(s string) (name, value, rest string, ok bool) {
	name, rest, ok = strings.Cut(s, "=")
	if !ok || !isLabel(strings.ToLower(name)) {
		return "", "", "", false
	}
	if !strings.HasPrefix(rest, `"`) {
		end := strings.IndexAny(rest, ";, \t\"")
		if end < 0 {
			end = len(rest)
		}
		value, rest = rest[:end], rest[end:]
	} else if value, rest, ok = cutQuoted(rest); !ok {
		return "", "", "", false
	}
	return name, value, strings.TrimLeft(rest, " \t"), true
}

// cutQuoted cuts a quoted string from the beginning of s, and removes its quotes and
// backslashes.
func cutQuoted(s string) (value, rest string, ok bool) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), s[i+1:], true
		case s[i] == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		default:
			b.WriteByte(s[i])
		}
	}
	return "", "", false
}

// fromRight yields the values of a list header, across its lines, the last one first.
func fromRight(lines []string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := len(lines) - 1; i >= 0; i-- {
			for rest, more := lines[i], true; more; {
				var value string
				if value, rest, more = cutLastComma(rest); !yield(strings.TrimSpace(value)) {
					return
				}
			}
		}
	}
}

// cutLastComma splits s around its last comma. more says whether there was one.
func cutLastComma(s string) (last, rest string, more bool) {
	i := strings.LastIndexByte(s, ',')
	if i < 0 {
		return s, "", false
	}
	return s[i+1:], s[:i], true
}

// valueOf returns the value that a proxy wrote into a list, where 1 is the proxy
// nearest to this service. If there are fewer values, not every proxy wrote one, and
// the first one counts. Empty values say nothing.
func valueOf(proxy int, lines []string) (value string) {
	for v := range fromRight(lines) {
		if v == "" {
			continue
		}
		value = v
		if proxy--; proxy == 0 {
			break
		}
	}
	return value
}

// forwardedProto normalizes the name of a scheme, for which some proxies write the
// WebSocket's. It returns a text that equals no scheme for anything else.
func forwardedProto(s string) string {
	switch s = strings.ToLower(s); s {
	case "", "http", "https":
		return s
	case "ws":
		return "http"
	case "wss":
		return "https"
	}
	return "unknown"
}
