-- Take back a unit whose lease ran out, and count a death of it. args: id, unit, at.
-- Returns {status, deaths, holder, cause or ''}, or nil if it is alive after all.
local id, unit, k = args.id, args.unit, key(args.id)
local expiry = redis.call('ZSCORE', 'dearkd:leases', id .. '#' .. unit)
if not expiry or tonumber(expiry) > milliseconds() then return nil end
local holder = redis.call('HGET', k .. ':holders', unit) or ''
local cause = redis.call('HGET', k .. ':causes', unit) or ''
redis.call('HDEL', k .. ':causes', unit)
drop_claim(id, unit)
local status = field(id, 'status')
if not status then return nil end
redis.call('HINCRBY', 'dearkd:measures', -- HINCRBYFLOAT of `jobs/measures.py` goes on from there
  'dearkd_leases_lost_total|' .. field(id, 'kind') .. '|' .. (cause == '' and 'silent' or 'died'), 1)
if status == 'running' then redis.call('HINCRBY', k, 'attempt', 1) end
reopen(id, unit)
return {field(id, 'status'), tostring(redis.call('HINCRBY', k .. ':deaths', unit, 1)), holder, cause}
