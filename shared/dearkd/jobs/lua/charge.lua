-- Count what a key uses of its quotas of a day. args: record (hash of the day), images, bytes, max_images and max_bytes
-- (absent: no limit), keep (seconds).
-- Returns 'charged', or {'images' | 'bytes', what was used before} of the first that has not as much left: then nothing
-- is counted.
local function used(name) return tonumber(redis.call('HGET', args.record, name) or 0) end
if args.max_images and args.images > 0 and used('images') + args.images > args.max_images then
  return {'images', used('images')}
end
if args.max_bytes and args.bytes > 0 and used('bytes') + args.bytes > args.max_bytes then
  return {'bytes', used('bytes')}
end
redis.call('HINCRBY', args.record, 'images', args.images)
redis.call('HINCRBY', args.record, 'bytes', args.bytes)
redis.call('EXPIRE', args.record, args.keep)
return 'charged'
