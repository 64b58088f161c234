"""The journal of a client: opened with its scope."""

from __future__ import annotations

import logging
import os
import socket
from functools import partial
from pathlib import Path
from weakref import proxy

from prefactor_core.client.runtime_environment import SDK
from prefactor_core.config import PrefactorCoreConfig
from prefactor_core.config.http import LOCAL_PREFIX
from prefactor_core.config.redis import RedisAddress, is_redis, without_password
from prefactor_core.exceptions.log import log
from prefactor_core.export.adoption import Adoption
from prefactor_core.export.carrier import Carrier
from prefactor_core.export.exporter import Exporter
from prefactor_core.journal.base import NO_JOURNAL, Journal
from prefactor_core.journal.directory import Hold, JournalDirectory
from prefactor_core.journal.format import VERSION, Header
from prefactor_core.journal.heartbeat import Heartbeat
from prefactor_core.journal.writer import JournalWriter
from prefactor_core.queue.event_loop import EventLoop
from prefactor_core.recording.instance_manager import AgentInstanceManager
from prefactor_core.recording.journal_state import journal_state
from prefactor_core.recording.recorder import Recorder

logger = logging.getLogger("prefactor_core.journal")


def open_journal(config: PrefactorCoreConfig, event_loop: EventLoop) -> Journal:
    """Open the journal that ``config`` asks for.

    If none can be made (a full disk, a folder that cannot be written), a warning says so, and the
    client goes on in memory. Raises :class:`PrefactorValueError` if the folder is one that others
    can use, or no folder.
    """
    directory = JournalDirectory(config.journal or "")
    try:
        directory.open()
        hold = directory.create()
        try:
            return _writer(config, hold, event_loop)
        except BaseException:
            hold.remove()
            raise
    except OSError as error:
        message = (
            "there is no journal in %s (%s): what this client records is in memory only. Make the "
            "folder one that can be written, and open the client again"
        )
        log(logger, logging.WARNING, message, directory.path, error)
        return NO_JOURNAL


def _writer(config: PrefactorCoreConfig, hold: Hold, event_loop: EventLoop) -> JournalWriter:
    return JournalWriter(
        hold,
        header(config),
        event_loop.lock,
        event_loop.run_soon,
        max_bytes=config.journal_max_bytes,
        synchronise=os.fdatasync if config.journal_sync == "disk" else None,
    )


def keep(
    config: PrefactorCoreConfig,
    journal: Journal,
    carrier: Carrier,
    exporter: Exporter,
    instances: AgentInstanceManager,
    recorder: Recorder,
) -> None:
    """Make the exporter care for an open journal, and adopt those of dead processes beside it;
    before the exporter is entered."""
    directory = JournalDirectory(config.journal or "")
    exporter.run_also(
        Adoption(
            directory,
            api_name(config.http_config.api_url),
            carrier,
            exporter.breaker,
            exporter.sender.limits,
            config.queue_config,
            exporter.counters,
            exporter.event_loop,
        )
    )
    if isinstance(journal, JournalWriter):
        # A proxy: the journal must not keep its client alive.
        journal.state = partial(
            journal_state, proxy(instances), recorder.index, exporter.identities
        )
        exporter.run_also(Heartbeat(journal))


def header(config: PrefactorCoreConfig) -> Header:
    """The first record of each file of a journal that this process writes."""
    return Header(
        version=VERSION,
        api_url=api_name(config.http_config.api_url),
        host=socket.gethostname(),
        process=os.getpid(),
        sdk=SDK,
    )


def api_name(api_url: str) -> str:
    """The address by which journals know an API: of a local file with its whole path, of a Redis
    server with the prefix and without user and password."""
    if is_redis(api_url):
        address = RedisAddress.parse(without_password(api_url)[0])
        return f"{address}?db={address.database}&prefix={address.prefix}"
    if not api_url.startswith(LOCAL_PREFIX):
        return api_url.rstrip("/")
    return f"{LOCAL_PREFIX}{Path(api_url.removeprefix(LOCAL_PREFIX)).resolve()}"
