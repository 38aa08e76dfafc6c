-- Bars users. KEYS: users by when their bar ends, and which state that is in.
-- ARGV: the name of the new state, how many users may be barred, then pairs of
-- a user and for how many milliseconds. A bar is never made shorter. Returns how
-- many there was no room for.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local room = ARGV[2] - redis.call('ZCARD', KEYS[1])
local refused = 0
for i = 3, #ARGV, 2 do
  local known = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if not known and room <= 0 then
    refused = refused + 1
  else
    if not known then
      room = room - 1
    end
    redis.call('ZADD', KEYS[1], 'GT', now + ARGV[i + 1], ARGV[i])
  end
end
redis.call('SET', KEYS[2], ARGV[1])
return refused
