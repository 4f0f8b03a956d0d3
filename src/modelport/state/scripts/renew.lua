-- ARGV: prefix, now (0: this server's), ttl_us, owner. Answers 0 when the owner is not known any more.
local owners, now = ARGV[1] .. 'owners', now_us(ARGV[2])
local expiry = tonumber(redis.call('HGET', owners, ARGV[4]) or 0)
if expiry <= now then return 0 end
redis.call('HSET', owners, ARGV[4], string.format('%.0f', now + tonumber(ARGV[3])))
return 1
