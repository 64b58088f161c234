"""DataRisk: what a span type does and which data it touches, for the risk score. Pure.

API.md section 9; the names are the service's.
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

# What msgspec shows of what it was given.
_GIVEN: Final = r"(?s)(?<= (?:field|value) [`']).*?(?=[`'](?: - at `\$.*`)?\Z)"


class ActionProfile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a step may do."""

    create_data: Permission = "unknown"
    read_data: Permission = "unknown"
    update_data: Permission = "unknown"
    destroy_data: Permission = "unknown"
    financial_transactions: Permission = "unknown"
    external_communication: Permission = "unknown"


class DataCategories(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which kinds of data are in a payload or result, and how confidential that is."""

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
    """The risk of a span type: what it may do, and the data on both of its ends.

    What is not said is ``unknown``.
    """

    action_profile: ActionProfile = field(default_factory=ActionProfile)
    params_data_categories: DataCategories = field(default_factory=DataCategories)
    result_data_categories: DataCategories = field(default_factory=DataCategories)


def data_risk_json(name: str, data_risk: DataRisk | Mapping[str, object]) -> dict[str, Any]:
    """As the API takes it: every part, and every name in it.

    Raises :class:`PrefactorValueError` for what is no :class:`DataRisk`, nor a mapping of its
    fields.
    """
    checked: DataRisk | None = None
    problem = ""
    try:
        # Also a DataRisk is looked at: what its fields were given, nobody has checked.
        checked = msgspec.convert(msgspec.to_builtins(data_risk), DataRisk)
    except (TypeError, ValueError, msgspec.ValidationError) as error:
        problem = re.sub(_GIVEN, lambda found: in_message(found[0]).strip("'"), str(error))
    if checked is None:
        raise PrefactorValueError(
            f"data_risk of {name!r} is no DataRisk, nor a mapping of its fields: {problem}"
        )
    return cast("dict[str, Any]", msgspec.to_builtins(checked))
