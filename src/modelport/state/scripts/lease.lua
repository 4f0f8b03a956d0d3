-- ARGV: key, owner, and ttl_ms, or no ttl to give it back. Answers 1 when the owner had it or got it.
local key, owner, ttl_ms = ARGV[1], ARGV[2], ARGV[3]
local holder = redis.call('GET', key)
if holder and holder ~= owner then return 0 end
if ttl_ms then
  redis.call('SET', key, owner, 'PX', ttl_ms)
else
  redis.call('DEL', key)
end
return 1
