-- ARGV: prefix, now (0: this server's), fence. Never a value that the fence had before, even in a Redis that lost it.
local name = ARGV[1] .. 'fence:' .. ARGV[3]
local value = math.max(tonumber(redis.call('GET', name) or 0) + 1, now_us(ARGV[2]))
redis.call('SET', name, string.format('%.0f', value))
return value
