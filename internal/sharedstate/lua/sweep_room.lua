-- Removes a part of a swept tag's sessions from a room. KEYS: the room's two,
-- and the rooms that the tag is in. ARGV: the tag, the room, the cursor of the
-- part, how many at once. Returns the next cursor, '0' after the last.
local page = redis.call('HSCAN', KEYS[1], ARGV[3], 'COUNT', ARGV[4])
local gone = {}
for i = 1, #page[2], 2 do
  if string.match(page[2][i + 1], '^%d+ (%S+) ') == ARGV[1] then
    table.insert(gone, page[2][i])
  end
end
for _, session in ipairs(gone) do
  redis.call('HDEL', KEYS[1], session)
end
if page[1] == '0' then
  redis.call('HDEL', KEYS[2], ARGV[1])
  redis.call('SREM', KEYS[3], ARGV[2])
end
return page[1]
