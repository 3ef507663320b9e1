-- Claim the first open unit of the first job, by priority and turn.
-- args: kind, schema (the newest that the worker reads), at, lease (ms), holder, offer (of the worker).
-- Returns {id, unit, token}, or {id} of a job that is to be planned before, or nil.
-- Once a worker has claimed of a job, no older one does: it might not read what that one leaves. Those of before there
-- were schemas look at `parallelism` alone.

-- Before schema 4 a record said nothing of Ray: who looks at it first adds that.
local function record_ray(id)
  local read, spec = pcall(cjson.decode, field(id, 'spec') or '')
  local ray = read and type(spec) == 'table' and spec.engine == 'ray' and '1' or ''
  redis.call('HSET', key(id), 'ray', ray)
  return ray
end

-- Whether a worker with this offer (nil: one that makes none) may claim of a job; `offers.Offer.fits` does the same.
local function fits(id, offer)
  local device, memory, compiler, processes, ray, schema =
    unpack(redis.call('HMGET', key(id), 'device', 'memory_bytes', 'compiler', 'processes', 'ray', 'schema_version'))
  if not ray and args.kind == 'training' and tonumber(schema or 1) < 4 then ray = record_ray(id) end
  ray = ray == '1'
  if not (device or memory or compiler or processes or ray) then return true end
  return offer and (not device or device == offer.device) and tonumber(memory or 0) <= offer.memory_bytes
    and (not compiler or offer.compiler)
    and (offer.device == 'cpu' or tonumber(processes or 1) <= offer.devices)
    and (not ray or offer.ray)
end

local index = 'dearkd:open:' .. args.kind
for _, id in ipairs(redis.call('ZRANGE', index, 0, -1)) do
  local k = key(id)
  if not claimable(id) then
    redis.call('ZREM', index, id) -- it is listed again when one of its units ends
  elseif needs_schema(id) > args.schema then
    redis.call('HSET', k, 'waiting_for', string.format('a worker of a newer version: it needs one that reads schema %d '
      .. 'of jobs, and those that have looked at it read up to %d', needs_schema(id), args.schema))
  elseif not fits(id, args.offer) then
    -- left to those that can: where there are none, the reaper says so
  elseif claims(id) < tonumber(field(id, 'at_once') or field(id, 'parallelism') or '1') then
    if redis.call('EXISTS', k .. ':units') == 0 then return {id} end
    local unit, place = unpack(redis.call('ZPOPMIN', k .. ':open'))
    -- Starts at the time, so that a Redis that was emptied gives no token that an old attempt may hold.
    redis.call('SET', 'dearkd:fence', string.format('%.0f', milliseconds() * 1000), 'NX')
    local token = string.format('%.0f', redis.call('INCR', 'dearkd:fence'))
    redis.call('HDEL', k, 'waiting_for')
    redis.call('HSET', k, 'needs_schema', args.schema, 'parallelism', 0, 'group', group(place),
      'at_once', field(id, 'at_once') or field(id, 'parallelism') or 1)
    redis.call('HSET', k .. ':claims', unit, token)
    redis.call('HSET', k .. ':holders', unit, args.holder)
    redis.call('ZADD', 'dearkd:leases', milliseconds() + args.lease, id .. '#' .. unit)
    if field(id, 'status') == 'queued' then set_status(id, 'running') end
    list(id, redis.call('INCR', 'dearkd:turn'))
    return {id, unit, token}
  end
end
return nil
