-- Removes some sessions of a stale tag from a room. KEYS: the room's sessions,
-- how many each tag has there, and the rooms of the tag. ARGV: the tag, the room,
-- the cursor of the scan, and how many sessions to scan. Returns the next cursor,
-- '0' after the last session.
local page = redis.call('HSCAN', KEYS[1], ARGV[3], 'COUNT', ARGV[4])
local stale = {}
for i = 1, #page[2], 2 do
  if string.match(page[2][i + 1], '^%d+ (%S+) ') == ARGV[1] then
    table.insert(stale, page[2][i])
  end
end
for _, session in ipairs(stale) do
  redis.call('HDEL', KEYS[1], session)
end
if page[1] == '0' then
  redis.call('HDEL', KEYS[2], ARGV[1])
  redis.call('SREM', KEYS[3], ARGV[2])
end
return page[1]
