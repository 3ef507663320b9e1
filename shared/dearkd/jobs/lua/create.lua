-- Accept a job, or with `only_ask` say whether it would be accepted. A refusal has changed nothing.
-- args: id, kind, at, limit (how many jobs, of the owner if there is one, may wait), awaited (the synthesis job that it
-- waits for), owner, reads (the resources that it reads); and only to accept it: fields, groups of units.
-- Returns {'ok', status} | {'full', jobs that wait} | {'deleting', resource} | {'dead', status of the awaited job}
-- | {'exists', status}.
local id, kind, k = args.id, args.kind, key(args.id)
if redis.call('EXISTS', k) == 1 then return {'exists', field(id, 'status')} end
if args.limit then
  local waiting = 0
  for _, other in ipairs({'synthesis', 'training'}) do
    for _, status in ipairs({'queued', 'blocked'}) do
      waiting = waiting + redis.call('ZCARD', 'dearkd:jobs:' .. other .. ':' .. status .. of(args.owner))
    end
  end
  if waiting >= args.limit then return {'full', tostring(waiting)} end
end
local status = 'queued'
if args.awaited then
  local theirs = field(args.awaited, 'status') or 'lost'
  if theirs == 'failed' or theirs == 'canceled' or theirs == 'lost' then return {'dead', theirs} end
  if theirs ~= 'succeeded' then status = 'blocked' end
end
for _, resource in ipairs(args.reads) do
  if redis.call('EXISTS', 'dearkd:deleting:' .. resource) == 1 then return {'deleting', resource} end
end
if args.only_ask then return {'ok', status} end

redis.call('HSET', k, 'id', id, 'kind', kind, 'waits_for', args.awaited or '', 'owner', args.owner or '')
for name, value in pairs(args.fields) do redis.call('HSET', k, name, value) end
record_units(id, args.groups)
enter(id, 'dearkd:jobs:' .. kind)
set_status(id, status)
if status == 'blocked' then redis.call('SADD', key(args.awaited) .. ':waiting', id) else open_units(id) end
return {'ok', status}
