-- Leave out what is not wanted any more: the units from `first` on, the claimed one among them, but for the last group.
-- args: id, unit, token, first, at, ended_early (why, as JSON).
-- Returns the job's status afterwards, 'lost', or 'begun' if another of these units is claimed or done: then nothing was
-- changed.
local id, k = args.id, key(args.id)
if not held(id, args.unit, args.token) then return 'lost' end
local last = tonumber(redis.call('ZRANGE', k .. ':units', -1, -1, 'WITHSCORES')[2])
local range = {redis.call('ZSCORE', k .. ':units', args.first), string.format('%.0f', math.floor(last / GROUP) * GROUP)}
local left = redis.call('ZCOUNT', k .. ':open', unpack(range))
if redis.call('ZCOUNT', k .. ':units', unpack(range)) > left + 1 then return 'begun' end
drop_claim(id, args.unit)
for _, part in ipairs({':open', ':units'}) do redis.call('ZREMRANGEBYSCORE', k .. part, unpack(range)) end
redis.call('HSET', k, 'ended_early', args.ended_early)
list(id)
if field(id, 'status') == 'canceling' and claims(id) == 0 then set_status(id, 'canceled') end
return field(id, 'status')
