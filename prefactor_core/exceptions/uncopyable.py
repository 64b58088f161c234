"""Uncopyable: the base of objects that exist once, in one process."""

from __future__ import annotations

from typing import ClassVar, NoReturn

from prefactor_core.exceptions import PrefactorTypeError


class Uncopyable:
    """A base of classes that can be neither copied nor pickled.

    ``_kind``: the object, in a few words for the error.
    """

    __slots__ = ()

    _kind: ClassVar[str]

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        # Both copy and pickle call this.
        by_id = ", or its id where that is not possible" if hasattr(type(self), "id") else ""
        raise PrefactorTypeError(
            f"{type(self).__qualname__} is {self._kind}, and can be neither copied nor pickled: "
            f"pass on the object itself{by_id}, and leave it out of copies and storage"
        )
