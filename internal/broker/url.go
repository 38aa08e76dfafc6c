package broker

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// redisTimeout bounds each dial, read and write. Redis answers in less than a
// millisecond unless it is in trouble, and then the log delivers.
const redisTimeout = 500 * time.Millisecond

// A topology is the arrangement of the Redis servers.
type topology int

const (
	topologySingle   topology = iota // one server
	topologySentinel                 // a master that sentinels elect
	topologyCluster                  // many masters, each with a part of the slots
)

// A redisConfig is a parsed REDIS_URL.
type redisConfig struct {
	topology topology
	addrs    []string // host:port of the server, the sentinels, or some of the cluster
	master   string   // the sentinels' name for the master

	tls      *tlsFiles     // nil without TLS
	server   redis.Options // for every server; Addr is not set
	sentinel redis.Options // for every sentinel; Addr is not set
}

const urlForms = "want redis://[user:password@]host:6379[/0], " +
	"redis+sentinel://[user:password@]host:26379,host:26379/master[/0], or " +
	"redis+cluster://[user:password@]host:6379,host:6379; rediss for TLS; " +
	"escape special characters in a password, such as %2F for /"

// parseURL parses REDIS_URL; docs/redis.md describes its forms. No error quotes
// any part of the URL except the name of a file: the apparent host or option
// may be half of a password that contains an unescaped / or ?.
func parseURL(raw string) (*redisConfig, error) {
	c, err := readURL(raw)
	if err != nil {
		return nil, fmt.Errorf("REDIS_URL: %w: %s", err, urlForms)
	}
	return c, nil
}

func readURL(raw string) (*redisConfig, error) {
	scheme, rest, _ := strings.Cut(raw, "://")
	base, kind, _ := strings.Cut(scheme, "+")
	topologies := map[string]topology{"": topologySingle, "sentinel": topologySentinel, "cluster": topologyCluster}
	topo, known := topologies[kind]
	if !known || (base != "redis" && base != "rediss") || strings.HasSuffix(scheme, "+") {
		return nil, errors.New("an unknown scheme")
	}
	// url.Parse accepts one host only, so a placeholder replaces the list.
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	at := strings.LastIndex(rest[:end], "@") + 1
	u, err := url.Parse("redis://" + rest[:at] + "hosts" + rest[end:])
	if err != nil || u.Fragment != "" {
		return nil, errors.New("not a URL")
	}
	c := &redisConfig{topology: topo}
	if c.addrs, err = readHosts(rest[at:end], topo); err != nil {
		return nil, err
	}
	if err := c.readPath(u.Path); err != nil {
		return nil, err
	}
	if err := c.readOptions(u.RawQuery, base == "rediss"); err != nil {
		return nil, err
	}
	c.server.Username = u.User.Username()
	c.server.Password, _ = u.User.Password()
	setLimits(&c.server)
	setLimits(&c.sentinel)
	if c.tls != nil {
		c.server.Dialer, c.sentinel.Dialer = c.tls.dialer(c.server), c.tls.dialer(c.sentinel)
	}
	if topo != topologyCluster { // whose servers are known by their slots
		c.server.OnConnect = refuseReplica
	}
	return c, nil
}

// readHosts parses a list of hosts into host:port, with the default port where
// none is given.
func readHosts(list string, topo topology) ([]string, error) {
	usual := "6379"
	if topo == topologySentinel {
		usual = "26379"
	}
	var addrs []string
	for host := range strings.SplitSeq(list, ",") {
		u, err := url.Parse("redis://" + host)
		if err != nil || u.Hostname() == "" || (strings.Contains(u.Hostname(), ":") && host[0] != '[') {
			return nil, errors.New("a host is missing or not host:port")
		}
		port := cmp.Or(u.Port(), usual)
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return nil, errors.New("a port is not from 1 to 65535")
		}
		addrs = append(addrs, net.JoinHostPort(u.Hostname(), port))
	}
	if topo == topologySingle && len(addrs) > 1 {
		return nil, errors.New("several hosts need redis+sentinel or redis+cluster")
	}
	return addrs, nil
}

// readPath parses the path: /master/db for sentinels, /db for one server.
func (c *redisConfig) readPath(path string) error {
	path = strings.Trim(path, "/")
	if c.topology == topologySentinel {
		if c.master, path, _ = strings.Cut(path, "/"); c.master == "" {
			return errors.New("the name of the sentinels' master is missing")
		}
	}
	if path == "" {
		return nil
	}
	db, err := strconv.Atoi(path)
	switch {
	case err != nil || db < 0:
		return errors.New("the database is not a number from 0")
	case c.topology == topologyCluster && db != 0:
		return errors.New("a cluster has database 0 only")
	}
	c.server.DB = db
	return nil
}

// readOptions parses the query. secure says that the URL asks for TLS.
func (c *redisConfig) readOptions(query string, secure bool) error {
	values, err := url.ParseQuery(query)
	if err != nil {
		return errors.New("the options after ? cannot be parsed")
	}
	get := func(name string) string {
		value := values.Get(name)
		values.Del(name)
		return value
	}
	skip, ca, cert, key := get("skip_verify"), get("ca_file"), get("cert_file"), get("key_file")
	if c.topology == topologySentinel {
		c.sentinel.Username, c.sentinel.Password = get("sentinel_username"), get("sentinel_password")
	}
	switch {
	case len(values) > 0:
		return errors.New("an unknown option: there are ca_file, cert_file, key_file and skip_verify=true with TLS, " +
			"sentinel_username and sentinel_password with sentinels")
	case !secure && skip+ca+cert+key != "":
		return errors.New("ca_file, cert_file, key_file and skip_verify need rediss")
	case skip != "" && skip != "true" && skip != "false":
		return errors.New("skip_verify is neither true nor false")
	case !secure:
		return nil
	}
	c.tls = &tlsFiles{ca: ca, cert: cert, key: key, skipVerify: skip == "true"}
	return c.tls.load()
}

// setLimits sets the bounds of the broker's clients.
func setLimits(opts *redis.Options) {
	opts.Protocol = 2 // RESP3 would only add push messages to filter
	opts.DialTimeout, opts.ReadTimeout, opts.WriteTimeout = redisTimeout, redisTimeout, redisTimeout
	opts.DialerRetries = 1
	opts.MaxRetries = -1       // a retried publish could deliver a signal twice
	opts.PoolSize = 1          // all commands of a client go to one server, also when the address leads to two
	opts.PipelinePoolSize = -1 // the ordinary pool serves only pipelines
	opts.DisableIdentity = true
}

// withAddr returns a copy of the options for the server at addr.
func withAddr(opts redis.Options, addr string) *redis.Options {
	opts.Addr = addr
	return &opts
}
