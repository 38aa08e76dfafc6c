-- Deletes a session, KEYS[1], unless its generation is greater than ARGV[1].
local head = redis.call('GETRANGE', KEYS[1], 0, 12)
if #head < 13 then
  return 0
end
local _, generation = struct.unpack('>BI4I8', head)
if generation > tonumber(ARGV[1]) then
  return 0
end
return redis.call('DEL', KEYS[1])
