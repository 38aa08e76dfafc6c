-- Returns the version of the bans, then pairs of a banned user and the remaining
-- milliseconds. KEYS as in ban.lua; ARGV: the limit of pairs.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local reply = {redis.call('GET', KEYS[2]) or ''}
local bans = redis.call('ZREVRANGEBYSCORE', KEYS[1], '+inf', '(' .. now, 'WITHSCORES', 'LIMIT', 0, ARGV[1])
for i = 1, #bans, 2 do
  table.insert(reply, bans[i])
  table.insert(reply, bans[i + 1] - now)
end
return reply
