-- Keep the progress of a claimed unit. args: id, unit, token, partial, few, pause (ms).
-- Returns what the job's progress is made of: {progress of each claimed unit, fields of the job, time}. Or nil: the claim
-- is lost, or more than `few` units are at work and one of them was answered in the last `pause`.
local k = key(args.id)
if not held(args.id, args.unit, args.token) then return nil end
redis.call('HSET', k .. ':partial', args.unit, args.partial)
if redis.call('HLEN', k .. ':partial') > args.few and not redis.call('SET', k .. ':told', 1, 'NX', 'PX', args.pause) then
  return nil
end
-- The sum of what is done is kept as units end: a job may have a hundred thousand of them.
return {redis.call('HVALS', k .. ':partial'),
  redis.call('HMGET', k, 'progress', 'done_samples', 'stops_after', 'ran', 'running_since'), redis.call('TIME')}
