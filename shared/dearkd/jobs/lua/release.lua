-- Give a unit back. args: id, unit, token, at; and needs, the schema of workers to whom the job is left, or
-- memory_bytes, the least memory of these. Returns the job's status afterwards, or 'lost'.
if not held(args.id, args.unit, args.token) then return 'lost' end
if args.needs then redis.call('HSET', key(args.id), 'needs_schema', args.needs) end
if args.memory_bytes then
  local before = tonumber(field(args.id, 'memory_bytes') or 0)
  redis.call('HSET', key(args.id), 'memory_bytes', string.format('%.0f', math.max(before, args.memory_bytes)))
end
drop_claim(args.id, args.unit)
reopen(args.id, args.unit)
return field(args.id, 'status')
