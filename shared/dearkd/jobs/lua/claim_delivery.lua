-- Take a delivery that is due, for as long as an attempt may take. args: lease (ms).
-- Returns nil | {job, number, record, spec, webhook, score (by which the claim is known)}.
local now = milliseconds()
for _, member in ipairs(redis.call('ZRANGEBYSCORE', 'dearkd:deliveries', '-inf', now, 'LIMIT', 0, 100)) do
  local id, number = member:match('^(.*)#(%d+)$')
  local record, webhook = redis.call('HGET', key(id) .. ':deliveries', number), field(id, 'webhook')
  if not record or not webhook then redis.call('ZREM', 'dearkd:deliveries', member)
  else
    -- Those to a receiver that lets others wait stand back for a while: see `report_delivery`.
    local pause = redis.call('PTTL', 'dearkd:slow:' .. cjson.decode(webhook).host)
    if pause > 0 then redis.call('ZADD', 'dearkd:deliveries', now + pause, member)
    else
      redis.call('ZADD', 'dearkd:deliveries', now + args.lease, member)
      return {id, number, record, field(id, 'spec'), webhook, now + args.lease}
    end
  end
end
return nil
