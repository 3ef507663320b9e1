-- End a job. args: id, status, at, sources (the states that it may be in), fields; and unit and token, if only the
-- holder of a claim may. Returns {'ok'} | {'missing'} | {'lost'} | {'refused', status}.
local old = field(args.id, 'status')
if not old then return {'missing'} end
if args.unit and not held(args.id, args.unit, args.token) then return {'lost'} end
local allowed = false
for _, source in ipairs(args.sources) do allowed = allowed or source == old end
if not allowed then return {'refused', old} end
end_wait(args.id) -- before: it takes an error away
for name, value in pairs(args.fields) do redis.call('HSET', key(args.id), name, value) end
set_status(args.id, args.status)
return {'ok'}
