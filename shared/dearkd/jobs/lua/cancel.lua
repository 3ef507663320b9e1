-- Ask a job to end. args: id, at. Returns the status that it has afterwards, 'missing', or 'finished'.
local status = field(args.id, 'status')
if not status then return 'missing' end
if ended(status) then return 'finished' end
if status == 'canceling' then return status end
set_status(args.id, claims(args.id) > 0 and 'canceling' or 'canceled')
return field(args.id, 'status')
