-- Returns how many sessions are in a room, and all of them if these are not too
-- many. KEYS: the room's sessions, and how many of them each tag has. ARGV: the
-- limit of sessions to return, the limit of sessions to read for that (among them
-- are those of dead nodes), then the nodes that are alive.
local alive = {}
for i = 3, #ARGV do
  alive[ARGV[i]] = true
end
local total = 0
local counts = redis.call('HGETALL', KEYS[2])
for i = 1, #counts, 2 do
  if alive[string.match(counts[i], '^(.*)~')] then
    total = total + counts[i + 1]
  end
end
if total > tonumber(ARGV[1]) or redis.call('HLEN', KEYS[1]) > tonumber(ARGV[2]) then
  return {total}
end
return {total, redis.call('HGETALL', KEYS[1])}
