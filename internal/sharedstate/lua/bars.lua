-- Returns which state the bars are in, then pairs of a barred user and for how
-- many more milliseconds. KEYS as in bar.lua; ARGV: how many at most.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local answer = {redis.call('GET', KEYS[2]) or ''}
local bars = redis.call('ZREVRANGEBYSCORE', KEYS[1], '+inf', '(' .. now, 'WITHSCORES', 'LIMIT', 0, ARGV[1])
for i = 1, #bars, 2 do
  table.insert(answer, bars[i])
  table.insert(answer, bars[i + 1] - now)
end
return answer
