"""PayloadChecks: recorded payloads compared with the schemas of their run, in development."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import msgspec
from msgspec import Raw

from prefactor_core.exceptions import PrefactorValueError, with_article
from prefactor_core.exceptions.log import log
from prefactor_core.schema_registry.schema_check import SchemaCheck

logger = logging.getLogger("prefactor_core.schema_registry.payload_check")

_REPORTED_KEPT = 1_000
_VERSIONS_KEPT = 16


class PayloadChecks:
    """Makes the checks of a client's runs.

    ``raises``: a problem raises :class:`PrefactorValueError`; otherwise it is logged, each problem
    once. The constructor raises that error if the extra ``check`` is not installed.
    """

    def __init__(self, *, raises: bool) -> None:
        self._raises = raises
        self._reported: set[tuple[str, ...]] = set()
        self._known: list[tuple[Mapping[str, object], SchemaCheck]] = [({}, SchemaCheck({}))]

    def of(self, agent_schema_version: Mapping[str, object]) -> PayloadCheck:
        """Return the check of a run with these span types."""
        # The runs of a program share one version, or a few.
        for version, schemas in self._known:
            if version == agent_schema_version:
                return PayloadCheck(self, schemas)
        schemas = SchemaCheck(agent_schema_version)
        self._known = [(agent_schema_version, schemas), *self._known[: _VERSIONS_KEPT - 1]]
        return PayloadCheck(self, schemas)

    def report(self, what: str, problems: Sequence[str], *, is_registered: bool = True) -> None:
        """Raise or log the ``problems`` of ``what``, if there are any.

        ``is_registered``: whether there is a schema. If not, that is the only problem.
        """
        if not problems:
            return
        message = "; ".join(problems)
        if is_registered:
            message = f"{what} does not fit its schema: {message}"
        if self._raises:
            raise PrefactorValueError(message)
        # Known by the fields: values differ each time.
        fields = what, *(problem.partition(":")[0] for problem in problems)
        if fields not in self._reported and len(self._reported) < _REPORTED_KEPT:
            self._reported.add(fields)
            log(logger, logging.WARNING, "%s", message)


class PayloadCheck:
    """Checks the payloads of one run as they are recorded."""

    def __init__(self, checks: PayloadChecks, schemas: SchemaCheck) -> None:
        self._checks = checks
        self._schemas = schemas

    def payload(self, schema_name: str, payload: Raw) -> None:
        """Check the payload that a span starts with."""
        problems = _problems(self._schemas.payload, schema_name, payload)
        what = f"the payload of {with_article(repr(schema_name))} span"
        self._checks.report(what, problems, is_registered=self._schemas.has_type(schema_name))

    def result(self, schema_name: str, result: Raw) -> None:
        """Check the result of a complete span."""
        problems = _problems(self._schemas.result, schema_name, result)
        self._checks.report(f"the result of {with_article(repr(schema_name))} span", problems)

    def quality(self, name: str, payload: Raw) -> None:
        """Check a quality payload of the run."""
        problems = _problems(self._schemas.quality, name, payload)
        what = f"the quality payload {name!r}"
        self._checks.report(what, problems, is_registered=self._schemas.has_quality(name))


def _problems(
    check: Callable[[str, object], Sequence[str]], name: str, recorded: Raw
) -> Sequence[str]:
    try:
        value: object = msgspec.json.decode(recorded)
    except msgspec.DecodeError as error:  # a Raw of the user's in it is no JSON
        return [f"what is recorded: is no JSON: {error}"]
    return check(name, value)
