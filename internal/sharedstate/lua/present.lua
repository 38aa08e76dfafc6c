-- Changes who is in rooms of one shard, whole or not at all. KEYS: the revision
-- of each tag, the rooms that this tag is in, then two of each room: its
-- sessions, and how many each tag has there. ARGV: the tag, the lowest revision
-- that it may be at, the one it comes to, then six of each change: which pair of
-- keys, the room, 1 for here or 0 for gone, session, generation, user.
-- Returns the pairs of keys where the sessions changed, or -1 where the tag is
-- at another revision: something was lost, and it has to begin anew.
local tag, low, new = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local at = tonumber(redis.call('HGET', KEYS[1], tag) or '0')
if not at or at < low or at > new then
  return {-1}
end
if at == new and new > 0 then
  return {} -- it was applied before, and its answer lost
end
redis.call('HSET', KEYS[1], tag, new)

local function count(key, whose, by)
  if redis.call('HINCRBY', key, whose, by) <= 0 then
    redis.call('HDEL', key, whose)
  end
end

-- Whether a tag has replaced this one on the same node, and this one comes late.
local function replaces(other)
  local node, number = string.match(other or '', '^(.*)~(%d+)$')
  local mine, at = string.match(tag, '^(.*)~(%d+)$')
  return node and node == mine and tonumber(number) > tonumber(at)
end

local changed, seen = {}, {}
for i = 4, #ARGV, 6 do
  local pair, room, here, session, generation, user = unpack(ARGV, i, i + 5)
  local sessions, counts = KEYS[2 * pair + 1], KEYS[2 * pair + 2]
  local old = redis.call('HGET', sessions, session)
  local oldGeneration, oldTag = 0, nil
  if old then
    oldGeneration, oldTag = string.match(old, '^(%d+) (%S+) ')
    oldGeneration = tonumber(oldGeneration) or 0
  end
  local differs = false
  if oldGeneration > tonumber(generation) or replaces(oldTag) then
    -- A newer socket of the session told of it, or a newer tag of this node.
  elseif here == '1' then
    redis.call('HSET', sessions, session, generation .. ' ' .. tag .. ' ' .. user)
    if oldTag ~= tag then
      count(counts, tag, 1)
      if oldTag then
        count(counts, oldTag, -1)
      end
    end
    differs = not old
  elseif oldTag == tag then
    redis.call('HDEL', sessions, session)
    count(counts, tag, -1)
    differs = true
  end
  if redis.call('HEXISTS', counts, tag) == 1 then
    redis.call('SADD', KEYS[2], room)
  else
    redis.call('SREM', KEYS[2], room)
  end
  if differs and not seen[pair] then
    seen[pair] = true
    table.insert(changed, tonumber(pair))
  end
end
return changed
