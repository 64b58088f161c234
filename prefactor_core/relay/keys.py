"""Keys: the names of what agents and relays keep on a Redis server. Pure."""

from __future__ import annotations

from typing import Final
from zlib import crc32

from prefactor_core.operations.identifiers import without_partition

SHARDS: Final = 16
"""How many streams the runs are divided among. It never changes: agents and relays of different
versions meet on one server."""

GROUP: Final = "relays"
"""The consumer group of all relays, on each stream."""


class Keys:
    """The keys that begin with ``prefix``: those of one account.

    =========================  ======  =============================================================
    Key                        Type    Content
    =========================  ======  =============================================================
    ``{pf:N}:ops``             stream  the entries of shard N, until they are settled
    ``{pf:N}:lease``           string  the name of the relay that reads shard N, for a few seconds
    ``{pf:N}:runs``            set     the open runs of shard N, as in ``pf:run:<id>``
    ``{pf:N}:done``            hash    which operations of an entry are settled, until all are
    ``{pf:N}:step``            string  the last step of shard N: its changes are not made twice
    ``pf:run:<id>``            hash    an open run: its agent, its open spans, the API's ids
    ``pf:stop:<id>``           string  why the API has terminated a run; for a day
    ``pf:stop:<id>:buried``    string  a relay has ended the run of a silent agent; for a week
    ``pf:agents``              hash    the last heartbeat of each agent, in milliseconds since 1970
    ``pf:relays``              zset    the relays by their last announcement
    ``pf:config``              hash    the address of the API, the partition: ``api``, ``partition``
    ``pf:refused``             stream  the operations that the API refused, with the reasons
    =========================  ======  =============================================================
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.agents = f"{prefix}:agents"
        self.relays = f"{prefix}:relays"
        self.config = f"{prefix}:config"
        self.refused = f"{prefix}:refused"

    def operations(self, shard: int) -> str:
        return f"{{{self.prefix}:{shard}}}:ops"

    def lease(self, shard: int) -> str:
        return f"{{{self.prefix}:{shard}}}:lease"

    def runs(self, shard: int) -> str:
        return f"{{{self.prefix}:{shard}}}:runs"

    def done(self, shard: int) -> str:
        return f"{{{self.prefix}:{shard}}}:done"

    def step(self, shard: int) -> str:
        return f"{{{self.prefix}:{shard}}}:step"

    def run(self, instance_id: str) -> str:
        return f"{self.prefix}:run:{without_partition(instance_id)}"

    def stop(self, instance_id: str) -> str:
        return f"{self.prefix}:stop:{without_partition(instance_id)}"

    def buried(self, instance_id: str) -> str:
        return f"{self.stop(instance_id)}:buried"


def shard_of(instance_id: str) -> int:
    """The shard of a run, the same for its provisional and its final id."""
    return crc32(without_partition(instance_id).encode()) % SHARDS
