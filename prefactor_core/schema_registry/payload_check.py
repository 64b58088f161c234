"""PayloadChecks: what is recorded, held against the schemas of its run, in development. Pure."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import msgspec
from msgspec import Raw

from prefactor_core.exceptions import PrefactorValueError
from prefactor_core.exceptions.log import log
from prefactor_core.schema_registry.schema_check import SchemaCheck

logger = logging.getLogger("prefactor_core.schema_registry.payload_check")

_TOLD_KEPT = 1_000
_VERSIONS_KEPT = 16


class PayloadChecks:
    """Makes the checks of a client's runs.

    ``raises``: what does not fit is a :class:`PrefactorValueError`; else it is logged, each
    problem once. Raises that error too if the extra ``check`` is not installed.
    """

    def __init__(self, *, raises: bool) -> None:
        self._raises = raises
        self._told: set[tuple[str, ...]] = set()
        self._known: list[tuple[Mapping[str, object], SchemaCheck]] = [({}, SchemaCheck({}))]

    def of(self, agent_schema_version: Mapping[str, object]) -> PayloadCheck:
        """The check of a run with these span types."""
        # The runs of a program have the same, or take turns with a few.
        for version, schemas in self._known:
            if version == agent_schema_version:
                return PayloadCheck(self, schemas)
        schemas = SchemaCheck(agent_schema_version)
        self._known = [(agent_schema_version, schemas), *self._known[: _VERSIONS_KEPT - 1]]
        return PayloadCheck(self, schemas)

    def tell(self, what: str, problems: Sequence[str]) -> None:
        """Raise or log ``problems`` of ``what``, if there are any."""
        if not problems:
            return
        message = f"{what} does not fit its schema: {'; '.join(problems)}"
        if self._raises:
            raise PrefactorValueError(message)
        # By the fields: values are others each time.
        fields = what, *(problem.partition(":")[0] for problem in problems)
        if fields not in self._told and len(self._told) < _TOLD_KEPT:
            self._told.add(fields)
            log(logger, logging.WARNING, "%s", message)


class PayloadCheck:
    """Looks at what is recorded of one run, as it is recorded."""

    def __init__(self, checks: PayloadChecks, schemas: SchemaCheck) -> None:
        self._checks = checks
        self._schemas = schemas

    def payload(self, schema_name: str, payload: Raw) -> None:
        """What a span starts with."""
        problems = _problems(self._schemas.payload, schema_name, payload)
        self._checks.tell(f"the payload of a {schema_name!r} span", problems)

    def result(self, schema_name: str, result: Raw) -> None:
        """What a span that is complete results in."""
        problems = _problems(self._schemas.result, schema_name, result)
        self._checks.tell(f"the result of a {schema_name!r} span", problems)

    def quality(self, name: str, payload: Raw) -> None:
        """What is told about the quality of the run."""
        problems = _problems(self._schemas.quality, name, payload)
        self._checks.tell(f"the quality payload {name!r}", problems)


def _problems(
    check: Callable[[str, object], Sequence[str]], name: str, recorded: Raw
) -> Sequence[str]:
    try:
        value: object = msgspec.json.decode(recorded)
    except msgspec.DecodeError as error:  # there is a Raw in it that is not what it says
        return [f"what is recorded: is no JSON: {error}"]
    return check(name, value)
