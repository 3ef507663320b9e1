-- Change the place of a job among those that wait. args: id, priority, rank, spec (with that priority).
-- Returns the job's status, 'missing', or {'refused', status} of one that has ended.
local id, status = args.id, field(args.id, 'status')
if not status then return 'missing' end
if ended(status) then return {'refused', status} end
redis.call('HSET', key(id), 'priority', args.priority, 'rank', args.rank, 'spec', args.spec)
redis.call('ZREM', 'dearkd:open:' .. field(id, 'kind'), id)
list(id, redis.call('INCR', 'dearkd:turn'))
return status
