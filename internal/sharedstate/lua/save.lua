-- Saves a session. KEYS[1]: its record. ARGV: generation, revision, for how many
-- milliseconds it is kept, and the record, or '' for a touch: that only renews
-- the time, if the stored record has exactly this generation and revision.
-- Returns a message.SaveResult.
local head = redis.call('GETRANGE', KEYS[1], 0, 12)
local _, storedGeneration, storedRevision = 0, -1, -1
if #head == 13 then
  _, storedGeneration, storedRevision = struct.unpack('>BI4I8', head)
end
local generation, revision = tonumber(ARGV[1]), tonumber(ARGV[2])
if storedGeneration > generation then
  return 2 -- superseded
end
if ARGV[4] == '' then
  if storedGeneration < generation or storedRevision ~= revision then
    return 3 -- missing
  end
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return 0
end
if storedGeneration == generation and storedRevision > revision then
  return 0 -- a later save of the same owner has arrived before
end
redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[3])
return 0
