-- Keeps a session: KEYS[1] its record; ARGV generation, revision, for how many
-- milliseconds, and the record itself, or '' for a touch, which only renews the
-- time of exactly that state. Returns a message.SaveResult.
local head = redis.call('GETRANGE', KEYS[1], 0, 12)
local version, generation, revision = 0, -1, -1
if #head == 13 then
  version, generation, revision = struct.unpack('>BI4I8', head)
end
local mine, at = tonumber(ARGV[1]), tonumber(ARGV[2])
if generation > mine then
  return 2 -- superseded
end
if ARGV[4] == '' then
  if generation < mine or revision ~= at then
    return 3 -- missing
  end
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return 0
end
if generation == mine and revision > at then
  return 0 -- this save was overtaken by a later one of the same owner
end
redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[3])
return 0
