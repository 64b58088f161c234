"""The commands about journals: ``journal ls | show | replay | discard [DIR]``."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from prefactor_core.api.client import ApiClient
from prefactor_core.cli.journal_contents import Contents, damaged_files, document, read
from prefactor_core.cli.journal_folder import GONE, IN_USE, is_in_use, journals, take
from prefactor_core.cli.journal_replay import Delivery, Outcome
from prefactor_core.cli.journal_tables import print_contents, print_journals
from prefactor_core.cli.terminal import errors_in_one_line, print_json, progress, run, say
from prefactor_core.cli.texts import one_line
from prefactor_core.client.journaling import api_name
from prefactor_core.client.route import open_carrier
from prefactor_core.config import PrefactorCoreConfig
from prefactor_core.config.http import LOCAL_PREFIX
from prefactor_core.config.redis import is_redis
from prefactor_core.exceptions import (
    PrefactorApiError,
    PrefactorCoreError,
    PrefactorServerError,
    PrefactorUnreachableError,
    PrefactorValueError,
)
from prefactor_core.journal.directory import REFUSED_NAME
from prefactor_core.journal.reader import (
    JournalReader,
    JournalUnreadableError,
    asides,
    read_header,
)
from prefactor_core.relay.carrier import RedisCarrier


@click.group()
def journal() -> None:
    """Look at journals, deliver what they hold, or remove them.

    DIR is the folder that open_prefactor(journal=DIR) names; by default, PREFACTOR_JOURNAL. It has
    a journal for each process that recorded there. NAME is the name of one of them, or its
    beginning; it needs DIR before it.
    """
    if sys.platform == "win32":
        raise click.ClickException(
            "journals need the file locks of Unix, which this system does not have: copy DIR to a "
            "system that has them"
        )


_directory = click.argument("directory", metavar="[DIR]", envvar="PREFACTOR_JOURNAL", default="")
_name = click.argument("name", metavar="[NAME]", default="")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for a program.")


@journal.command("ls")
@_directory
@_json
def list_journals(directory: str, as_json: bool) -> None:
    """List journals: who wrote them, how much they hold."""
    found = [contents for contents, _ in _read(journals(directory))]
    if as_json:
        print_json(iter(found))
    elif found:
        print_journals(found)
    else:
        say(f"there is no journal in {directory}")


@journal.command("show")
@_directory
@_name
@_json
@click.option("--payloads", is_flag=True, help="Show payloads and results, too.")
def show_journals(directory: str, name: str, as_json: bool, payloads: bool) -> None:
    """Show what is pending, refused, and open.

    Pending are operations that are not delivered. In the column "sent", "yes" is one that the API
    may have; "changed" is one, too, but without a part that the API refused.

    Refused are operations that the API did not take, with its reason.

    Open are runs and spans that have not ended. A span that is "not reported yet" was opened, and
    no operation of it is recorded.
    """
    found = _read(journals(directory, name))
    is_empty = True
    with errors_in_one_line():
        if as_json:
            print_json(document(contents, reader, payloads) for contents, reader in found)
            return
        for contents, reader in found:
            is_empty = False
            print_journals([contents])
            print_contents(contents, document(contents, reader, payloads))
    if is_empty:
        say(f"there is no journal in {directory}")


@journal.command("discard")
@_directory
@_name
@click.option("--refused", "only_refused", is_flag=True, help="Discard only what was refused.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def discard_journals(directory: str, name: str, only_refused: bool, yes: bool) -> None:
    """Delete journals of dead processes; asks before.

    All that they hold is deleted with them. Journals of living processes are left alone.
    """
    paths = journals(directory, name)
    found: dict[Path, Contents] = {}
    for path in paths:
        held = take(path)
        if isinstance(held, str):
            _leave_alone(path, held, is_named=bool(name))
            continue
        try:
            contents, _ = _read_one(path, in_use=False)
        finally:
            held.release()
        if contents.refused or not only_refused:
            found[path] = contents
    if not found:
        say(f"there is nothing to discard in {directory}")
        return
    print_journals(list(found.values()))
    _ask(found.values(), only_refused, yes)
    for path, contents in found.items():
        held = take(path)
        if isinstance(held, str):
            _leave_alone(path, held, is_named=bool(name))
            continue
        try:
            if only_refused:
                (path / REFUSED_NAME).unlink(missing_ok=True)
            if not only_refused or contents.has_only_refused:
                held.remove()
        except OSError as error:
            raise click.ClickException(f"{path} cannot be deleted: {error.strerror}") from None
        finally:
            held.release()
        if path.exists() and not only_refused:
            raise click.ClickException(f"{path} cannot be deleted: is its folder read-only?")


@journal.command("replay")
@_directory
@_name
@click.option(
    "--api-url",
    help="The API to send to. Default: PREFACTOR_API_URL, for journals of that address; a local: "
    "journal goes to its own file.",
)
@click.option("--refused", "also_refused", is_flag=True, help="Send what was refused once more.")
def replay_journals(directory: str, name: str, api_url: str | None, also_refused: bool) -> None:
    """Deliver what dead processes left in DIR.

    Runs and spans that they left open end as failed. PREFACTOR_API_TOKEN is the token; it goes to
    no server but PREFACTOR_API_URL, or --api-url. What is delivered is deleted. If the API gives a
    run another id, a line says so: "run OLD is NEW".

    The exit code is 1 if anything stays, except journals of living processes: they are left alone,
    and only to give the NAME of one is an error.
    """
    is_done = True
    by_api: dict[str, list[Path]] = defaultdict(list)
    for path in journals(directory, name):
        if not any(path.glob("*.log" if also_refused else "[0-9]*.log")):
            is_done = (is_in_use(path) is True or _nothing_stays(path)) and is_done
            continue
        try:
            by_api[api_url or _api_of(path)].append(path)
        except PrefactorCoreError as error:
            _leave_alone(path, str(error), is_named=bool(name))
            is_done = False
    if not by_api and is_done:
        say(f"there is nothing to replay in {directory}")
    for url, paths in by_api.items():
        try:
            is_done = run(_replay, url, paths, also_refused, bool(name)) and is_done
        except click.ClickException as error:
            error.show()
            is_done = False
    if not is_done:
        raise click.exceptions.Exit(1)


def _api_of(path: Path) -> str:
    """The address of the API that a journal is for.

    Raises :class:`PrefactorValueError` for a server that the user has not named: a journal of a
    stranger must not be able to name the one that gets the token.
    """
    header = read_header(path)
    if header is None:
        raise PrefactorValueError("its API is not known: give --api-url")
    file = header.api_url.removeprefix(LOCAL_PREFIX)
    if file != header.api_url and not Path(file).exists():
        # It may be on another machine; and opening it here would make it.
        raise PrefactorValueError(f"there is no database {file!r}: give --api-url")
    known = os.environ.get("PREFACTOR_API_URL", "").strip()
    if file == header.api_url and header.api_url != (known and api_name(known)):
        problem = f"PREFACTOR_API_URL is {'another one' if known else 'not set'}"
        raise PrefactorValueError(
            f"it is for {header.api_url}, and {problem}: to send it there, with your token, give "
            f"--api-url {header.api_url}"
        )
    # That of a Redis server may have a password.
    return known if is_redis(header.api_url) else header.api_url


async def _replay(api_url: str, paths: list[Path], also_refused: bool, is_named: bool) -> bool:
    """Deliver journals to an API; return whether nothing stays."""
    config = PrefactorCoreConfig.from_env(api_url=api_url)
    is_done = True
    async with open_carrier(config.http_config) as carrier:
        await _check_answers(carrier, len(paths))
        delivery = Delivery(carrier, config)
        for path in paths:
            is_done = await _deliver(delivery, path, also_refused, is_named) and is_done
    return is_done


async def _check_answers(carrier: ApiClient | RedisCarrier, count: int) -> None:
    """Raise what the API answers instead of a greeting; ``count``: of the journals for it."""
    try:
        await carrier.ping()
    except PrefactorApiError as error:
        message = f"{error}; nothing was sent, {_count(count, 'journal')} stay"
        message += "s" if count == 1 else ""
        if isinstance(error, PrefactorUnreachableError | PrefactorServerError):
            message += ": try again later"
        raise click.ClickException(message) from None


async def _deliver(delivery: Delivery, path: Path, also_refused: bool, is_named: bool) -> bool:
    """Deliver a journal; return whether nothing stays, or it is left alone."""
    outcome = Outcome()
    # What was refused comes last: the rest of a refused run is set aside first, to be in order.
    for with_refused in (False, True) if also_refused else (False,):
        if with_refused and not (path / REFUSED_NAME).exists():
            break
        held = take(path)
        if isinstance(held, str):
            _leave_alone(path, held, is_named=is_named)
            return held in (IN_USE, GONE)
        try:
            with progress(f"sending {path.stem}") as on_progress:
                outcome = await delivery.deliver(held, on_progress, with_refused=with_refused)
        finally:
            held.release()
        if outcome != Outcome():
            say(_sentence(path, outcome, delivery.api_url))
        for instance_id, api_id in outcome.run_ids.items():
            say(one_line(f"run {instance_id} is {api_id}"))
        if outcome.error is not None:
            return False
    return _nothing_stays(path, outcome.refused) and not outcome.refused


def _sentence(path: Path, outcome: Outcome, api_url: str) -> str:
    said = f"{path.stem}: {_count(outcome.delivered, 'operation')} delivered to {api_url}"
    if outcome.refused:
        said += f", {outcome.refused} refused: 'journal show {path.parent}' has the reasons"
    if outcome.error is not None:
        said += f", {outcome.left or 'the rest'} left: {outcome.error}"
    return one_line(said)


def _nothing_stays(path: Path, refused_now: int = 0) -> bool:
    """Whether a journal in which nothing is pending has no files for a person; say which it has.

    ``refused_now``: how many operations were refused just now, which is said already.
    """
    discard = f"'journal discard {path.parent} {path.stem}'"
    stays: list[str] = []
    try:
        refused = sum(1 for _ in asides(path)) - refused_now
        if refused > 0:
            verb = "stays" if refused == 1 else "stay"
            stays.append(f"{_count(refused, 'refused operation')} {verb}: give --refused")
    except JournalUnreadableError as error:
        stays.append(str(error))
    if damaged := damaged_files(path):
        stays.append(
            f"what could be read of {', '.join(damaged)} is delivered: {discard} removes the rest"
        )
    for what in stays:
        say(one_line(f"nothing is pending in {path.stem}; {what}"))
    return not stays


def _read(paths: Iterable[Path]) -> Iterator[tuple[Contents, JournalReader]]:
    for path in paths:
        found = _read_one(path, is_in_use(path))
        if path.exists():  # else its process has just ended, or another one has delivered it
            yield found


def _read_one(path: Path, in_use: bool | str) -> tuple[Contents, JournalReader]:
    with progress(f"reading {path.stem}") as on_progress:
        return read(path, in_use, on_progress)


def _leave_alone(path: Path, why: str, *, is_named: bool) -> None:
    message = one_line(f"{path.stem} is left alone, because {why}")
    if is_named:
        raise click.ClickException(message)
    say(message)


def _ask(found: Iterable[Contents], only_refused: bool, yes: bool) -> None:
    """Return if the user agrees that the journals are deleted."""
    contents = list(found)
    refused = _count(sum(each.refused for each in contents), "refused operation")
    pending = _count(sum(each.pending for each in contents), "pending operation")
    runs = _count(sum(each.open_runs for each in contents), "open run")
    spans = _count(sum(each.open_spans for each in contents), "open span")
    unreadable = sum(each.problem is not None for each in contents)
    what = _count(len(contents) - unreadable, "journal")
    what += f" with {pending}, {refused}, {runs} and {spans}"
    what += f", and {unreadable} that cannot be read" if unreadable else ""
    try:
        if yes or click.confirm(f"Delete {refused if only_refused else what}?", err=True):
            return
    except click.Abort:
        raise click.ClickException("nothing is deleted: answer y, or give --yes") from None
    click.echo("nothing is deleted", err=True)
    raise click.exceptions.Exit(1)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
