-- Make a connection known as an owner, in the place of this process's earlier one, with all that it holds.
-- ARGV: prefix, now (0: this server's), ttl_us, owner, earlier owner or '', then key, count of each hold.
local prefix, now, ttl_us, owner, earlier = ARGV[1], now_us(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
local owners = prefix .. 'owners'
if earlier ~= '' then redis.call('HDEL', owners, earlier) end
-- Owners that died are few, and this is asked once for each connection.
local all = redis.call('HGETALL', owners)
for i = 1, #all, 2 do
  if tonumber(all[i + 1]) <= now then redis.call('HDEL', owners, all[i]) end
end
redis.call('HSET', owners, owner, string.format('%.0f', now + ttl_us))
for at = 6, #ARGV, 2 do hold(prefix, ARGV[at], owner, tonumber(ARGV[at + 1])) end
return 1
