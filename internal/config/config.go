// Package config reads the environment into one validated struct. No other
// package reads the environment: internal/app copies the settings that a package
// needs into that package's own Config. docs/configuration.md is generated from
// the tags of the struct.
package config

import (
	"log/slog"
	"time"
)

// Config has every setting of the service. Of the tags, envconfig is the name of
// the variable, default its value when it is not set, min and max bound numbers,
// durations and the length of text, oneof lists the allowed values, check names a
// rule of checks, switch the values that yes and no stand for where they are not true
// and false, example is shown when the value is wrong, secret hides the value and
// allows NAME_FILE, and doc is the text of docs/configuration.md.
type Config struct {
	HTTP     HTTP
	Auth     Auth
	Admin    Admin
	Log      Log
	Store    Store
	Broker   Broker
	Session  Session
	Hub      Hub
	Drain    Drain
	Limits   Limits
	Settings Settings
}

// HTTP has the settings of the public listener.
type HTTP struct {
	ListenAddr       string        `envconfig:"LISTEN_ADDR" default:":8000" example:":8000" check:"address" doc:"Where the service listens: the page, the sockets, the API, health and metrics. Plain HTTP; TLS ends at the load balancer."`
	Color            string        `envconfig:"COLOR" example:"blue" oneof:",blue,green" doc:"The color of this deployment, blue or green. It is sent to clients and is a label of metrics."`
	Deployment       string        `envconfig:"DEPLOYMENT" max:"64" check:"printable" example:"2026-11-23-1" doc:"The id of this deployment. It is sent to clients and is a label of metrics."`
	AllowedOrigins   Origins       `envconfig:"ALLOWED_ORIGINS" example:"https://app.example.com,https://admin.example.com" doc:"Origins of pages that may connect, beside the service's own: scheme://host[:port], separated by commas. A star stands for one label: https://*.example.com. Apps and extensions have schemes of their own, whose host may be absent or a star: file://, moz-extension://*. wss and ws mean https and http. * allows the pages of every origin, with a warning; it does not include null. List null only to let sandboxed frames connect, and file:// only to let the files of every app connect."`
	AllowedHosts     Hosts         `envconfig:"ALLOWED_HOSTS" example:"chat.example.com,*.chat.example.com" doc:"Host names that the service answers to, without ports, separated by commas; a star stands for one label. Empty, or *, allows any host. Probes may also use an address, or a name without a dot."`
	TrustedProxies   Networks      `envconfig:"TRUSTED_PROXIES" example:"10.0.0.0/8,fd00::/8" doc:"Networks of the proxies in front of the service, separated by commas. Only their X-Forwarded-For, -Proto, -Host and -Port headers are trusted, or Forwarded if they write none of these. Without it, all clients behind a proxy seem to have the proxy's address."`
	APIKeys          Keys          `envconfig:"API_KEYS" secret:"true" example:"shop:a-long-random-secret" doc:"API keys for server calls, separated by commas: key, or name:key. Several are valid at once, so that a key can be replaced without an interruption. Without any key, server calls are refused."`
	MaxFrame         int           `envconfig:"MAX_FRAME" default:"65536" min:"1024" max:"1048576" example:"65536" doc:"The largest frame from a client, and the largest body of a server call, in bytes."`
	QueueBytes       int           `envconfig:"QUEUE_BYTES" default:"1048576" min:"1" max:"67108864" example:"1048576" doc:"The bound of the send queue of one client, in bytes. A client over it is closed with 4208 and resumes. Must be over twice 256 KiB + MAX_FRAME."`
	QueueTotalBytes  int64         `envconfig:"QUEUE_TOTAL_BYTES" default:"0" min:"0" max:"1099511627776" example:"268435456" doc:"The bound of the memory of all send queues together, and of the large frames and bodies that arrive, in bytes; a frame in many queues counts once. Over it the clients with the most waiting are closed with 4208 and resume, and new connections are answered 503. At most half of the memory limit (GOMEMLIMIT, or the container's, or what the machine has) is used. 0: a fifth of it."`
	MaxConnections   int           `envconfig:"MAX_CONNECTIONS" default:"15000" min:"1" max:"1000000" example:"15000" doc:"The most open WebSockets on this node, or fewer where memory or open files are short; further ones are closed with 4103."`
	MaxHandshakeRate int           `envconfig:"MAX_HANDSHAKE_RATE" default:"500" min:"1" max:"100000" example:"500" doc:"The most handshakes that this node accepts in a second, and at once; further ones are answered 503 with Retry-After, and clients back off. Clients that move to this node use at most four fifths of it."`
	IdleTimeout      time.Duration `envconfig:"IDLE_TIMEOUT" default:"150s" min:"5s" max:"1h" example:"620s" doc:"How long an HTTP connection without a request stays open. It must be longer than the proxies in front keep their idle connections, or a request meets a connection that is being closed, and fails with 502: docs/proxies.md names their times."`
	Heartbeat        time.Duration `envconfig:"HEARTBEAT" default:"25s" min:"1s" max:"10m" example:"25s" doc:"The period of heartbeats. A client that sends no byte for two of them, or takes longer for one frame, is closed with 4209."`
}

// Auth has the settings of tokens and of anonymous access. docs/security.md
// explains them.
type Auth struct {
	JWTSecrets    Secrets       `envconfig:"AUTH_JWT_SECRET" secret:"true" example:"qZ2v6m0Qx8b1H5yTgqJm9o3WcKdVfR7s" doc:"Secrets of HS256 tokens, separated by commas, each of 32 bytes or more, used as they are written. Several are valid at once, so that a secret can be replaced without an interruption."`
	KeyFile       string        `envconfig:"AUTH_KEY_FILE" max:"4096" example:"/run/secrets/token-keys.pem" doc:"A file of public keys in PEM, one after another, for RS256, ES256 and EdDSA tokens."`
	JWKSURL       string        `envconfig:"AUTH_JWKS_URL" max:"2048" example:"https://id.example.com/.well-known/jwks.json" check:"jwks" doc:"The URL of the issuer's key set (JWKS), for RS256, ES256 and EdDSA tokens."`
	CertFile      string        `envconfig:"SSL_CERT_FILE" max:"4096" example:"/run/secrets/company-ca.crt" doc:"A file of certificates (PEM) of authorities that are trusted beside the system's. It is read again at each fetch of AUTH_JWKS_URL; PostgreSQL and Redis use it as it is at the start, unless their URLs name files of their own."`
	JWKSAllowHTTP bool          `envconfig:"AUTH_JWKS_ALLOW_HTTP" default:"false" example:"true" doc:"Allows AUTH_JWKS_URL to be http to other machines. Set it only if the network in between is trusted."`
	JWKSRefresh   time.Duration `envconfig:"AUTH_JWKS_REFRESH" default:"5m" min:"10s" max:"24h" example:"5m" doc:"How often the key set is fetched. A token that none of the keys has signed causes a fetch sooner."`
	JWKSMaxStale  time.Duration `envconfig:"AUTH_JWKS_MAX_STALE" default:"24h" min:"1m" max:"720h" example:"24h" doc:"How long keys are used while the key set can't be fetched. A key that the issuer has revoked may be accepted for as long. At least AUTH_JWKS_REFRESH."`
	Issuer        string        `envconfig:"AUTH_ISSUER" max:"512" check:"printable" example:"https://id.example.com/" doc:"The value that the claim iss of a token must have, exactly. Empty: the claim is not checked."`
	Audience      Names         `envconfig:"AUTH_AUDIENCE" example:"chat" doc:"Names of this service, separated by commas; the claim aud of a token must contain one of them. Empty: the claim is not checked, and tokens that the issuer made for other services are accepted."`
	Leeway        time.Duration `envconfig:"AUTH_LEEWAY" default:"10s" min:"0s" max:"2m" example:"10s" doc:"How far the clocks of issuers may differ from this one."`
	Anonymous     string        `envconfig:"AUTH_ANONYMOUS" default:"auto" max:"8192" switch:"on,off" check:"anonymous" example:"public.*:r,lobby:rw" doc:"Access without a token: auto (to every room if no key is configured, otherwise none), on (to every room; refused if a key is configured), off (none; refused if no key is configured), or the rooms that are open to everyone, as pattern:rights separated by commas."`
	Timeout       time.Duration `envconfig:"AUTH_TIMEOUT" default:"10s" min:"1s" max:"1m" example:"10s" doc:"How long a WebSocket may be open before its auth frame, where a token is required; after that it is closed with 4001."`
	QueryToken    bool          `envconfig:"AUTH_QUERY_TOKEN" default:"false" example:"true" doc:"Also accepts tokens in the query, as access_token. Proxies write queries into their logs: prefer the header, the subprotocol or the auth frame."`
}

// Admin has the settings of the listener for operators on the host.
type Admin struct {
	Addr string `envconfig:"ADMIN_ADDR" default:"127.0.0.1:8001" example:"127.0.0.1:8001" check:"address" doc:"The address of the admin listener: log level, profiles, live rooms and drain. It asks for no credential: keep it on loopback."`
}

// Log has the settings of the log lines, which go to standard error, and of the
// audit log.
type Log struct {
	Level  slog.Level `envconfig:"LOG_LEVEL" default:"info" example:"info" doc:"debug, info, warn or error. It can be changed while the service runs: PUT /log-level?level=debug on ADMIN_ADDR."`
	Audit  string     `envconfig:"AUDIT_LOG" default:"stdout" max:"4096" switch:"stdout,off" example:"/var/log/switchyard/audit.jsonl" doc:"The audit log: stdout, stderr, off, or a file. It has a line of JSON for each refused token, key, origin, host and right, each limit that was reached, each ban and each drain. The file is appended to, and created readable by its owner only (rotate it with copytruncate). It contains no secrets and no messages."`
	Format string     `envconfig:"LOG_FORMAT" default:"json" oneof:"json,text" example:"json" doc:"json or text."`
}

// Store has the settings of the log of messages.
type Store struct {
	URL            Secret        `envconfig:"DATABASE_URL" default:"sqlite:switchyard.db" secret:"true" example:"postgres://user:password@host:5432/name" check:"database" doc:"The database of the messages: postgres://… (14 or newer), or sqlite:path for a single node."`
	MaxConns       int           `envconfig:"DATABASE_MAX_CONNS" default:"12" min:"4" max:"500" example:"12" doc:"The most connections of this node to PostgreSQL, for writing, reading and repair together. At least DATABASE_LANES + 3."`
	ConnLifetime   time.Duration `envconfig:"DATABASE_CONN_LIFETIME" default:"30m" min:"10s" max:"24h" example:"30m" doc:"The longest time that a connection to PostgreSQL is used."`
	TrustFailover  bool          `envconfig:"DATABASE_TRUST_FAILOVER" default:"false" example:"true" doc:"States that a failover of PostgreSQL loses nothing because its standby is synchronous. A new timeline then keeps the epoch, and clients resume as if nothing had happened."`
	Lanes          int           `envconfig:"DATABASE_LANES" default:"2" min:"1" max:"16" example:"2" doc:"The number of append workers, which commit batches to PostgreSQL at the same time, each on a connection of its own. SQLite has one."`
	IDWindow       time.Duration `envconfig:"ID_WINDOW" default:"10m" min:"1m" max:"168h" example:"10m" doc:"The shortest time that the id of a publish is remembered. Clients send a publish again for half of it."`
	RetentionAge   time.Duration `envconfig:"RETENTION_AGE" default:"0" min:"0s" max:"87600h" example:"720h" doc:"The shortest time that a message is kept; it is removed within about a minute after that. 0 keeps messages forever. A client that resumes from before the oldest message receives a gap."`
	RetentionCount int           `envconfig:"RETENTION_COUNT" default:"0" min:"0" max:"1000000000" example:"10000" doc:"The number of newest messages that a room keeps; older ones are removed within about a minute. 0 is no limit."`
	AppendTimeout  time.Duration `envconfig:"APPEND_TIMEOUT" default:"5s" min:"100ms" max:"1m" example:"5s" doc:"How long a publish waits for the database before it is answered with unavailable."`
}

// Broker has the settings of the broker and of the shared state, which are both in
// Redis.
type Broker struct {
	URL    Secret `envconfig:"REDIS_URL" secret:"true" example:"redis://user:password@host:6379/0" check:"redis" doc:"Redis 7 or newer, or Valkey, whose pub/sub carries messages between nodes: redis://… for one server, redis+sentinel://host,host/master, redis+cluster://host,host; rediss for TLS, with ?ca_file=. docs/redis.md has the details. Without Redis, nodes read each other's messages from PostgreSQL, a little later."`
	Prefix string `envconfig:"REDIS_PREFIX" default:"sy:" check:"prefix" example:"staging:" doc:"Begins every key and channel in Redis: a name of 1 to 64 of A-Z a-z 0-9 . _ - and a colon. Two deployments that share a Redis, also under different database numbers, need different ones."`
	Queue  int    `envconfig:"BROKER_QUEUE" default:"1500" min:"1" max:"1000000" example:"1500" doc:"The most broadcasts that wait to be sent. Beyond it the oldest is dropped and counted, and nodes read its messages from the log."`
}

// Session has the settings of sessions and of presence.
type Session struct {
	TTL           time.Duration `envconfig:"SESSION_TTL" default:"2m" min:"5s" max:"24h" example:"10m" doc:"How long a session is kept after the last sign of its client. A client that returns within it has the same session, and with rooms=1 also the same rooms. Over twice HEARTBEAT."`
	PresenceLimit int           `envconfig:"PRESENCE_LIMIT" default:"200" min:"1" max:"10000" example:"50" doc:"The most members of a room that presence lists; of a larger room it has only their number."`
}

// Hub has the settings of rooms.
type Hub struct {
	RepairWait  time.Duration `envconfig:"REPAIR_WAIT" default:"20ms" min:"1ms" max:"10s" example:"20ms" doc:"How long a topic waits for a missing message before it reads it from the log."`
	MaxInflight int           `envconfig:"MAX_INFLIGHT" default:"64" min:"1" max:"256" example:"64" doc:"The most publishes of one connection that wait for their ack; at the limit the service stops reading from the connection."`
	MaxRooms    int           `envconfig:"MAX_ROOMS" default:"1000" min:"1" max:"100000" example:"1000" doc:"The most rooms that one connection may join."`
}

// Drain has the settings of a drain, which begins at SIGTERM or by an operator's
// command.
type Drain struct {
	Delay   time.Duration `envconfig:"DRAIN_DELAY" default:"0" min:"0s" max:"10m" example:"5s" doc:"How long a draining node, which is unready at once, still accepts handshakes. Behind a balancer, set it over twice the period of the balancer's probes, so that no client is sent here and refused."`
	Window  time.Duration `envconfig:"DRAIN_WINDOW" default:"10s" min:"1s" max:"1h" example:"30s" doc:"The time over which clients are asked to move to another node, after DRAIN_DELAY. The drain slows down when the other nodes are overloaded."`
	Timeout time.Duration `envconfig:"DRAIN_TIMEOUT" default:"25s" min:"1s" max:"1h" example:"60s" doc:"How long after the beginning of a drain the clients that have not moved are closed. At least DRAIN_DELAY + DRAIN_WINDOW. Set the stop grace of the system that runs the service 30 s longer."`
}

// Limits has the limits of one connection, user, address or API key. 0 is no
// limit.
type Limits struct {
	MaxPerUser    int `envconfig:"MAX_CONNECTIONS_PER_USER" default:"100" min:"0" max:"1000000" example:"20" doc:"The most open WebSockets of one user on this node; further ones are closed with 4103. A client that moves has two for a moment. 0 is no limit."`
	MaxPerAddress int `envconfig:"MAX_CONNECTIONS_PER_IP" default:"1000" min:"0" max:"1000000" example:"200" doc:"The most open WebSockets of one address on this node; an IPv6 /64 counts as one address. Further ones are closed with 4103. A peer on loopback or in a private network that TRUSTED_PROXIES does not list is not limited, since it may be a proxy. 0 is no limit."`
	Publish       int `envconfig:"RATE_PUBLISH" default:"200" min:"0" max:"1000000" example:"50" doc:"Publishes and signals of a connection in a second, twice as many at once; further ones are answered rate_limited. After a thousand refusals without a second in between, the connection is closed with 4129. 0 is no limit, here and for the rates below."`
	Bytes         int `envconfig:"RATE_BYTES" default:"1048576" min:"0" max:"1000000000" example:"262144" doc:"Bytes of frames of a connection in a second, twice as many at once."`
	Join          int `envconfig:"RATE_JOIN" default:"100" min:"0" max:"1000000" example:"100" doc:"Joins of a connection in a second, with the frames that no other rate counts; twice as many at once, or as many as MAX_ROOMS rooms need, since a client that resumes joins all of them."`
	History       int `envconfig:"RATE_HISTORY" default:"20" min:"0" max:"1000000" example:"20" doc:"History and presence calls of a connection in a second, twice as many at once."`
	UserPublish   int `envconfig:"RATE_USER_PUBLISH" default:"500" min:"0" max:"1000000" example:"100" doc:"Publishes and signals of one user in a second, across all of its connections; twice as many at once."`
	UserBytes     int `envconfig:"RATE_USER_BYTES" default:"4194304" min:"0" max:"1000000000" example:"1048576" doc:"Bytes of publishes and signals of one user in a second, across all of its connections; twice as many at once."`
	UserHistory   int `envconfig:"RATE_USER_HISTORY" default:"50" min:"0" max:"1000000" example:"50" doc:"History and presence calls of one user in a second, across all of its connections and calls over HTTP; twice as many at once. Anonymous users are counted by address, together."`
	UserReadBytes int `envconfig:"RATE_USER_READ_BYTES" default:"4194304" min:"0" max:"1000000000" example:"4194304" doc:"Bytes of history, and of what joins and resumes send from the log, of one user in a second, across all of its connections; twice as many at once. Joins and resumes beyond it are served at this rate; history calls are answered rate_limited. Anonymous users are counted by address, together."`
	API           int `envconfig:"RATE_API" default:"2000" min:"0" max:"1000000" example:"500" doc:"Server calls of one API key on this node in a second, twice as many at once; further ones are answered 429."`
}

// Settings has the setting about settings.
type Settings struct {
	Strict bool `envconfig:"STRICT_SETTINGS" default:"false" example:"true" doc:"Refuses to start, and to migrate, with a variable in the environment that is likely a mistake (a name that resembles a setting's, or a secret in quotes), and to start with less memory than the settings need. Otherwise each is a warning in the log."`
}
