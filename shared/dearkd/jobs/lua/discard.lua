-- Forget the record of a job that was never accepted. args: id.
local id, k, kind, status = args.id, key(args.id), field(args.id, 'kind'), field(args.id, 'status')
if not kind then return end
drop_claims(id)
end_wait(id)
redis.call('ZREM', 'dearkd:open:' .. kind, id)
redis.call('SREM', 'dearkd:unsettled', id)
leave(id, 'dearkd:jobs:' .. kind)
leave(id, 'dearkd:jobs:' .. kind .. ':' .. status)
redis.call('DEL', k)
for _, part in ipairs({'units', 'open', 'done', 'deaths', 'rows', 'waiting',
                       'events', 'log', 'deliveries'}) do
  redis.call('DEL', k .. ':' .. part)
end
