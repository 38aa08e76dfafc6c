-- Begins or goes on to remove a tag that nobody uses any more, and returns some
-- rooms that it is still in; in none any more, 1 if this call removed it. KEYS as
-- in present.lua; ARGV: the tag, how many rooms. Its revision becomes a word, so
-- that nothing is ever added to it.
local rooms = redis.call('SRANDMEMBER', KEYS[2], ARGV[2])
if #rooms == 0 then
  return redis.call('HDEL', KEYS[1], ARGV[1])
elseif redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then
  redis.call('HSET', KEYS[1], ARGV[1], 'swept')
end
return rooms
