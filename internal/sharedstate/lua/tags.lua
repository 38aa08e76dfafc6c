-- Returns each tag of a shard with its revision. KEYS[1]: the revisions by tag.
return redis.call('HGETALL', KEYS[1])
