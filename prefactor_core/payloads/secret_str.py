"""SecretStr: a string that no ``repr`` shows. Pure."""

from __future__ import annotations

from typing import SupportsIndex


class SecretStr(str):
    """A secret that works as a string: ``f"Bearer {secret}"`` has its text.

    Neither its ``repr`` nor a traceback with locals shows it. Encoders of JSON that know exact
    types, as msgspec's, refuse it; in a payload it is ``"***"``.
    """

    __slots__ = ()

    MASK = "***"

    def __repr__(self) -> str:
        return repr(self.MASK)

    def __rich_repr__(self) -> list[str]:
        return [self.MASK]

    def __getitem__(self, key: SupportsIndex | slice) -> SecretStr:
        # Code that cuts long strings before it shows them (rich does) gets a secret, too.
        return SecretStr(str.__getitem__(self, key))
