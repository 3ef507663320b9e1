-- Tell how an attempt at a delivery ended. args: id, number, score (of the claim), record (the new one); delay (ms until
-- the next attempt), if there is to be one; slow (a host that took long) and pause (ms for which it is left alone).
-- Returns 1, or nil if the claim is not the current one: then nothing was changed.
local due, member, records = 'dearkd:deliveries', args.id .. '#' .. args.number, key(args.id) .. ':deliveries'
if args.slow then redis.call('SET', 'dearkd:slow:' .. args.slow, 1, 'PX', args.pause) end
if tonumber(redis.call('ZSCORE', due, member) or -1) ~= args.score then return nil end
redis.call('ZREM', due, member)
if redis.call('HEXISTS', records, args.number) == 0 then return nil end
redis.call('HSET', records, args.number, args.record)
if args.delay then redis.call('ZADD', due, milliseconds() + args.delay, member) end
return 1
