"""Operations travel through Redis: agents write them there, relays bring them to the API.

Read ``keys`` first: the names of everything on the server. One entry of a stream is one batch of
operations, in the order in which they were recorded; all operations of a run are in one of 16
streams, the shards.

    agent                              relay (any number)
    RedisCarrier   Exporter's batch    Relay         announces itself, gains and releases shards
      |            as one entry          |           Ownership: who wants which shard
    Presence       heartbeat, and      ShardWorker   reads a shard in order, sends, acknowledges
      |            terminations          |           ShardState: which entries are settled, and
      |                                  |           which runs and spans are open
    RedisServer    commands, errors    RedisServer, ApiClient
"""
