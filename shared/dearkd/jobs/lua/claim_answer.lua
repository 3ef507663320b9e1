-- Claim the first answer to an idempotency key, or read it. args: record (its key), fingerprint (of the request), id
-- (that what is made will have), lease (ms: for so long nobody else makes it), keep (seconds).
-- Returns {'new'} | {'again', id of who was to make it, and ended} | {'making'} | {'made', answer} | {'other'}.
local k, now = args.record, milliseconds()
if redis.call('EXISTS', k) == 0 then
  redis.call('HSET', k, 'fingerprint', args.fingerprint, 'id', args.id, 'until', now + args.lease)
  redis.call('EXPIRE', k, args.keep)
  return {'new'}
end
if redis.call('HGET', k, 'fingerprint') ~= args.fingerprint then return {'other'} end
local answer = redis.call('HGET', k, 'answer')
if answer then return {'made', answer} end
if tonumber(redis.call('HGET', k, 'until')) > now then return {'making'} end
redis.call('HSET', k, 'until', now + args.lease)
return {'again', redis.call('HGET', k, 'id')}
