-- Give a unit back. args: id, unit, token, at; and needs, the schema of workers to whom the job is left. Returns the job's status afterwards, or 'lost'.
if not held(args.id, args.unit, args.token) then return 'lost' end
if args.needs then redis.call('HSET', key(args.id), 'needs_schema', args.needs) end
drop_claim(args.id, args.unit)
reopen(args.id, args.unit)
return field(args.id, 'status')
