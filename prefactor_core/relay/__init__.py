"""Operations travel through Redis: agents write them there, relays bring them to the API.

Read ``keys`` first: the names of everything on the server. One entry of a stream is one batch of
operations, in the order in which they were recorded; all operations of a run are in one of 16
streams, the shards. An operation is settled when it is delivered, or set aside for a person to see
(``relay refused``); an entry is settled when all its operations are.

    agent                              relay (any number)
    RedisCarrier   Exporter's batch    Relay         announces itself, gains and releases shards
      |            as one entry          |           Ownership: which relay reads which shard
    Presence       heartbeat, and      ShardWorker   reads a shard in order, sends, acknowledges
      |            terminations          |           ShardState: which entries are settled, and
      |                                  |           which runs and spans are open
    RedisServer    commands, errors    RedisServer, ApiClient

The least rights of ACL users, for the prefix ``pf``: their keys, and their commands, each with a
``+`` in ``ACL SETUSER agent on >PASSWORD resetkeys ~... -@all +hello ...``. From 7.2 on, a refused
``CLIENT SETINFO`` does no harm.

    agent    ~{pf:*}:ops ~pf:agents ~pf:relays ~pf:config ~pf:stop:*
             hello auth ping select info xadd hget hset hdel mget exists eval evalsha
    relay    ~{pf:*}:* ~pf:*
             hello auth ping select info time eval evalsha get set del pexpire hget hset hsetnx hdel
             hgetall sadd srem smembers zadd zrange zrem zremrangebyscore xadd xread xreadgroup
             xgroup xack xdel xlen

``relay status`` and ``relay refused`` on the command line also need ``xpending xrange xrevrange``.
Without these, ``relay`` delivers as ever, and shows no lag in its progress and metrics.
"""
