-- Prolong a lease. args: id, unit, token, lease (ms). Returns the job's status, or 'lost'.
if not held(args.id, args.unit, args.token) then return 'lost' end
redis.call('ZADD', 'dearkd:leases', milliseconds() + args.lease, args.id .. '#' .. args.unit)
return field(args.id, 'status')
