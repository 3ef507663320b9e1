-- Let a job that failed be tried again by itself: it is queued, and its units open when the wait is over (`open_due`).
-- args: id, at, error, due (for the first retry, the second, …: the ms and the RFC 3339 of its beginning); and unit and
-- token, if only the holder of a claim may.
-- Returns {'ok', retry (its number), of how many, beginning; '' of a paused job, which begins when it is resumed}
-- | {'none'} if no retry is left, or its state allows none | {'missing'} | {'lost'}.
local id, k, status = args.id, key(args.id), field(args.id, 'status')
if not status then return {'missing'} end
if args.unit and not held(id, args.unit, args.token) then return {'lost'} end
local retry, bound = tonumber(field(id, 'retries') or '0') + 1, tonumber(field(id, 'max_retries') or '0')
if retry > bound or not args.due[retry] then return {'none'} end
if status ~= 'queued' and status ~= 'running' and status ~= 'paused' then return {'none'} end

drop_claims(id)
redis.call('DEL', k .. ':deaths')
redis.call('HSET', k, 'retries', retry)
local attempt = redis.call('HINCRBY', k, 'attempt', 1)
if status == 'paused' then return {'ok', tostring(retry), tostring(bound), ''} end
local due, at = unpack(args.due[retry])
redis.call('HSET', k, 'error', args.error, 'retry_at', at)
local told = {status = 'queued', attempt = attempt, retry_at = at, error = cjson.decode(args.error)}
if status == 'queued' then add_event(id, 'status', cjson.encode(told)) else set_status(id, 'queued', told) end
redis.call('ZADD', 'dearkd:retries', due, id)
open_units(id)
return {'ok', tostring(retry), tostring(bound), at}
