-- Append a row of a run's metrics. args: id, unit, token, row. Nothing happens if the claim is not the current one.
if held(args.id, args.unit, args.token) then redis.call('RPUSH', key(args.id) .. ':rows', args.row) end
