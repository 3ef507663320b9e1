-- Leave out what is not wanted any more: the units from `first` on, the claimed one among them, but for the last group.
-- args: id, unit, token, first, at, ended_early (why, as JSON).
-- Returns the job's status afterwards, 'lost', or 'begun' if another of these units is done, or claimed by who has told
-- of progress at it: then nothing was changed. Who has only claimed one loses it: of several who claim units of a round
-- at once each would take the others for its beginning, and no round would ever be the last.
local id, k = args.id, key(args.id)
if not held(id, args.unit, args.token) then return 'lost' end
local last = tonumber(redis.call('ZRANGE', k .. ':units', -1, -1, 'WITHSCORES')[2])
local range = {redis.call('ZSCORE', k .. ':units', args.first), string.format('%.0f', math.floor(last / GROUP) * GROUP)}
local left, claimed = redis.call('ZCOUNT', k .. ':open', unpack(range)), {}
for _, unit in ipairs(redis.call('HKEYS', k .. ':claims')) do
  local place = tonumber(redis.call('ZSCORE', k .. ':units', unit))
  if place and place >= tonumber(range[1]) and place < tonumber(range[2]) then
    if unit ~= args.unit and redis.call('HEXISTS', k .. ':partial', unit) == 1 then return 'begun' end
    claimed[#claimed + 1] = unit
  end
end
if redis.call('ZCOUNT', k .. ':units', unpack(range)) > left + #claimed then return 'begun' end
for _, unit in ipairs(claimed) do drop_claim(id, unit) end
for _, part in ipairs({':open', ':units'}) do redis.call('ZREMRANGEBYSCORE', k .. part, unpack(range)) end
redis.call('HSET', k, 'ended_early', args.ended_early)
list(id)
if field(id, 'status') == 'canceling' and claims(id) == 0 then set_status(id, 'canceled') end
return field(id, 'status')
