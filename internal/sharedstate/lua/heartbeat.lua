-- Stores a node's heartbeat and returns the state of all nodes. KEYS: when each
-- node sent its last heartbeat, their statuses, how many of their sessions came
-- back on other nodes, and the version of the bans. ARGV: the node, its status,
-- the milliseconds after which a node counts as dead, those after which it is
-- deleted, the limit of nodes to return, then pairs of a node and how many of its
-- sessions were resumed here. Returns the node's own count of returned sessions,
-- the version of the bans, then three of each alive node: name, milliseconds
-- since its heartbeat, status. Times are those of Redis, so that the clocks of
-- nodes do not matter.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
for i = 6, #ARGV, 2 do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    redis.call('HINCRBY', KEYS[3], ARGV[i], ARGV[i + 1])
  end
end
for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[4], 'LIMIT', 0, 100)) do
  redis.call('ZREM', KEYS[1], node)
  redis.call('HDEL', KEYS[2], node)
  redis.call('HDEL', KEYS[3], node)
end
local reply = {redis.call('HGET', KEYS[3], ARGV[1]) or '0', redis.call('GET', KEYS[4]) or ''}
local alive = redis.call('ZREVRANGEBYSCORE', KEYS[1], '+inf', now - ARGV[3], 'WITHSCORES', 'LIMIT', 0, ARGV[5])
for i = 1, #alive, 2 do
  table.insert(reply, alive[i])
  table.insert(reply, now - alive[i + 1])
  table.insert(reply, redis.call('HGET', KEYS[2], alive[i]) or '')
end
return reply
