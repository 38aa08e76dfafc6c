-- Takes what a user spent on one node out of the user's bucket, and returns what
-- is in it now: less than nothing after nodes gave more than there was. KEYS[1]:
-- the bucket. ARGV: for how many seconds of debt nobody is kept waiting longer,
-- how many seconds ago spending began, then of each measure its rate, burst, and
-- what was spent. Time is Redis' own.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local bucket = redis.call('HMGET', KEYS[1], 'at', '1', '2')
local passed = math.max(0, now - (tonumber(bucket[1]) or now)) / 1000
local ago = math.min(tonumber(ARGV[2]), passed)
local answer, full = {}, 0
for i = 1, 2 do
  local rate, burst, spent = tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2])
  local level = math.min(burst, (tonumber(bucket[i + 1]) or burst) + rate * (passed - ago))
  level = math.min(burst, level - spent + rate * ago)
  level = math.max(level, -rate * ARGV[1])
  redis.call('HSET', KEYS[1], i, string.format('%.3f', level))
  table.insert(answer, string.format('%.3f', level))
  if rate > 0 then
    full = math.max(full, (burst - level) / rate)
  end
end
redis.call('HSET', KEYS[1], 'at', now)
-- A bucket that is full again need not be remembered.
redis.call('PEXPIRE', KEYS[1], math.ceil(full * 1000) + 1000)
return answer
