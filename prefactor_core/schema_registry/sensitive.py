"""Values marked as sensitive, in the tagged form that ``POST /agent_spans`` takes. Pure."""

from __future__ import annotations

import math
from typing import Final, Literal, TypeAlias, cast, get_args

from msgspec import Struct, field

from prefactor_core.exceptions import PrefactorValueError, type_in_message

DataCategory: TypeAlias = Literal[
    "personal_identifiers",
    "contact_information",
    "financial_information",
    "health_and_medical",
    "criminal_justice",
    "authentication_and_secrets",
    "organisational_confidential",
    "minors_data",
    "location_and_tracking",
    "behavioural_and_inferred",
    "gdpr_racial_or_ethnic_origin",
    "gdpr_political_opinions",
    "gdpr_religious_or_philosophical_beliefs",
    "gdpr_trade_union_membership",
    "gdpr_genetic_data",
    "gdpr_biometric_for_identification",
    "gdpr_sex_life_or_sexual_orientation",
]
"""The kind of data that a value is; the names of the API's ``data_risk``."""

_CATEGORIES: Final = cast("tuple[DataCategory, ...]", get_args(DataCategory))


class Sensitive(Struct, frozen=True, kw_only=True):
    """A value with its data categories; made by :func:`sensitive`.

    It is recorded as ``{"$sensitive": kind, "labels": labels, "value": value}``.
    """

    kind: Literal["string", "number", "boolean"] = field(name="$sensitive")
    labels: tuple[DataCategory, ...]
    value: str | float | bool

    def __repr__(self) -> str:
        return f"<sensitive {self.kind}: {', '.join(self.labels)}>"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return [("kind", self.kind), ("labels", self.labels)]


def sensitive(value: str | float | bool, *labels: DataCategory) -> Sensitive:
    """Return ``value`` marked as sensitive, for any place in a payload or a result.

    ``labels``: its data categories, at least one. Prefactor decides which viewers see the value;
    it is recorded all the same, so use ``redact=`` for values that must not leave the program.

    Raises :class:`PrefactorValueError` for a label that is no category, and for a value that is
    no string, number or boolean; the message never shows the value.
    """
    if not labels:
        raise PrefactorValueError(
            "sensitive() needs the data categories of its value, such as "
            "sensitive(email, 'contact_information')"
        )
    for label in labels:
        _check_label(label)
    if isinstance(value, str):
        # A plain string, also of a subclass.
        return Sensitive(kind="string", labels=labels, value=str.__str__(value))
    if isinstance(value, bool):
        return Sensitive(kind="boolean", labels=labels, value=value)
    if isinstance(value, int):
        return Sensitive(kind="number", labels=labels, value=int.__int__(value))
    if isinstance(value, float) and math.isfinite(value):
        return Sensitive(kind="number", labels=labels, value=float.__float__(value))
    what = "no finite number" if isinstance(value, float) else type_in_message(value)
    raise PrefactorValueError(
        f"the value of sensitive() must be a text, a finite number or a boolean, and is {what}: "
        "mark the parts of what is larger"
    )


def _check_label(label: object) -> None:
    if label in _CATEGORIES:
        return
    from difflib import get_close_matches  # here: it takes milliseconds to import

    nearest = get_close_matches(label, _CATEGORIES, 1) if isinstance(label, str) else []
    if nearest:
        raise PrefactorValueError(
            f"{label!r} is no data category: is {nearest[0]!r} what is meant?"
        )
    # Not shown: it may be the value in the wrong place.
    raise PrefactorValueError(
        "the labels of sensitive() come after its value, and are data categories: "
        + ", ".join(_CATEGORIES)
    )


def sensitive_labels(value: object) -> str | None:
    """Return the labels of a sensitive value, ``[authentication_and_secrets]``, to be shown in its
    place; None if ``value`` is not in the tagged form."""
    if not isinstance(value, dict) or "$sensitive" not in value or "value" not in value:
        return None
    labels = cast("dict[str, object]", value).get("labels")
    texts = map(str, cast("list[object]", labels)) if isinstance(labels, list) else ()
    return f"[{', '.join(texts) or 'sensitive'}]"


def hidden(value: object) -> object:
    """Return decoded JSON with labels in place of sensitive values."""
    labels = sensitive_labels(value)
    if labels is not None:
        return labels
    if isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        return {name: hidden(item) for name, item in fields.items()}
    if isinstance(value, list):
        return [hidden(item) for item in cast("list[object]", value)]
    return value
