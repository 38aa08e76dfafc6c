package config

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// anyOne in a list stands for every origin but null, or for every host.
const anyOne = "*"

// Origins are origins of pages: *, null, or scheme://host[:port] whose first label may
// be a star. The pages of apps and extensions have other schemes than http and https,
// and then the host may be absent, a dot or a star.
type Origins []string

// webSchemes are the schemes of pages on the web, and of WebSockets, which some native
// clients send instead.
var webSchemes = map[string]bool{"http": true, "https": true, "ws": true, "wss": true}

// appOriginPattern matches what an origin of an app may be beside scheme://host[:port].
var appOriginPattern = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9+.-]*)://[.*]?$`)

// originPattern matches the scheme, the name or [address], and the port of an
// origin.
var originPattern = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9+.-]*)://(\[[0-9A-Fa-f:.]+\]|[^\[\]:/?#@]+)(?::([^/?#@]*))?$`)

// Decode implements envconfig.Decoder.
func (o *Origins) Decode(value string) error {
	var origins Origins
	for _, item := range split(value) {
		if err := checkOrigin(item); err != nil {
			return err
		}
		origins = append(origins, item)
	}
	*o = origins
	return nil
}

// checkOrigin returns what is wrong with an origin.
func checkOrigin(item string) error {
	if item == "null" || item == anyOne {
		return nil
	}
	if strings.HasPrefix(strings.ToLower(item), "ftp:") {
		return fmt.Errorf("%s: pages do not have this scheme; write http or https", shown(item))
	}
	if app := appOriginPattern.FindStringSubmatch(item); app != nil && !webSchemes[strings.ToLower(app[1])] {
		return nil
	}
	parts := originPattern.FindStringSubmatch(item)
	if parts == nil {
		return fmt.Errorf("%s is no origin: scheme://host[:port], without a path", shown(item))
	}
	if port, err := strconv.ParseUint(parts[3], 10, 16); parts[3] != "" && (err != nil || port == 0 || parts[3][0] == '0') {
		return fmt.Errorf("%s: the port must be from 1 to 65535", shown(item))
	}
	if address, ok := strings.CutPrefix(parts[2], "["); ok {
		if _, err := netip.ParseAddr(strings.TrimSuffix(address, "]")); err != nil {
			return fmt.Errorf("%s is no origin: scheme://host[:port], without a path", shown(item))
		}
		return nil
	}
	if reason := checkHostPattern(strings.TrimSuffix(parts[2], ".")); reason != "" {
		return fmt.Errorf("%s is no origin: scheme://host[:port], where the host %s", shown(item), reason)
	}
	return nil
}

// Hosts are names, whose first label may be a star, and addresses that the service
// answers to; * is any of them.
type Hosts []string

// Decode implements envconfig.Decoder.
func (h *Hosts) Decode(value string) error {
	var hosts Hosts
	for _, item := range split(value) {
		if _, err := netip.ParseAddr(item); err == nil || item == anyOne {
			hosts = append(hosts, item)
			continue
		}
		if strings.ContainsAny(item, ":/") {
			return fmt.Errorf("%s must be a name without scheme and port", shown(item))
		}
		if strings.HasSuffix(item, ".") {
			return fmt.Errorf("%s must have no dot at its end", shown(item))
		}
		if reason := checkHostPattern(item); reason != "" {
			return fmt.Errorf("%s %s", shown(item), reason)
		}
		hosts = append(hosts, item)
	}
	if slices.Contains(hosts, anyOne) {
		hosts = nil // as an empty list
	}
	*h = hosts
	return nil
}

// checkHostPattern returns what is wrong with a name whose first label may be a
// star.
func checkHostPattern(name string) string {
	for _, c := range []byte(name) {
		if c >= 0x80 {
			return "must be written in its xn-- form, as browsers send it"
		}
	}
	rest, starred := strings.CutPrefix(name, "*")
	labels := strings.Split(strings.TrimPrefix(rest, "."), ".")
	switch {
	case starred && (!strings.HasPrefix(rest, ".") || len(labels) < 2):
		return "must have at least two labels after the star, as in *.example.com"
	case strings.Contains(rest, "*"):
		return "may have a star only as the whole first label, as in *.example.com"
	}
	for _, label := range labels {
		if label == "" || strings.Trim(label, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return "must be labels of letters, digits and hyphens, separated by dots"
		}
	}
	return ""
}

// Networks are networks of IP addresses.
type Networks []netip.Prefix

// Decode implements envconfig.Decoder. A single address is a network of one
// address.
func (n *Networks) Decode(value string) error {
	var networks Networks
	for _, item := range split(value) {
		p, err := netip.ParsePrefix(item)
		if a, aerr := netip.ParseAddr(item); aerr == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		switch {
		case item == anyOne:
			return errors.New("* would trust everyone")
		case err != nil || p.Addr().Zone() != "":
			return fmt.Errorf("%s is no network: write it as 10.0.0.0/8, fd00::/8 or an address", shown(item))
		case p.Addr().Is4In6():
			return fmt.Errorf("%s must be written as IPv4", shown(item))
		case p.Bits() == 0:
			return fmt.Errorf("%s would trust everyone", shown(item))
		case p != p.Masked():
			return fmt.Errorf("%s has bits outside its mask; the network is %s", shown(item), p.Masked())
		}
		networks = append(networks, p)
	}
	*n = networks
	return nil
}
