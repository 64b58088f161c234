"""DataRisk: the actions of a span type and the data that it touches, for the risk score. Pure.

The names are those of ``data_risk`` in ``POST /agent_instance/register``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias, cast

import msgspec
from msgspec import Struct, field

from prefactor_core.exceptions import PrefactorValueError, in_message

Permission: TypeAlias = Literal["unknown", "allowed", "disallowed"]
Presence: TypeAlias = Literal["unknown", "included", "excluded"]
Classification: TypeAlias = Literal[
    "unknown", "public", "internal", "confidential", "restricted", "secret"
]

# The part of a message of msgspec that quotes the given value.
_GIVEN: Final = r"(?s)(?<= (?:field|value) [`']).*?(?=[`'](?: - at `\$.*`)?\Z)"


class ActionProfile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The actions that a step may take."""

    create_data: Permission = "unknown"
    read_data: Permission = "unknown"
    update_data: Permission = "unknown"
    destroy_data: Permission = "unknown"
    financial_transactions: Permission = "unknown"
    external_communication: Permission = "unknown"


class DataCategories(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The kinds of data in a payload or result, and how confidential it is."""

    personal_identifiers: Presence = "unknown"
    contact_information: Presence = "unknown"
    financial_information: Presence = "unknown"
    health_and_medical: Presence = "unknown"
    criminal_justice: Presence = "unknown"
    authentication_and_secrets: Presence = "unknown"
    organisational_confidential: Presence = "unknown"
    minors_data: Presence = "unknown"
    location_and_tracking: Presence = "unknown"
    behavioural_and_inferred: Presence = "unknown"
    gdpr_racial_or_ethnic_origin: Presence = "unknown"
    gdpr_political_opinions: Presence = "unknown"
    gdpr_religious_or_philosophical_beliefs: Presence = "unknown"
    gdpr_trade_union_membership: Presence = "unknown"
    gdpr_genetic_data: Presence = "unknown"
    gdpr_biometric_for_identification: Presence = "unknown"
    gdpr_sex_life_or_sexual_orientation: Presence = "unknown"
    classification: Classification = "unknown"


class DataRisk(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The risk of a span type: its actions, and the data in its parameters and results.

    The default of every field is ``unknown``.
    """

    action_profile: ActionProfile = field(default_factory=ActionProfile)
    params_data_categories: DataCategories = field(default_factory=DataCategories)
    result_data_categories: DataCategories = field(default_factory=DataCategories)


def data_risk_json(name: str, data_risk: DataRisk | Mapping[str, object]) -> dict[str, Any]:
    """Return ``data_risk`` in the form of the API, with every field.

    Raises :class:`PrefactorValueError` for anything but a :class:`DataRisk` or a mapping of its
    fields.
    """
    checked: DataRisk | None = None
    problem = ""
    try:
        # A DataRisk is checked, too: msgspec does not check what its fields are given.
        checked = msgspec.convert(msgspec.to_builtins(data_risk), DataRisk)
    except (TypeError, ValueError, msgspec.ValidationError) as error:
        problem = re.sub(_GIVEN, lambda found: in_message(found[0]).strip("'"), str(error))
    if checked is None:
        raise PrefactorValueError(
            f"data_risk of {name!r} is no DataRisk, nor a mapping of its fields: {problem}"
        )
    return cast("dict[str, Any]", msgspec.to_builtins(checked))
