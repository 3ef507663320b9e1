-- Say what a job waits for, or that it waits for nothing more. args: id; what.
local k = key(args.id)
if redis.call('EXISTS', k) == 0 then return end
if args.what then redis.call('HSET', k, 'waiting_for', args.what) else redis.call('HDEL', k, 'waiting_for') end
