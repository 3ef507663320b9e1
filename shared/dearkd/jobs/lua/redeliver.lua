-- Let a delivery be made again, at once. args: id, number, old (its record, as it was read), record (the new one).
-- Returns 1, or nil if the record is another by now.
local records = key(args.id) .. ':deliveries'
if redis.call('HGET', records, args.number) ~= args.old then return nil end
redis.call('HSET', records, args.number, args.record)
redis.call('ZADD', 'dearkd:deliveries', milliseconds(), args.id .. '#' .. args.number)
return 1
