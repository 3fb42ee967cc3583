"""The Lua scripts of the rate limits: one for a plain limit, one for an adaptive one, and some for looking after them.

Invariants:

* A request is a member of a sorted set, its score the instant at which it was counted, in microseconds of the server.
  It counts while less than the window has passed, to the microsecond.
* A set is trimmed by the longest window it was ever counted with or is to be kept for, so stores with different
  configs do not cut each other's windows short. That window is the score of the member ``w``, far below any instant.
* The formula that divides an adaptive limit is that of ``_policy/capacity.py``; a test holds the two together.
"""

from __future__ import annotations

from ._redis_scripts import NOW, Script

__all__ = ("ADAPTIVE", "COOL", "COOLDOWN", "COOLDOWNS", "COUNT", "KEEP", "PLAIN", "TIDY", "WIPE")

_WINDOW = (
    NOW
    + """
local function look(key, span)
  -- What seems to come from the future, because the clock was set back, is dated now.
  for _, member in ipairs(call('ZRANGEBYSCORE', key, '(' .. int(now), '+inf')) do
    call('ZADD', key, int(now), member)
  end
  return call('ZCOUNT', key, '(' .. int(now - span), '+inf')
end
local function oldest(keys, span, nth)
  local found = {}
  for _, key in ipairs(keys) do
    local rows = call('ZRANGEBYSCORE', key, '(' .. int(now - span), '+inf', 'WITHSCORES', 'LIMIT', 0, int(nth))
    for i = 2, #rows, 2 do found[#found + 1] = tonumber(rows[i]) end
  end
  table.sort(found)
  return found[nth]
end
local function add(key, span, id)
  local keep = math.max(span, tonumber(call('ZSCORE', key, 'w') or 0))
  call('ZADD', key, int(keep), 'w', int(now), id)
  call('ZREMRANGEBYSCORE', key, '(' .. int(keep), int(now - keep))
  return keep
end
local function expire(key, span) call('PEXPIRE', key, int(math.floor(span / 1000) + 2)) end
"""
)

_COOLING = """
local function cool(key, till, given)
  call('SET', key, given .. ' ' .. int(till) .. ' ' .. int(now), 'PXAT', int(math.ceil(till / 1000)))
end
local function cooling(key)
  local held = call('GET', key)
  if not held then return 0 end
  local till, since = string.match(held, ' (%d+) (%d+)$')
  if now < tonumber(since) then
    -- A clock that was set back makes a cooldown no longer than it was meant to be: it was set now.
    till = till - since + now
    cool(key, till, string.format('%.6f', till / 1000000))
  end
  return math.max(0, till - now)
end
local function ending(key)
  -- As it was given, to the last digit, unless it has become another one.
  return cooling(key) == 0 and '0' or string.match(call('GET', key), '^%S+')
end
"""

#: window, cooldown | what, limit, window, id
PLAIN = Script(
    _WINDOW
    + _COOLING
    + """
local window, cooldown = KEYS[1], KEYS[2]
local what, limit, span, id = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local count = look(window, span)
if what == 'record' then
  expire(window, add(window, span, id))
  return 1
elseif what == 'status' then
  return {count, int(count > 0 and oldest({window}, span, 1) + span or now)}
elseif what == 'wait' then
  local wait = 0
  if limit == 0 then
    wait = span
  elseif count >= limit then
    wait = oldest({window}, span, count - limit + 1) + span - now
  end
  return int(math.max(wait, cooling(cooldown)))
end
if cooling(cooldown) > 0 or count >= limit then return 0 end
if what == 'acquire' then expire(window, add(window, span, id)) end
return 1
"""
)

#: users, background, division, cooldown | what, limit, window, id, priority, what the config is,
#: monitoring, high, moderate, interval, sustained, pause, scaling, least, minutes, quiet
ADAPTIVE = Script(
    _WINDOW
    + _COOLING
    + """
local users, works, division, cooldown = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local what, limit, span, id, user = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5] == 'user'
local monitoring, interval, sustained = tonumber(ARGV[7]), tonumber(ARGV[10]), tonumber(ARGV[11])

local function whole(share) return math.floor(share + 0.0000005) end
local function younger(key, age) return call('ZCOUNT', key, '(' .. int(now - age), '+inf') end
local function last(key)
  local row = call('ZREVRANGE', key, 0, 0, 'WITHSCORES')
  return row[1] and row[1] ~= 'w' and tonumber(row[2])
end
local function trend()
  local third = monitoring / 3
  -- Instants are whole, so these bounds are exact where a third is not.
  local recent = call('ZCOUNT', users, int(math.floor(now - third) + 1), '+inf')
  local previous = call('ZCOUNT', users, int(math.floor(now - 2 * third) + 1), '+inf') - recent
  if recent == 0 and previous == 0 then return 'none' end
  if recent > 1.5 * previous then return 'increasing' end
  if recent < 0.5 * previous then return 'decreasing' end
  return 'stable'
end
local function divide()
  local high, moderate, scaling, least = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[13]), tonumber(ARGV[14])
  local active, latest = younger(users, monitoring), last(users)
  local some = math.max(whole(0.3 * limit), least)
  local rate = '(' .. int(active) .. ' requests/' .. ARGV[15] .. ')'
  if active >= high then
    local paused = ARGV[12] == '1' and trend() == 'increasing'
    local share = math.min(0.9 * limit, whole(0.5 * limit * scaling))
    return share, paused, 'High user activity ' .. rate .. ' - prioritizing users'
  elseif active >= moderate then
    local scale, way = math.min(scaling, 1 + active / high), trend()
    if way == 'increasing' then scale = scale * 1.2 elseif way == 'decreasing' then scale = scale * 0.8 end
    scale = math.max(1, scale)
    local factor = string.format('%.1f', scale)
    local share = math.min(0.7 * limit, whole(0.4 * limit) * scale)
    return share, false, 'Moderate user activity - dynamic scaling (' .. factor .. 'x user capacity)'
  elseif active > 0 then
    return some, false, 'Low user activity ' .. rate .. ' - background scale up'
  elseif latest and now - latest >= sustained then
    return 0, false, 'Sustained zero activity (' .. ARGV[16] .. ') - full capacity to background'
  elseif latest then
    return least, false, 'Recent zero activity - background scale up with a minimal user reserve'
  elseif now - (last(works) or -math.huge) < math.max(span, monitoring) then
    return least, false, 'No user activity yet - background scale up with a minimal user reserve'
  end
  return some, false, 'Initial state - default capacity allocation'
end
local function shares()
  local held = call('HMGET', division, 'config', 'at', 'users', 'paused', 'reason')
  local since = tonumber(held[2] or 0)
  if held[1] == ARGV[2] .. ARGV[6] and since <= now and now - since < interval then
    return tonumber(held[3]), held[4] == '1', held[5], since
  end
  local share, paused, reason = divide()
  share = math.min(limit, math.max(0, whole(share)))
  local flag = paused and '1' or '0'
  call('HSET', division, 'config', ARGV[2] .. ARGV[6], 'at', int(now))
  call('HSET', division, 'users', int(share), 'paused', flag, 'reason', reason)
  expire(division, interval)
  return share, paused, reason, now
end
local function count()
  -- The newest request of a kind stays known as long as anything happens here: how long users have been quiet counts.
  add(user and users or works, math.max(span, monitoring), id)
  local life = math.max(span, monitoring, sustained, 86400000000)
  expire(users, life)
  expire(works, life)
  return 1
end

local asked, worked = look(users, span), look(works, span)
if what == 'record' then return count() end
local reserved, paused, reason, since = shares()
if what == 'status' then
  local reset = asked + worked > 0 and oldest({users, works}, span, 1) + span or now
  local activity = younger(users, monitoring)
  return {asked + worked, int(reset), reserved, paused and 1 or 0, activity, reason}
end
local most = limit - reserved
if what == 'wait' then
  local wait = 0
  if limit == 0 then
    wait = span
  elseif not user and (paused or most == 0) then
    wait = since + interval - now
  else
    if asked + worked >= limit then
      wait = oldest({users, works}, span, asked + worked - limit + 1) + span - now
    end
    if not user and worked >= most then
      wait = math.max(wait, oldest({works}, span, worked - most + 1) + span - now)
    end
  end
  return int(math.max(wait, cooling(cooldown)))
end
if cooling(cooldown) > 0 or asked + worked >= limit then return 0 end
if not user and (paused or worked >= most) then return 0 end
if what == 'acquire' then return count() end
return 1
"""
)

#: cooldown | until, the same in seconds: the later one stays
COOL = Script(
    NOW
    + _COOLING
    + """
local till = tonumber(ARGV[1])
if till > now + cooling(KEYS[1]) then cool(KEYS[1], till, ARGV[2]) end
return 1
"""
)

#: cooldown: until, in seconds; 0 for none
COOLDOWN = Script(NOW + _COOLING + "return ending(KEYS[1])")

#: window, division or cooldown ... | stamp: what was counted, decided or set until then
WIPE = Script(
    NOW
    + """
local count, last = 0, tonumber(ARGV[1])
for _, key in ipairs(KEYS) do
  local kind = call('TYPE', key).ok
  if kind == 'zset' then
    local keep = call('ZSCORE', key, 'w')
    count = count + call('ZREMRANGEBYSCORE', key, '(' .. keep, int(last))
    if call('ZCARD', key) == 1 then call('DEL', key) end
  elseif kind == 'hash' then
    if tonumber(call('HGET', key, 'at')) <= last then count = count + call('DEL', key) end
  elseif kind == 'string' then
    if tonumber(string.match(call('GET', key), '%d+$')) <= last then count = count + call('DEL', key) end
  end
end
return count
"""
)

#: window ..., division ... | span, number of windows: what is counted is kept for at least so long, because somebody's
#: window may have become longer; the division is made anew
KEEP = Script(
    NOW
    + """
local span, windows = tonumber(ARGV[1]), tonumber(ARGV[2])
for i, key in ipairs(KEYS) do
  local keep = i <= windows and call('ZSCORE', key, 'w')
  if i > windows then
    call('DEL', key)
  elseif keep and tonumber(keep) < span then
    call('ZADD', key, int(span), 'w')
    call('PEXPIRE', key, int(math.max(call('PTTL', key), math.floor(span / 1000) + 2)))
  end
end
return 1
"""
)

#: window ... | span ...: now, then how many are in each window
COUNT = Script(
    NOW
    + """
local rows = {int(now)}
for i, key in ipairs(KEYS) do rows[i + 1] = call('ZCOUNT', key, '(' .. int(now - ARGV[i]), '+inf') end
return rows
"""
)

#: cooldown ...: now, then when each ends, in seconds; 0 for none
COOLDOWNS = Script(
    NOW
    + _COOLING
    + """
local rows = {int(now)}
for i, key in ipairs(KEYS) do rows[i + 1] = ending(key) end
return rows
"""
)

#: window ...: what has left the longest window; the newest stays: an adaptive limit asks how long users are quiet
TIDY = Script(
    NOW
    + """
local count = 0
for _, key in ipairs(KEYS) do
  local keep, newest = call('ZSCORE', key, 'w'), call('ZREVRANGE', key, 0, 0, 'WITHSCORES')[2]
  if keep then
    count = count + call('ZREMRANGEBYSCORE', key, '(' .. keep, int(math.min(now - keep, newest - 1)))
  end
end
return count
"""
)
