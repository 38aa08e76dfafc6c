-- Takes a session over: KEYS[1] its record; ARGV the user who must own it, the
-- node that takes it, and for how many milliseconds it is kept. Returns the
-- record as it is now, or nil where there is none of this user.
local record = redis.call('GET', KEYS[1])
if not record or #record < 17 then
  return false
end
local version, generation, _, flags, users, nodes, froms = struct.unpack('>BI4I8BBBB', record)
if version ~= 1 then
  return false
end
local user = string.sub(record, 18, 17 + users)
if user ~= ARGV[1] then
  return false
end
local node = string.sub(record, 18 + users, 17 + users + nodes)
local body = string.sub(record, 18 + users + nodes + froms)
record = struct.pack('>BI4I8BBBB', 1, generation + 1, 0, flags, users, #ARGV[2], nodes)
  .. user .. ARGV[2] .. node .. body
redis.call('SET', KEYS[1], record, 'PX', ARGV[3])
return record
