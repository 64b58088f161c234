"""The Lua scripts of a relay: steps that must not be torn apart by another relay's."""

from __future__ import annotations

from typing import Final

from prefactor_core.relay.server import Script

ANNOUNCE: Final = Script(
    """
    -- KEYS: relays, config. ARGV: the relay, milliseconds until it counts as gone; fields of the
    -- config, which a server that has lost its data lacks. Returns the relays that do not count as
    -- gone: by the server's clock, as those of the machines differ.
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('(%.0f', now - ARGV[2]))
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
    for place = 3, #ARGV, 2 do
        redis.call('HSETNX', KEYS[2], ARGV[place], ARGV[place + 1])
    end
    return redis.call('ZRANGE', KEYS[1], 0, -1)
    """
)

CONFIGURE: Final = Script(
    """
    -- KEYS: config. ARGV: a field, its value if it has none. Returns its value.
    redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2])
    return redis.call('HGET', KEYS[1], ARGV[1])
    """
)

GAIN: Final = Script(
    """
    -- KEYS: lease. ARGV: the relay, milliseconds. Returns 1 if the relay has the lease now.
    if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
    return 0
    """
)

RELEASE: Final = Script(
    """
    -- KEYS: lease. ARGV: the relay.
    if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
    return 0
    """
)

RENEW: Final = Script(
    """
    -- KEYS: lease. ARGV: the relay, milliseconds. Returns 1 if it still has the lease.
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
    return redis.call('PEXPIRE', KEYS[1], ARGV[2])
    """
)

STEP: Final = Script(
    """
    -- KEYS: lease, stream, step, config. ARGV: the relay, milliseconds, group, from where to read,
    -- how many entries, 1 if the relay has then settled all that it has read; the name of the
    -- commands that follow, each as the number of its words and the words. '>' reads on, '0' reads
    -- from the beginning of the stream, also what was read before and not acknowledged, '' reads
    -- nothing. A relay that got no answer sends the same commands again: they are carried out once.
    -- Returns 0, or 1, the entries and the account's partition if the relay has the lease.
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {0} end
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
    if ARGV[8] and redis.call('GET', KEYS[3]) ~= ARGV[7] then
        local place = 8
        while ARGV[place] do
            local last = place + ARGV[place]
            redis.call(unpack(ARGV, place + 1, last))
            place = last + 1
        end
        redis.call('SET', KEYS[3], ARGV[7])
    end
    if ARGV[4] == '' then return {1, {}} end
    local function begin()
        redis.pcall('XGROUP', 'DESTROY', KEYS[2], ARGV[3])
        redis.call('XGROUP', 'CREATE', KEYS[2], ARGV[3], '0', 'MKSTREAM')
    end
    local read = {
        'XREADGROUP', 'GROUP', ARGV[3], 'relay', 'COUNT', ARGV[5], 'STREAMS', KEYS[2], '>'
    }
    if ARGV[4] == '0' then begin() end
    local answer = redis.pcall(unpack(read))
    if answer and answer.err then
        -- The stream or its group was deleted.
        begin()
        answer = redis.call(unpack(read))
    elseif not answer and ARGV[6] == '1' and redis.call('XLEN', KEYS[2]) > 0 then
        -- Nobody would ever read the rest: somebody has read it for another consumer, or has
        -- deleted the consumer that read it.
        begin()
        answer = redis.call(unpack(read))
    end
    return {1, answer and answer[1][2] or {}, redis.call('HGET', KEYS[4], 'partition')}
    """
)
