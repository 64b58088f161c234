"""Operations travel through Redis: agents write them there, relays bring them to the API.

Read ``keys`` first: the names of everything on the server. One entry of a stream is one batch of
operations, in the order in which they were recorded; all operations of a run are in one of 16
streams, the shards. An operation is settled when it is delivered, or set aside for a person to see
(``relay refused``); an entry is settled when all its operations are.

A run at which the API fails holds no other run up. When the operations of such runs fill what a
relay reads ahead, it leaves their later operations in Redis for now, and reads on. The failing
operation is given up alone, after it has failed some times while the API accepted operations of
others. In an outage nothing is given up.

    agent                              relay (any number)
    RedisCarrier   Exporter's batch    Relay         announces itself, gains and releases shards
      |            as one entry          |           Ownership: which relay reads which shard
    Presence       heartbeat, and the  ShardWorker   reads a shard in order, sends, acknowledges
      |            ends of runs          |           ShardState: which entries are settled, and
      |                                  |           which runs and spans are open
    RedisServer    commands, errors    RedisServer, ApiClient

Agents need no token. Bounds, journal, drain and statistics of a client are as ever, except that an
operation is delivered when Redis has it. Each operation has one effect at the API, also while
relays die and others take over.

The server is a Redis of 7.0 or later, or Valkey. It needs ``appendonly yes``, and
``maxmemory-policy noeviction``: one that is full is then busy, and nothing is lost. ``?prefix=`` in
the address of an agent and ``--prefix`` of a relay let accounts share a server.

``python -m prefactor_core relay`` is a relay, with PREFACTOR_API_TOKEN for the API and
PREFACTOR_REDIS_URL for the server. ``--poll`` (5 seconds): how often it asks the API for
terminations; the agent sees one a second later. ``--bury-after`` (300 seconds): the runs of an
agent that is silent for so long end as failed. An agent that comes back goes on: its log has one
line, and what it records in these runs is dropped, and counted as ``run_ended``. ``--listen``:
where it serves metrics. ``relay status`` shows what waits and who is alive (``--watch``,
``--json``), ``relay refused`` what the API has refused, which is kept until ``--retry`` or
``--drop``.

A relay waits for a server or an API that does not answer yet. It ends with an error if no wait
helps: for a wrong password, certificate, database or policy, or if the keys are another API's.

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
