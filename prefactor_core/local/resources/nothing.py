"""The kinds of objects that this server has none of: clients list them all the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from prefactor_core.local.errors import not_found
from prefactor_core.local.pagination import page_of
from prefactor_core.local.resources.resource import check_account_id
from prefactor_core.local.store import Store

EMPTY_KINDS: Final = (
    "account_integration",
    "admin_user",
    "admin_user_invite",
    "alerts",
    "integration",
    "person",
    "risk_profile",
    "team",
)


def list_nothing(store: Store, query: Mapping[str, str]) -> bytes:
    """GET {kind}: an empty page."""
    check_account_id(store, query.get("account_id"))
    # No row of any table has this id.
    page = page_of(store, "account", {"id = ?": ""}, query, dict, ("id", "name"))
    return msgspec.json.encode(page)


def get_nothing(kind: str, id: str) -> bytes:
    """GET {kind}/{id}: not found."""
    raise not_found(kind.removesuffix("s").replace("_", " "), id)


def count_alerts() -> bytes:
    """GET alerts/count."""
    return msgspec.json.encode({"status": "success", "count": 0})
