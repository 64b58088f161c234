"""SecretStr: a text that is shown to nobody who does not ask for it. Pure."""

from __future__ import annotations

from typing import SupportsIndex


class SecretStr(str):
    """A secret, as the text that it is for all who use it: ``f"Bearer {secret}"``.

    Its ``repr`` does not show it, nor a traceback with locals. Encoders of JSON that know exact
    types, msgspec's say, refuse it; in a payload it is ``"***"``.
    """

    __slots__ = ()

    MASK = "***"

    def __repr__(self) -> str:
        return repr(self.MASK)

    def __rich_repr__(self) -> list[str]:
        return [self.MASK]

    def __getitem__(self, key: SupportsIndex | slice) -> SecretStr:
        # What cuts long texts before it shows them (rich does) gets a secret, too.
        return SecretStr(str.__getitem__(self, key))
