-- Returns how many sessions are in a room, and all of them where they are not
-- too many. KEYS: its sessions, and how many each tag has there. ARGV: how many
-- are listed, how many are looked through for that (those of dead nodes are
-- among them for a while), then the nodes that are alive.
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
