// Package config turns the environment into one validated struct. It is the
// only package that reads the environment; internal/app copies what each
// package needs into that package's own Config. docs/configuration.md is made
// from the tags below.
package config

import (
	"log/slog"
	"time"
)

// Config is every setting of the service. The tags: envconfig names the
// variable, default is used when it is not set, min and max bound numbers,
// durations and the length of text, oneof lists what is allowed, example is
// shown when the value is wrong, secret makes NAME_FILE work too.
type Config struct {
	HTTP    HTTP
	Auth    Auth
	Admin   Admin
	Log     Log
	Store   Store
	Broker  Broker
	Session Session
	Hub     Hub
	Drain   Drain
	Limits  Limits
}

// HTTP is what clients, backends and probes reach.
type HTTP struct {
	ListenAddr       string        `envconfig:"LISTEN_ADDR" default:":8000" example:":8000" check:"address" doc:"Where the service listens: the page, the sockets, the API, health and metrics. Plain HTTP; TLS ends at the load balancer."`
	Color            string        `envconfig:"COLOR" example:"blue" oneof:",blue,green" doc:"The colour of this deployment, blue or green, as clients and metrics are told."`
	Deployment       string        `envconfig:"DEPLOYMENT" max:"64" check:"printable" example:"2026-11-23-1" doc:"The id of this start of this colour, as clients and metrics are told."`
	AllowedOrigins   Origins       `envconfig:"ALLOWED_ORIGINS" example:"https://app.example.com,https://admin.example.com" doc:"Origins of pages that may connect, beside the service's own, separated by commas; scheme included. A star stands for one label: https://*.example.com. null is listed only if sandboxed frames are to connect."`
	AllowedHosts     Hosts         `envconfig:"ALLOWED_HOSTS" example:"chat.example.com,*.chat.example.com" doc:"Names that the service answers to, without ports, separated by commas; a star stands for one label. Empty is any. Probes may also ask by address, or by a name without a dot."`
	TrustedProxies   Networks      `envconfig:"TRUSTED_PROXIES" example:"10.0.0.0/8,fd00::/8" doc:"Networks of the proxies in front, separated by commas: their X-Forwarded-For, -Proto and -Host are believed, nobody else's. Without it a proxy's address is taken for its clients'."`
	APIKeys          Keys          `envconfig:"API_KEYS" secret:"true" example:"shop:a-long-random-secret" doc:"Keys for the server calls, separated by commas: key, or name:key. Several are valid at once, so that one can be replaced without a gap. Without any, server calls are refused."`
	MaxFrame         int           `envconfig:"MAX_FRAME" default:"65536" min:"1024" max:"1048576" example:"65536" doc:"The largest frame from a client, and the largest body of a server call, in bytes."`
	QueueBytes       int           `envconfig:"QUEUE_BYTES" default:"1048576" min:"1" max:"67108864" example:"1048576" doc:"What may wait for one client to read, in bytes; over it the client is closed with 4208 and resumes. Must be over twice 256 KiB + MAX_FRAME."`
	MaxConnections   int           `envconfig:"MAX_CONNECTIONS" default:"15000" min:"1" max:"1000000" example:"15000" doc:"Open WebSockets on this node; more are closed with 4103."`
	MaxHandshakeRate int           `envconfig:"MAX_HANDSHAKE_RATE" default:"500" min:"1" max:"100000" example:"500" doc:"Handshakes that this node takes a second, and at once; more are answered 503 with Retry-After, and clients back off. A move to this node uses four fifths of it."`
	Heartbeat        time.Duration `envconfig:"HEARTBEAT" default:"25s" min:"1s" max:"10m" example:"25s" doc:"The period of heartbeats. A client that sends no byte for two of them, or takes longer for one frame, is closed with 4209."`
}

// Auth is about who comes in, and what they may do. docs/security.md explains it.
type Auth struct {
	JWTSecrets    Secrets       `envconfig:"AUTH_JWT_SECRET" secret:"true" example:"qZ2v6m0Qx8b1H5yTgqJm9o3WcKdVfR7s" doc:"Secrets of HS256 tokens, separated by commas, each of 32 bytes or more, taken as they are written. Several are valid at once, so that one can be replaced without a gap."`
	KeyFile       string        `envconfig:"AUTH_KEY_FILE" max:"4096" example:"/run/secrets/token-keys.pem" doc:"A file of public keys in PEM, one after the other, for RS256, ES256 and EdDSA tokens."`
	JWKSURL       string        `envconfig:"AUTH_JWKS_URL" max:"2048" example:"https://id.example.com/.well-known/jwks.json" check:"jwks" doc:"Where the issuer of tokens shows its public keys, for RS256, ES256 and EdDSA."`
	JWKSAllowHTTP bool          `envconfig:"AUTH_JWKS_ALLOW_HTTP" default:"false" example:"true" doc:"Vouches for the network between here and AUTH_JWKS_URL: it may then be http, to other machines too."`
	JWKSRefresh   time.Duration `envconfig:"AUTH_JWKS_REFRESH" default:"5m" min:"10s" max:"24h" example:"5m" doc:"How often the keys are fetched. A key that is new is fetched sooner, when a token names it."`
	JWKSMaxStale  time.Duration `envconfig:"AUTH_JWKS_MAX_STALE" default:"24h" min:"1m" max:"720h" example:"24h" doc:"How long keys are used while they can't be fetched again. A key that the issuer took back may be good for so long. At least AUTH_JWKS_REFRESH."`
	Issuer        string        `envconfig:"AUTH_ISSUER" max:"512" check:"printable" example:"https://id.example.com/" doc:"What the claim iss of a token must be, exactly. Empty: it is not looked at."`
	Audience      Names         `envconfig:"AUTH_AUDIENCE" example:"chat" doc:"Names of this service, separated by commas: the claim aud of a token must hold one. Empty: it is not looked at, and tokens that the issuer made for other services are good here."`
	Leeway        time.Duration `envconfig:"AUTH_LEEWAY" default:"10s" min:"0s" max:"2m" example:"10s" doc:"By how much the clocks of issuers may differ from this one."`
	Anonymous     string        `envconfig:"AUTH_ANONYMOUS" default:"auto" max:"8192" check:"anonymous" example:"public.*:r,lobby:rw" doc:"Who comes in without a token: auto (everybody, to every room, when no key is configured, else nobody), on, off (then a start without a key is refused), or the rooms that are open to all, as pattern:rights separated by commas."`
	Timeout       time.Duration `envconfig:"AUTH_TIMEOUT" default:"10s" min:"1s" max:"1m" example:"10s" doc:"How long a socket may be open before its auth frame, where a token is needed; then it is closed with 4001."`
	QueryToken    bool          `envconfig:"AUTH_QUERY_TOKEN" default:"false" example:"true" doc:"Also takes tokens from the query, as access_token. Proxies write queries into their logs: prefer the header, the subprotocol or the auth frame."`
}

// Admin is what operators on the host reach.
type Admin struct {
	Addr string `envconfig:"ADMIN_ADDR" default:"127.0.0.1:8001" example:"127.0.0.1:8001" check:"address" doc:"Where operators reach the log level, profiles and live rooms. It has no guard of its own: keep it on loopback."`
}

// Log is about log lines, on standard error.
type Log struct {
	Level  slog.Level `envconfig:"LOG_LEVEL" default:"info" example:"info" doc:"debug, info, warn or error. Can be changed while the service runs: PUT /log-level?level=debug on ADMIN_ADDR."`
	Audit  string     `envconfig:"AUDIT_LOG" default:"stdout" max:"4096" example:"/var/log/switchyard/audit.jsonl" doc:"Where a line of JSON goes for each refused token, key, origin, host and right, each limit that was reached, each removal and each drain: stdout, stderr, off, or a file, which is appended to and made for its owner alone (rotate it with copytruncate). It holds no secrets and no messages."`
	Format string     `envconfig:"LOG_FORMAT" default:"json" oneof:"json,text" example:"json" doc:"json or text."`
}

// Store is about the log of messages.
type Store struct {
	URL            Secret        `envconfig:"DATABASE_URL" default:"sqlite:switchyard.db" secret:"true" example:"postgres://user:password@host:5432/name" check:"database" doc:"Where messages are kept: postgres://… (14 or newer), or sqlite:path for one node."`
	MaxConns       int           `envconfig:"DATABASE_MAX_CONNS" default:"12" min:"4" max:"500" example:"12" doc:"Connections of this node to PostgreSQL, writers, readers and repair together. At least DATABASE_LANES + 3."`
	ConnLifetime   time.Duration `envconfig:"DATABASE_CONN_LIFETIME" default:"30m" min:"10s" max:"24h" example:"30m" doc:"How long a connection to PostgreSQL is used at most."`
	TrustFailover  bool          `envconfig:"DATABASE_TRUST_FAILOVER" default:"false" example:"true" doc:"Vouches that a failover of PostgreSQL loses nothing, because its standby is synchronous: a new timeline alone then keeps the epoch, and clients resume as if nothing had happened."`
	Lanes          int           `envconfig:"DATABASE_LANES" default:"2" min:"1" max:"16" example:"2" doc:"Batches under way at once on PostgreSQL, each on a connection of its own. SQLite has one."`
	IDWindow       time.Duration `envconfig:"ID_WINDOW" default:"10m" min:"1m" max:"168h" example:"10m" doc:"How long the id of a publish is remembered at least. Clients resend for half of it."`
	RetentionAge   time.Duration `envconfig:"RETENTION_AGE" default:"0" min:"0s" max:"87600h" example:"720h" doc:"How long a message is kept at least; then it is removed within about a minute. 0 keeps messages for ever. Who resumes from before the oldest one kept is told the gap."`
	RetentionCount int           `envconfig:"RETENTION_COUNT" default:"0" min:"0" max:"1000000000" example:"10000" doc:"How many messages a room keeps at least, the newest ones; older ones are removed within about a minute. 0 is no bound."`
	AppendTimeout  time.Duration `envconfig:"APPEND_TIMEOUT" default:"5s" min:"100ms" max:"1m" example:"5s" doc:"How long a publish waits for the database before it is answered with unavailable."`
}

// Broker is about the channel between nodes.
type Broker struct {
	URL   Secret `envconfig:"REDIS_URL" secret:"true" example:"redis://user:password@host:6379/0" check:"redis" doc:"Redis 7, whose pub/sub carries messages between nodes: redis://… for one server, redis+sentinel://host,host/master, redis+cluster://host,host; rediss for TLS, with ?ca_file=. docs/redis.md has all of it. Without it nodes find each other's messages in PostgreSQL, a little later."`
	Queue int    `envconfig:"BROKER_QUEUE" default:"1500" min:"1" max:"1000000" example:"1500" doc:"Broadcasts that wait to be sent; beyond it the oldest is dropped and counted, and nodes find its messages in the log."`
}

// Session is about clients that come back, and who is there.
type Session struct {
	TTL           time.Duration `envconfig:"SESSION_TTL" default:"2m" min:"5s" max:"24h" example:"10m" doc:"How long a session is kept after its client was heard last: who comes back within it is who it was, and with rooms=1 in the rooms where it was. Over twice HEARTBEAT."`
	PresenceLimit int           `envconfig:"PRESENCE_LIMIT" default:"200" min:"1" max:"10000" example:"50" doc:"The most members of a room that presence lists; of more only the number is told."`
}

// Hub is about rooms.
type Hub struct {
	RepairWait  time.Duration `envconfig:"REPAIR_WAIT" default:"20ms" min:"1ms" max:"10s" example:"20ms" doc:"How long a hole in a room may fill by itself before it is filled from the log."`
	MaxInflight int           `envconfig:"MAX_INFLIGHT" default:"64" min:"1" max:"256" example:"64" doc:"Publishes of one connection that may wait for their ack; then the service reads no further from it."`
	MaxRooms    int           `envconfig:"MAX_ROOMS" default:"1000" min:"1" max:"100000" example:"1000" doc:"Rooms that one connection may be in."`
}

// Drain is about letting clients go: at SIGTERM, and when an operator asks.
type Drain struct {
	Delay   time.Duration `envconfig:"DRAIN_DELAY" default:"0" min:"0s" max:"10m" example:"5s" doc:"How long a draining node, unready at once, still takes handshakes. Behind a balancer: over twice the period of its probes, so that nobody is refused who was sent here."`
	Window  time.Duration `envconfig:"DRAIN_WINDOW" default:"10s" min:"1s" max:"1h" example:"30s" doc:"The time over which clients are asked to move to another node, after DRAIN_DELAY. It goes slower where the other nodes do badly."`
	Timeout time.Duration `envconfig:"DRAIN_TIMEOUT" default:"25s" min:"1s" max:"1h" example:"60s" doc:"When, from the begin of a drain, clients that did not move are closed. At least DRAIN_DELAY + DRAIN_WINDOW. Keep the stop grace of whatever runs the service 30 s above."`
}

// Limits is about how much one client, user, address or key may do. 0 is no
// limit.
type Limits struct {
	MaxPerUser    int `envconfig:"MAX_CONNECTIONS_PER_USER" default:"100" min:"0" max:"1000000" example:"20" doc:"Open WebSockets of one user on this node; more are closed with 4103. A client on the move has two for a moment. 0 is no limit."`
	MaxPerAddress int `envconfig:"MAX_CONNECTIONS_PER_IP" default:"1000" min:"0" max:"1000000" example:"200" doc:"Open WebSockets of one address on this node; an IPv6 /64 counts as one. More are closed with 4103. A peer on loopback or in a private network that TRUSTED_PROXIES does not name is not counted: it may be a proxy. 0 is no limit."`
	Publish       int `envconfig:"RATE_PUBLISH" default:"200" min:"0" max:"1000000" example:"50" doc:"Publishes and signals of a connection in a second, twice as many at once; more are answered rate_limited. A thousand refusals without a second of calm close with 4129. 0 is no limit; so with the rates that follow."`
	Bytes         int `envconfig:"RATE_BYTES" default:"1048576" min:"0" max:"1000000000" example:"262144" doc:"Bytes of frames of a connection in a second, twice as many at once."`
	Join          int `envconfig:"RATE_JOIN" default:"100" min:"0" max:"1000000" example:"100" doc:"Joins and other frames of a connection in a second that no other rate counts; twice as many at once, or those for MAX_ROOMS rooms: a client that resumes joins them all."`
	History       int `envconfig:"RATE_HISTORY" default:"20" min:"0" max:"1000000" example:"20" doc:"History and presence calls of a connection in a second, twice as many at once."`
	UserPublish   int `envconfig:"RATE_USER_PUBLISH" default:"500" min:"0" max:"1000000" example:"100" doc:"Publishes and signals in a second of one user over all of its connections, twice as many at once."`
	UserBytes     int `envconfig:"RATE_USER_BYTES" default:"4194304" min:"0" max:"1000000000" example:"1048576" doc:"Bytes of publishes and signals in a second of one user over all of its connections, twice as many at once."`
	API           int `envconfig:"RATE_API" default:"2000" min:"0" max:"1000000" example:"500" doc:"Server calls of one API key on this node in a second, twice as many at once; more are answered 429."`
}
