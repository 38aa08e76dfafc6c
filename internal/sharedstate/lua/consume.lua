-- Subtracts what a user spent on one node from the user's bucket, and returns the
-- levels, which are negative if nodes together let too much through. KEYS[1]: the
-- bucket. ARGV: the longest debt in seconds, how many seconds ago the spending
-- began, then three of each measure: its rate, its burst, and what was spent. The
-- time is that of Redis.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local bucket = redis.call('HMGET', KEYS[1], 'at', '1', '2')
local passed = math.max(0, now - (tonumber(bucket[1]) or now)) / 1000
local ago = math.min(tonumber(ARGV[2]), passed)
local levels, untilFull = {}, 0
for i = 1, 2 do
  local rate, burst, spent = tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2])
  local level = math.min(burst, (tonumber(bucket[i + 1]) or burst) + rate * (passed - ago))
  level = math.min(burst, level - spent + rate * ago)
  level = math.max(level, -rate * ARGV[1])
  redis.call('HSET', KEYS[1], i, string.format('%.3f', level))
  table.insert(levels, string.format('%.3f', level))
  if rate > 0 then
    untilFull = math.max(untilFull, (burst - level) / rate)
  end
end
redis.call('HSET', KEYS[1], 'at', now)
-- A bucket that is full again equals a new one, so it may expire.
redis.call('PEXPIRE', KEYS[1], math.ceil(untilFull * 1000) + 1000)
return levels
