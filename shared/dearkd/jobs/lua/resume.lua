-- Let a paused job go on. args: id, at. Returns {'ok', status} | {'missing'} | {'refused', status}
-- | {'dead', awaited job, its status}.
local id = args.id
local old = field(id, 'status')
if not old then return {'missing'} end
if old ~= 'paused' then return {'refused', old} end
local status, awaited = claims(id) > 0 and 'running' or 'queued', field(id, 'waits_for')
local theirs = awaited and awaited ~= '' and field(awaited, 'status')
if theirs == 'failed' or theirs == 'canceled' then return {'dead', awaited, theirs} end
if theirs and theirs ~= 'succeeded' then status = 'blocked' end
set_status(id, status)
if status == 'blocked' then redis.call('SADD', key(awaited) .. ':waiting', id) else open_units(id) end
return {'ok', status}
