"""Live: an object that exists once, in one process, and is passed by reference."""

from __future__ import annotations

from typing import ClassVar, NoReturn

from prefactor_core.exceptions import PrefactorTypeError


class Live:
    """A base of classes that can be neither copied nor pickled. ``_what``: the object, in a few
    words of the error."""

    __slots__ = ()

    _what: ClassVar[str]

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        # Both copy and pickle call this.
        by_id = ", or its id where that is not possible" if hasattr(type(self), "id") else ""
        raise PrefactorTypeError(
            f"{type(self).__qualname__} is {self._what}, and can be neither copied nor pickled: "
            f"hand on the object itself{by_id}, and leave it out of what is copied or stored"
        )
