-- Returns each tag of a shard, KEYS[1], with its revision.
return redis.call('HGETALL', KEYS[1])
