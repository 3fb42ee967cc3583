"""The Lua scripts of the Redis engine, and the layout of its keys.

Invariants:

* What has to be decided and done in one step is one script, so it happens wholly or not at all, whoever is cancelled.
* Time is the server's (``TIME``), in whole microseconds. Lua would print such numbers with 14 digits, so every one is
  formatted by hand (``int``).
* Every key ends by itself. An entry, a job, an outcome, a cooldown has its own expiry; tags and windows have the one
  of the last thing in them. The exception is what describes an entry that never expires.
* What a wipe may remove carries the instant at which it was made: a wipe that outlives its caller takes nothing newer
  than itself.

Keys, all after the prefix of the stores:

========== =============== ============================================================================
key        type            holds
========== =============== ============================================================================
c:<hash>   string          an entry: length of its tags (8 hex digits), made at (16 digits), tags, value
t:<tag>    sorted set      the hashes of the entries with this tag, by the instant (ms) they expire at
j:<hash>   string          the job in progress: id (32 digits), made at (16 digits); it lives for a lease
o:<hash>:<id> string       the outcome of a job: made at (16 digits), V or E, value or error
d:<hash>   channel         what happens to jobs: id, then V or E with the outcome, ? (look yourself), L (lost)
r:<name>   sorted set      a window: requests by instant; the member w has the longest window as its score
rc:<name>  string          a cooldown: until as it was given (seconds), until, set at
au:, ab:   sorted set      the same for an adaptive limit: requests of users, of the background
as:<name>  hash            how an adaptive limit is divided; it lives until the next recalculation
ac:<name>  string          a cooldown of an adaptive limit
========== =============== ============================================================================
"""

from __future__ import annotations

import hashlib

__all__ = (
    "CLOCK",
    "DELETE",
    "DESCRIBE_ENTRIES",
    "DESCRIBE_JOBS",
    "DROP",
    "EXTEND",
    "INVALIDATE",
    "LOOK",
    "NOW",
    "REGISTER",
    "RELEASE",
    "SET",
    "SETTLE",
    "TIDY_TAGS",
    "WIPE_ENTRIES",
    "WIPE_JOBS",
    "WIPE_OUTCOMES",
    "Script",
)


class Script:
    """A script's text and the digest that a server knows it by."""

    __slots__ = ("digest", "text")

    def __init__(self, text: str) -> None:
        self.text: bytes = text.encode()
        # The name that the server gives it; nothing is protected by it.
        self.digest: bytes = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()


# Servers before 7.0 write scripts to their replicas instead of effects, unless told otherwise, and then refuse to
# write after a look at the clock.
NOW = """
if redis.replicate_commands then redis.replicate_commands() end
local call = redis.call
local function int(n) return string.format('%.0f', n) end
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]
"""

_STAMP = (
    NOW
    + """
local stamp = string.format('%016.0f', now)
"""
)

CLOCK = Script(_STAMP + "return stamp")

# Entries.

_UNTAG = """
local function tags_of(key)
  local length = tonumber(call('GETRANGE', key, 0, 7), 16) or 0
  if length == 0 then return {} end
  local good, tags = pcall(cjson.decode, call('GETRANGE', key, 24, 23 + length))
  return good and type(tags) == 'table' and tags or {}
end
local function outlive(tag)
  -- A tag lives as long as the last of its entries; an empty one is gone already.
  local last = call('ZREVRANGE', tag, 0, 0, 'WITHSCORES')[2]
  if last == 'inf' then
    call('PERSIST', tag)
  elseif last then
    call('PEXPIREAT', tag, int(last + 1))
  end
end
local function untag(key, hash, tag_prefix)
  for _, tag in ipairs(tags_of(key)) do
    if call('ZREM', tag_prefix .. tag, hash) == 1 then outlive(tag_prefix .. tag) end
  end
end
"""

#: entry, prefix of tags | hash, ms to live (0: for ever), length of tags, tags, value, tag ...
SET = Script(
    _STAMP
    + _UNTAG
    + """
local key, hash, life = KEYS[1], ARGV[1], tonumber(ARGV[2])
untag(key, hash, KEYS[2])
local data = ARGV[3] .. stamp .. ARGV[4] .. ARGV[5]
local last = '+inf'
if life == 0 then
  call('SET', key, data)
else
  call('SET', key, data, 'PX', int(life))
  last = int(math.floor(now / 1000) + life)
end
for i = 6, #ARGV do
  local tag = KEYS[2] .. ARGV[i]
  call('ZREMRANGEBYSCORE', tag, '-inf', int(math.floor(now / 1000) - 1))
  call('ZADD', tag, last, hash)
  outlive(tag)
end
return 1
"""
)

#: entry, prefix of tags | hash
DELETE = Script(NOW + _UNTAG + "untag(KEYS[1], ARGV[1], KEYS[2])\nreturn call('DEL', KEYS[1])")

#: entry, prefix of tags | hash, data: the same, if the entry still holds just this
DROP = Script(
    NOW
    + _UNTAG
    + """
if call('GET', KEYS[1]) ~= ARGV[2] then return 0 end
untag(KEYS[1], ARGV[1], KEYS[2])
return call('DEL', KEYS[1])
"""
)

#: prefix of tags, prefix of entries | tag ...
INVALIDATE = Script(
    NOW
    + _UNTAG
    + """
local count = 0
for _, tag in ipairs(ARGV) do
  for _, hash in ipairs(call('ZRANGE', KEYS[1] .. tag, 0, -1)) do
    local key = KEYS[2] .. hash
    for _, carried in ipairs(tags_of(key)) do
      -- An entry that was made anew without this tag is none of its business.
      if carried == tag then
        untag(key, hash, KEYS[1])
        count = count + call('DEL', key)
        break
      end
    end
  end
  call('DEL', KEYS[1] .. tag)
end
return count
"""
)

#: prefix of tags, entry ... | stamp, hash ...: those that are not newer than the stamp
WIPE_ENTRIES = Script(
    NOW
    + _UNTAG
    + """
local count = 0
for i = 2, #KEYS do
  if call('GETRANGE', KEYS[i], 8, 23) <= ARGV[1] then
    untag(KEYS[i], ARGV[i], KEYS[1])
    count = count + call('DEL', KEYS[i])
  end
end
return count
"""
)

#: entry ...: now, then of each: made at, ms left (-1: for ever), bytes; without it: gone
DESCRIBE_ENTRIES = Script(
    _STAMP
    + """
local rows = {stamp}
for i, key in ipairs(KEYS) do
  local head = call('GETRANGE', key, 0, 23)
  local length = tonumber(string.sub(head, 1, 8), 16)
  rows[i + 1] = length and {string.sub(head, 9), call('PTTL', key), call('STRLEN', key) - 24 - length} or {}
end
return rows
"""
)

#: prefix of entries, tag ...: what has expired leaves its tags, and what is for ever and was evicted by the server
TIDY_TAGS = Script(
    NOW
    + _UNTAG
    + """
local count = 0
for i = 2, #KEYS do
  local tag = KEYS[i]
  count = count + call('ZREMRANGEBYSCORE', tag, '-inf', int(math.floor(now / 1000) - 1))
  for _, hash in ipairs(call('ZRANGEBYSCORE', tag, '+inf', '+inf')) do
    if call('EXISTS', KEYS[1] .. hash) == 0 then count = count + call('ZREM', tag, hash) end
  end
  outlive(tag)
end
return count
"""
)

# Jobs.

#: job | new id, ms of a lease: the id of the job in progress, which may be the new one
REGISTER = Script(
    _STAMP
    + """
local job = call('GET', KEYS[1])
if job then return string.sub(job, 1, 32) end
call('SET', KEYS[1], ARGV[1] .. stamp, 'PX', ARGV[2])
return ARGV[1]
"""
)

_MINE = """
local job = redis.call('GET', KEYS[1])
if not job or string.sub(job, 1, 32) ~= ARGV[1] then return 0 end
"""

# Who may not publish still settles: others then find the outcome by looking.
#: job, outcome, channel | id, outcome, ms of a lease, 1: short enough to be published
SETTLE = Script(
    _MINE
    + """
redis.call('SET', KEYS[2], string.sub(job, 33) .. ARGV[2], 'PX', ARGV[3])
redis.call('DEL', KEYS[1])
redis.pcall('PUBLISH', KEYS[3], ARGV[1] .. (ARGV[4] == '1' and ARGV[2] or '?'))
return 1
"""
)

#: job, channel | id: give the job up, without an outcome
RELEASE = Script(
    _MINE
    + """
redis.call('DEL', KEYS[1])
redis.pcall('PUBLISH', KEYS[2], ARGV[1] .. 'L')
return 1
"""
)

#: job | id, ms of a lease
EXTEND = Script(_MINE + "return redis.call('PEXPIRE', KEYS[1], ARGV[2])")

#: job, start of outcomes | id ('': the job in progress): what, id, then ms left or the outcome
LOOK = Script(
    """
local job = redis.call('GET', KEYS[1])
local current = job and string.sub(job, 1, 32)
local id = ARGV[1] ~= '' and ARGV[1] or current
if not id then return {'gone', ''} end
if current == id then return {'wait', id, redis.call('PTTL', KEYS[1])} end
local outcome = redis.call('GET', KEYS[2] .. id)
if outcome then return {'done', id, string.sub(outcome, 17)} end
return {'gone', id}
"""
)

#: job ... | stamp, channel ...: those that are not newer than the stamp
WIPE_JOBS = Script(
    """
local count = 0
for i, key in ipairs(KEYS) do
  local job = redis.call('GET', key)
  if job and string.sub(job, 33) <= ARGV[1] then
    redis.call('DEL', key)
    redis.pcall('PUBLISH', ARGV[i + 1], string.sub(job, 1, 32) .. 'L')
    count = count + 1
  end
end
return count
"""
)

#: outcome ... | stamp: those of jobs that are not newer than the stamp
WIPE_OUTCOMES = Script(
    """
local count = 0
for _, key in ipairs(KEYS) do
  if redis.call('GETRANGE', key, 0, 15) <= ARGV[1] then count = count + redis.call('DEL', key) end
end
return count
"""
)

#: job or outcome ...: now, then of each: its head ('' for what is gone), ms left
DESCRIBE_JOBS = Script(
    _STAMP
    + """
local rows = {stamp}
for i, key in ipairs(KEYS) do rows[i + 1] = {call('GETRANGE', key, 0, 47), call('PTTL', key)} end
return rows
"""
)
