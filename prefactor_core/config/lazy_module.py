"""LazyModule: a module that only annotations name, imported when somebody evaluates them.

``inspect.signature(f, eval_str=True)``, ``typing.get_type_hints`` and frameworks that are built on
them look for every name of an annotation in the globals of its module. What would cost time to
import, or is of a floor above, stands there as a :class:`LazyModule`, for type checkers as the
module itself.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


class LazyModule(ModuleType):
    """Stands for the module of this name; any attribute of it imports that."""

    def __getattr__(self, name: str) -> object:
        return getattr(import_module(self.__name__), name)
