"""Operations become requests: kept, sent in batches, retried, and counted.

Operations come in from the recording, in any thread; requests go out to the API; the balance of
both is in ``counters``. Read ``exporter`` first: it puts the parts together. All operations of a
run travel one worker queue, so that they arrive in order, with no lock between workers.

    Buffer.record()      admission and counting, in any thread
      |                  one WorkerQueue a worker; a run keeps to its queue
    Worker.serve()       waits for the batch window, reacts to failures
      |                  Batcher: merges a start with its finish, makes the next batch
    Sender.send()        one request; all workers of a client share the Sender
      |                  CircuitBreaker: when to send; ApiLimits: bulk or alone, how large
    Carrier              ApiClient (api/client, api/requests, api/transport), or RedisCarrier
      |
    Completion           each item is delivered or dropped; Identities: what the API calls it
      |                  LossReport, Termination: the log and the kill switch hear of it
    Counters             client.statistics()
"""
