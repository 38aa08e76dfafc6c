-- Bans users. KEYS: the users by the end of their ban, and the version of that
-- list. ARGV: the new version, the limit of banned users, then pairs of a user
-- and the ban in milliseconds. Never shortens a ban. Returns how many bans
-- exceeded the limit.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local free = ARGV[2] - redis.call('ZCARD', KEYS[1])
local refused = 0
for i = 3, #ARGV, 2 do
  local known = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if not known and free <= 0 then
    refused = refused + 1
  else
    if not known then
      free = free - 1
    end
    redis.call('ZADD', KEYS[1], 'GT', now + ARGV[i + 1], ARGV[i])
  end
end
redis.call('SET', KEYS[2], ARGV[1])
return refused
