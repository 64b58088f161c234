"""Live: an object that there is once, in one process, and that is handed on by reference."""

from __future__ import annotations

from typing import ClassVar, NoReturn

from prefactor_core.exceptions import PrefactorTypeError


class Live:
    """Can be neither copied nor pickled, and says what it is. ``_what``: that, in a few words."""

    __slots__ = ()

    _what: ClassVar[str]

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        # Whatever copies or pickles comes here.
        by_id = ", or its id where that is not possible" if hasattr(type(self), "id") else ""
        raise PrefactorTypeError(
            f"{type(self).__qualname__} is {self._what}, and can be neither copied nor pickled: "
            f"hand on the object itself{by_id}, and leave it out of what is copied or stored"
        )
