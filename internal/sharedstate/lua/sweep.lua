-- Continues to remove a stale tag. KEYS as in apply_presence.lua; ARGV: the tag,
-- and the limit of rooms to return. Returns some rooms that the tag still has
-- sessions in; if there are none, deletes the tag and returns 1, or 0 if it was
-- deleted before. The revision becomes a word, so that no batch applies any more.
local rooms = redis.call('SRANDMEMBER', KEYS[2], ARGV[2])
if #rooms == 0 then
  return redis.call('HDEL', KEYS[1], ARGV[1])
elseif redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then
  redis.call('HSET', KEYS[1], ARGV[1], 'swept')
end
return rooms
