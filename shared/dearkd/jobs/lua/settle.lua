-- Carry out what follows from the end of a job, once `final.json` tells it: the runs that wait for its dataset are
-- queued or fail with it. args: id, at, status and attempt (as `final.json` has them).
-- Returns these runs, or nil if the job has another status or attempt by now: then nothing was done.
local status = field(args.id, 'status')
if status ~= args.status or tonumber(field(args.id, 'attempt')) ~= args.attempt then return nil end
local waiting, runs = redis.call('SMEMBERS', key(args.id) .. ':waiting'), {}
table.sort(waiting)
for _, run in ipairs(waiting) do
  if field(run, 'status') == 'blocked' then
    if status == 'succeeded' then
      set_status(run, 'queued')
      open_units(run)
    else
      redis.call('HSET', key(run), 'error', cjson.encode({
        code = 'dataset_failed', retryable = true,
        message = 'the synthesis job ' .. args.id .. ', which makes its dataset, ' .. status,
      }))
      set_status(run, 'failed')
    end
    table.insert(runs, run)
  end
end
redis.call('DEL', key(args.id) .. ':waiting')
redis.call('SREM', 'dearkd:unsettled', args.id)
return runs
