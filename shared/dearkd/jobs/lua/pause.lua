-- Let a job stand still. args: id, at. Returns the status that it has afterwards, 'missing', or {'refused', status}.
-- Whoever works at it is told so at the next beat, and gives its unit back.
local status = field(args.id, 'status')
if not status then return 'missing' end
if status == 'paused' then return status end
if status ~= 'queued' and status ~= 'running' and status ~= 'blocked' then return {'refused', status} end
set_status(args.id, 'paused')
redis.call('ZREM', 'dearkd:open:' .. field(args.id, 'kind'), args.id)
return 'paused'
