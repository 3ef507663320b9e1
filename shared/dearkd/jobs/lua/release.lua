-- Give a unit back. args: id, unit, token, at. Returns the job's status afterwards, or 'lost'.
if not held(args.id, args.unit, args.token) then return 'lost' end
drop_claim(args.id, args.unit)
reopen(args.id, args.unit)
return field(args.id, 'status')
