-- Mark a unit as done. args: id, unit, token, at, payload, samples (of the unit).
-- Returns the job's status afterwards, or 'lost'.
local id, unit, k = args.id, args.unit, key(args.id)
if not held(id, unit, args.token) then return 'lost' end
drop_claim(id, unit)
redis.call('HSET', k .. ':done', unit, args.payload)
redis.call('HINCRBY', k, 'done_samples', args.samples)
redis.call('DEL', k .. ':deaths', k .. ':causes')
list(id)
-- Canceled since the last beat: with this unit nobody is left who would notice.
if field(id, 'status') == 'canceling' and claims(id) == 0 then set_status(id, 'canceled') end
return field(id, 'status')
