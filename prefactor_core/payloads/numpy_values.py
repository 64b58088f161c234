"""Arrays and numbers of numpy, which is not imported here. Pure."""

# Values of any type come here.
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import msgspec

from prefactor_core.payloads.markers import full_type_name
from prefactor_core.payloads.payload_walk import Around, Walk


def array_of_numpy(walk: Walk, value: Any, around: Around) -> object:
    if 2 * value.size <= walk.limit:
        if value.dtype.kind in "mM" and value.ndim:
            return walk.listed(list(value), around)
        items = value.tolist()
        if value.dtype.kind not in "biuf":
            named = _by_name(value.dtype, items)
            return walk.enter(value, around, lambda inner: walk.plain(named, inner))
        if walk.fits(items):
            return items
    walk.lose("truncated")
    return f"<{full_type_name(type(value))} {value.dtype} {value.shape}>"


def _by_name(dtype: Any, item: Any) -> object:
    """Return records of numpy, which are tuples, as dicts by the names of their fields."""
    if dtype.subdtype is not None:
        dtype = dtype.subdtype[0]
    if dtype.names is None:
        return item
    if type(item) is not tuple and isinstance(item, Iterable):  # a list, or an array inside
        return [_by_name(dtype, part) for part in item]
    # One record: itself or a tuple.
    return {name: _by_name(dtype[name], part) for name, part in zip(dtype.names, item, strict=True)}


def scalar_of_numpy(walk: Walk, value: Any, around: Around) -> object:
    if value.dtype.kind in "mM":
        return _time(value)
    item: Any = _by_name(value.dtype, value.item())
    # The widest numbers have no counterpart in Python.
    return float(item) if type(item) is type(value) else walk.plain(item, around)


def _time(value: Any) -> str | None:
    text = str(value)
    if text == "NaT":
        return None
    if value.dtype.kind == "M":
        return text
    return cast("str", msgspec.to_builtins(value.astype("timedelta64[us]").item()))
