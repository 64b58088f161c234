"""New ids. Synchronous."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from prefactor_core.local.errors import invalid
from prefactor_core.local.resources.resource import check_account_id
from prefactor_core.local.store import Store
from prefactor_core.operations import identifiers

_MOST: Final = 1_000


class GenerateIdsBody(Struct, kw_only=True):
    """POST pfid/generate."""

    count: Annotated[int, Meta(extra_json_schema={"minimum": 1, "maximum": _MOST})] | None = None
    account_id: str | None = None


def generate_ids(store: Store, body: GenerateIdsBody) -> bytes:
    """POST pfid/generate: 1 to 1,000 PFIDs of the account's partition, one by default."""
    check_account_id(store, body.account_id)
    count = 1 if body.count is None else body.count
    if not 1 <= count <= _MOST:
        raise invalid("count", f"must be from 1 to {_MOST}, got {count}")
    pfids = [identifiers.generate_related(store.account_id) for _ in range(count)]
    return msgspec.json.encode(
        {"status": "success", "account_id": store.account_id, "pfids": pfids}
    )
