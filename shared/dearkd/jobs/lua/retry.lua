-- Start a job that failed or was canceled again, or with `only_ask` say whether that may be: what is in storage is
-- looked at, or deleted, in between. args: id, at, attempt (that is known to have ended), from_beginning; and only to
-- start it: gone (units that were done, and are not there any more), done_samples, memory_bytes (that its spec asks
-- for), and from the beginning: progress, and groups of units, of which it may have left some out.
-- Returns {'ok', status} | {'under_way'} | {'refused', status} | {'changed'} | {'dead', awaited job, its status}.
local id, k = args.id, key(args.id)
if (redis.call('EXISTS', 'dearkd:starting-over:' .. id) == 1) ~= args.from_beginning then return {'under_way'} end
local old = field(id, 'status')
if old ~= 'failed' and old ~= 'canceled' then return {'refused', old or 'lost'} end
if tonumber(field(id, 'attempt')) ~= args.attempt then return {'changed'} end
local status, awaited = 'queued', field(id, 'waits_for')
local theirs = awaited and awaited ~= '' and field(awaited, 'status')
if theirs == 'failed' or theirs == 'canceled' then return {'dead', awaited, theirs} end
if theirs and theirs ~= 'succeeded' then status = 'blocked' end
if args.only_ask then return {'ok', status} end

for _, unit in ipairs(args.gone) do redis.call('HDEL', k .. ':done', unit) end
-- Without what a worker that ran out of memory asked for: that other workers have more may be true no longer.
redis.call('HSET', k, 'done_samples', args.done_samples)
redis.call('HDEL', k, 'memory_bytes')
if args.memory_bytes > 0 then redis.call('HSET', k, 'memory_bytes', string.format('%.0f', args.memory_bytes)) end
if args.from_beginning then
  redis.call('DEL', k .. ':done', k .. ':rows')
  redis.call('HDEL', k, 'metrics', 'ended_early', 'needs_schema')
  redis.call('DEL', k .. ':units') -- an older version may have recorded others
  record_units(id, args.groups)
  redis.call('HSET', k, 'progress', args.progress)
  add_event(id, 'progress', args.progress)
end
redis.call('HDEL', k, 'error', 'finished_at', 'started_at', 'result', 'ran', 'running_since', 'retries')
redis.call('HINCRBY', k, 'attempt', 1)
redis.call('DEL', k .. ':claims', k .. ':deaths', k .. ':partial')
redis.call('SREM', 'dearkd:unsettled', id)
set_status(id, status)
if status == 'blocked' then redis.call('SADD', key(awaited) .. ':waiting', id) else open_units(id) end
return {'ok', status}
