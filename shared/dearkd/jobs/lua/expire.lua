-- End the leases of a process that has ended, and keep why. args: holder (or the start of it, up to a slash), cause.
-- Returns how many there were.
local count = 0
for _, member in ipairs(redis.call('ZRANGE', 'dearkd:leases', 0, -1)) do
  local id, unit = string.match(member, '^(.*)#(.*)$')
  local holder = redis.call('HGET', key(id) .. ':holders', unit)
  if holder and (holder == args.holder or string.sub(holder, 1, #args.holder + 1) == args.holder .. '/') then
    redis.call('HSET', key(id) .. ':causes', unit, args.cause)
    redis.call('ZADD', 'dearkd:leases', 0, member)
    count = count + 1
  end
end
return count
