-- Say what a job waits for, or that it waits for nothing more. args: id; what; unit and token, if only the holder of a
-- claim may: it says so of all of the job, whose time stands still meanwhile.
local k = key(args.id)
if redis.call('EXISTS', k) == 0 or args.unit and not held(args.id, args.unit, args.token) then return end
if args.unit and field(args.id, 'status') == 'running' then count_time(k, not args.what) end
if args.what then redis.call('HSET', k, 'waiting_for', args.what) else redis.call('HDEL', k, 'waiting_for') end
