-- Takes over a session. KEYS[1]: its record. ARGV: the user who must own it, the
-- node that takes it over, and for how many milliseconds the record is kept.
-- Returns the new record, or nil if the user has no such session.
local record = redis.call('GET', KEYS[1])
if not record or #record < 17 then
  return false
end
local version, generation, _, flags, userLength, nodeLength, previousLength = struct.unpack('>BI4I8BBBB', record)
if version ~= 1 then
  return false
end
local user = string.sub(record, 18, 17 + userLength)
if user ~= ARGV[1] then
  return false
end
local node = string.sub(record, 18 + userLength, 17 + userLength + nodeLength)
local body = string.sub(record, 18 + userLength + nodeLength + previousLength)
record = struct.pack('>BI4I8BBBB', 1, generation + 1, 0, flags, userLength, #ARGV[2], nodeLength)
  .. user .. ARGV[2] .. node .. body
redis.call('SET', KEYS[1], record, 'PX', ARGV[3])
return record
