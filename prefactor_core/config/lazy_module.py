"""LazyModule: a module that only annotations name, imported when they are evaluated.

``inspect.signature(f, eval_str=True)``, ``typing.get_type_hints`` and frameworks built on them
look up every name of an annotation in the globals of its module. A module that takes time to
import, or lies on a floor above, stands there as a :class:`LazyModule`; type checkers see the
module itself.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


class LazyModule(ModuleType):
    """Stands for the module of this name; reading any attribute imports the module."""

    def __getattr__(self, name: str) -> object:
        return getattr(import_module(self.__name__), name)
