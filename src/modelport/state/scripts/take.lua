-- ARGV: prefix, now (0: this server's), owner, fence ('' for none), spare_ms, peek ('1' or '0'), run, then for each
-- bucket key, limit, window_s, amount. Answers {refused, retry_us (-1: never), now, fence} and then for each bucket
-- remaining, reset_us, mark, or of a purse spent (-1: not known), held, 0; or {-2} when the owner is not known any more.
local prefix, now, owner, fence = ARGV[1], now_us(ARGV[2]), ARGV[3], ARGV[4]
local spare_ms, peek, run = tonumber(ARGV[5]), ARGV[6] == '1', ARGV[7]
local count = (#ARGV - 7) / 4
local meters, refused, retry_us, fits, unseeded = {}, -1, 0, true, -1

for i = 1, count do
  local at = 4 + 4 * i
  local key, limit, window_s, amount = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local meter
  if window_s == 0 then
    local total, known = held(prefix, key, owner, now)
    if not known and not peek then return {-2} end
    meter = {total = total, key = key, newest = 0}
  elseif window_s < 0 then
    local total, known = held(prefix, 'purse:' .. key, owner, now)
    if not known and not peek then return {-2} end
    local spent = spent_of(prefix, run, key)
    if not spent and unseeded < 0 then unseeded = i - 1 end
    meter = {total = total + (spent or 0), held = total, spent = spent, key = key}
  else
    meter = advance(rate_key(prefix, ARGV[at + 2], key), window_s, now)
  end
  meter.limit, meter.window_s, meter.amount = limit, window_s, amount
  meters[i] = meter
  local excess = meter.total + amount - limit
  if excess > 0 and not peek then
    if refused < 0 then refused = i - 1 end
    if (meter.spent or 0) + amount > limit then
      fits = false
    else
      retry_us = math.max(retry_us, window_s <= 0 and HOLD_RETRY_US or free_in_us(meter, excess, now))
    end
  end
end
if unseeded >= 0 and not peek then refused, retry_us, fits = unseeded, 0, true end

if refused < 0 and not peek then
  for _, meter in ipairs(meters) do
    if meter.window_s > 0 then
      add(meter, meter.amount, meter.window_s, spare_ms)
    elseif meter.window_s == 0 then
      if meter.amount > 0 then hold(prefix, meter.key, owner, meter.amount) end
      meter.total = meter.total + meter.amount
    else
      if meter.amount > 0 then hold(prefix, 'purse:' .. meter.key, owner, meter.amount) end
      meter.held = meter.held + meter.amount
      use_purse(prefix, run, meter.key)
    end
  end
end

local value = 0
if fence ~= '' then
  local name = prefix .. 'fence:' .. fence
  value = tonumber(redis.call('GET', name) or 0)
  if value == 0 then
    value = now
    redis.call('SET', name, string.format('%.0f', now))
  end
end

local answer = {refused, fits and retry_us or -1, now, value}
for _, meter in ipairs(meters) do
  if meter.window_s > 0 then
    answer[#answer + 1] = math.max(0, meter.limit - meter.total)
    answer[#answer + 1] = empty_in_us(meter, now)
    answer[#answer + 1] = meter.newest
  elseif meter.window_s == 0 then
    answer[#answer + 1] = math.max(0, meter.limit - meter.total)
    answer[#answer + 1] = meter.total > 0 and HOLD_RETRY_US or 0
    answer[#answer + 1] = 0
  else
    answer[#answer + 1] = meter.spent or -1
    answer[#answer + 1] = meter.held
    answer[#answer + 1] = 0
  end
end
return answer
