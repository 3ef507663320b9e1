-- Record the units of a job that was accepted by a version which did not, and open them by their new places.
-- args: id, at, groups.
if redis.call('EXISTS', key(args.id)) == 1 and redis.call('EXISTS', key(args.id) .. ':units') == 0 then
  record_units(args.id, args.groups)
  open_units(args.id)
end
