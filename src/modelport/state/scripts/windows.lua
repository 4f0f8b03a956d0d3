-- The arithmetic of state/windows.py in Redis. A rate bucket is a hash: n the newest piece, t the sum, and one
-- field for each piece of the ring that holds something. Amounts stay below 2^53, where doubles are exact.
local SUB_WINDOWS = @SUB_WINDOWS@
local SLOTS = SUB_WINDOWS + 1
local HOLD_RETRY_US = @HOLD_RETRY_US@

local function now_us(given)
  if given ~= '0' then return tonumber(given) end
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local function sub_window_us(window_s) return math.ceil(window_s * 1000000 / SUB_WINDOWS) end

local function rate_key(prefix, window_s, key) return prefix .. 'rate:' .. window_s .. ':' .. key end

-- Let go of what has left the window. Returns the bucket as it is now: sub, newest, total, slot (newest's amount).
local function advance(name, window_s, now)
  local sub = sub_window_us(window_s)
  local index = math.floor(now / sub)
  local found = redis.call('HMGET', name, 'n', 't', index % SLOTS)
  local newest, total = tonumber(found[1]), tonumber(found[2])
  local rate = {name = name, sub = sub, newest = index, total = 0, slot = 0, moved = true}
  if not newest then return rate end
  local passed = index - newest
  if passed > SUB_WINDOWS then
    redis.call('DEL', name)
  elseif passed < -SUB_WINDOWS then
    redis.call('DEL', name)
    redis.call('HSET', name, 'n', index, 't', total, index % SLOTS, total)
    rate.total, rate.slot = total, total
  elseif passed > 0 then
    local slots = {}
    for entered = newest + 1, index do slots[#slots + 1] = entered % SLOTS end
    for _, left in ipairs(redis.call('HMGET', name, unpack(slots))) do
      if left then total = total - tonumber(left) end
    end
    redis.call('HDEL', name, unpack(slots))
    redis.call('HSET', name, 'n', index, 't', total)
    rate.total = total
  else
    rate.newest, rate.total, rate.moved = newest, total, false
    rate.slot = tonumber(passed == 0 and found[3] or redis.call('HGET', name, newest % SLOTS) or 0) or 0
  end
  return rate
end

local function add(rate, amount, window_s, spare_ms)
  rate.total, rate.slot = rate.total + amount, rate.slot + amount
  redis.call('HSET', rate.name, 'n', rate.newest, 't', rate.total, rate.newest % SLOTS, rate.slot)
  if rate.moved then redis.call('PEXPIRE', rate.name, math.ceil(rate.sub * SLOTS / 1000) + spare_ms) end
end

local function amounts_of(rate)
  local amounts, all = {}, redis.call('HGETALL', rate.name)
  for i = 1, #all, 2 do amounts[all[i]] = tonumber(all[i + 1]) end
  return amounts
end

local function slot_amount(amounts, index) return amounts[string.format('%d', index % SLOTS)] or 0 end

local function free_in_us(rate, excess, now)
  local amounts = amounts_of(rate)
  for index = rate.newest - SUB_WINDOWS, rate.newest do
    excess = excess - slot_amount(amounts, index)
    if excess <= 0 then return (index + SLOTS) * rate.sub - now end
  end
  return SLOTS * rate.sub
end

local function empty_in_us(rate, now)
  if rate.total == 0 then return 0 end
  if rate.slot > 0 then return (rate.newest + SLOTS) * rate.sub - now end
  local amounts, index = amounts_of(rate), rate.newest
  while index > rate.newest - SUB_WINDOWS and slot_amount(amounts, index) == 0 do index = index - 1 end
  return (index + SLOTS) * rate.sub - now
end
