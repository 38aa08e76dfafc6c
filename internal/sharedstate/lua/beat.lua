-- Writes what a node tells about itself, and returns what is known of all.
-- KEYS: when each was seen last, what it said, how many of its sessions came
-- back elsewhere, and which state the bars are in. ARGV: the node, what it says,
-- after how many milliseconds it counts as gone and is forgotten, how many are
-- returned at most, then pairs of a node and how many of its sessions came here.
-- Times are Redis' own, so that the clocks of nodes do not matter.
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
local answer = {redis.call('HGET', KEYS[3], ARGV[1]) or '0', redis.call('GET', KEYS[4]) or ''}
local alive = redis.call('ZREVRANGEBYSCORE', KEYS[1], '+inf', now - ARGV[3], 'WITHSCORES', 'LIMIT', 0, ARGV[5])
for i = 1, #alive, 2 do
  table.insert(answer, alive[i])
  table.insert(answer, now - alive[i + 1])
  table.insert(answer, redis.call('HGET', KEYS[2], alive[i]) or '')
end
return answer
