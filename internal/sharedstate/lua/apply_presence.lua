-- Applies a batch of presence changes in one shard, or none of it. KEYS: the
-- revision of each tag, the rooms of this tag, then two of each room: its
-- sessions, and how many of them each tag has. ARGV: the tag, the lowest revision
-- that the batch may follow, the batch's revision, then six of each change: the
-- number of the room's pair of keys, the room, 1 for present or 0 for gone, the
-- session, its generation, its user. Returns the numbers of the rooms whose
-- sessions have changed, or -1 if the tag is at another revision: Redis has lost
-- something, and the node must resync the shard.
local tag, minRevision, revision = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local at = tonumber(redis.call('HGET', KEYS[1], tag) or '0')
if not at or at < minRevision or at > revision then
  return {-1}
end
if at == revision and revision > 0 then
  return {} -- applied before; only the reply was lost
end
redis.call('HSET', KEYS[1], tag, revision)

local function addCount(key, owner, by)
  if redis.call('HINCRBY', key, owner, by) <= 0 then
    redis.call('HDEL', key, owner)
  end
end

-- Reports whether another tag is a newer one of the same node: this batch is late.
local function replaces(other)
  local otherNode, otherNumber = string.match(other or '', '^(.*)~(%d+)$')
  local node, number = string.match(tag, '^(.*)~(%d+)$')
  return otherNode and otherNode == node and tonumber(otherNumber) > tonumber(number)
end

local changed, seen = {}, {}
for i = 4, #ARGV, 6 do
  local pair, room, present, session, generation, user = unpack(ARGV, i, i + 5)
  local sessions, counts = KEYS[2 * pair + 1], KEYS[2 * pair + 2]
  local old = redis.call('HGET', sessions, session)
  local oldGeneration, oldTag = 0, nil
  if old then
    oldGeneration, oldTag = string.match(old, '^(%d+) (%S+) ')
    oldGeneration = tonumber(oldGeneration) or 0
  end
  local differs = false
  if oldGeneration > tonumber(generation) or replaces(oldTag) then
    -- The entry is of a newer connection, or of a newer tag of this node: it stays.
  elseif present == '1' then
    redis.call('HSET', sessions, session, generation .. ' ' .. tag .. ' ' .. user)
    if oldTag ~= tag then
      addCount(counts, tag, 1)
      if oldTag then
        addCount(counts, oldTag, -1)
      end
    end
    differs = not old
  elseif oldTag == tag then
    redis.call('HDEL', sessions, session)
    addCount(counts, tag, -1)
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
