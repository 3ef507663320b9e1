-- Claim the first answer to an idempotency key, or read it. args: record (its key), fingerprint (of the request), id
-- (that what is made will have), now and until (ms: for so long nobody else makes it), keep (seconds).
-- Returns {'new'} | {'again', id of who was to make it, and ended} | {'making'} | {'made', answer} | {'other'}.
local k = args.record
if redis.call('EXISTS', k) == 0 then
  redis.call('HSET', k, 'fingerprint', args.fingerprint, 'id', args.id, 'until', args['until'])
  redis.call('EXPIRE', k, args.keep)
  return {'new'}
end
if redis.call('HGET', k, 'fingerprint') ~= args.fingerprint then return {'other'} end
local answer = redis.call('HGET', k, 'answer')
if answer then return {'made', answer} end
if tonumber(redis.call('HGET', k, 'until')) > args.now then return {'making'} end
redis.call('HSET', k, 'until', args['until'])
return {'again', redis.call('HGET', k, 'id')}
