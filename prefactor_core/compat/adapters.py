"""The names that prefactor-langchain and prefactor-livekit use on a client and on a run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Protocol

from prefactor_core.exceptions import PrefactorTerminatedError, in_message
from prefactor_core.exceptions.log import log
from prefactor_core.exceptions.uncopyable import Uncopyable

logger = logging.getLogger("prefactor_core.compat")


def warn_missing_adaptor_config(
    instance_id: str, adaptor_name: str, create_client_call: str
) -> None:
    """Log one warning: a run was registered before an adapter could name itself on its client.

    For adapters that are given a run. The API does not learn then that the adapter records it.
    ``adaptor_name``: the adapter, such as ``middleware``. ``create_client_call``: the call that
    makes a client which names it from the start.
    """
    message = (
        "agent instance %s was registered before the %s could name itself on the client: make the "
        "client by %s, and the agent instance after that"
    )
    call = create_client_call if type(create_client_call) is str else in_message(create_client_call)
    log(logger, logging.WARNING, message, in_message(instance_id), in_message(adaptor_name), call)


class Terminated(BaseExceptionGroup[PrefactorTerminatedError]):
    """A :class:`~prefactor_core.PrefactorTerminatedError` that ``except Exception`` does not catch.

    A synchronous call of LangChain, such as ``graph.invoke()``, swallows every ``Exception`` of an
    asynchronous callback handler. So it raises this group of one error. The scope of the run raises
    the error itself; where there is none, ``except* PrefactorTerminatedError`` catches it.
    """

    def derive(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        self, excs: Sequence[PrefactorTerminatedError], /
    ) -> Terminated:
        """The same kind of group, when ``except*`` or a task group divides it."""
        return Terminated(self.message, excs)


def _is_swallowed() -> bool:
    """Whether LangChain swallows what the running callback handler raises, if an ``Exception``."""
    frame: FrameType | None = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        # It runs the coroutines of asynchronous handlers for synchronous calls.
        if frame.f_code.co_name == "_run_coros":
            return frame.f_globals.get("__name__") == "langchain_core.callbacks.manager"
        frame = frame.f_back
    return False


class TerminationMonitor:
    """The termination of one run, by the names of 0.5.3. Read-only, for any thread.

    ``reason``: returns the reason of the termination, or None.
    """

    def __init__(self, reason: Callable[[], str | None]) -> None:
        self._reason = reason

    @property
    def termination_reason(self) -> str | None:
        """Why the API has terminated the run; None if it has not."""
        return self._reason()

    def get_termination_event(self) -> TerminationMonitor:
        """This object, which has the one method of an event that adapters call."""
        return self

    def is_set(self) -> bool:
        """Whether the API has terminated the run.

        Raises :class:`Terminated` then, if the caller's own error would be swallowed.
        """
        reason = self._reason()
        if reason is not None and _is_swallowed():
            error = PrefactorTerminatedError(reason)
            raise Terminated("Prefactor has terminated the run", [error])
        return reason is not None


class _Termination(Protocol):
    @property
    def reason(self) -> str | None: ...


class _Client(Protocol):
    @property
    def is_open(self) -> bool: ...

    @property
    def sdk_header_entry(self) -> str | None: ...

    def set_sdk_header_entry(self, entry: str | None) -> None: ...

    @property
    def termination(self) -> _Termination: ...


class _Run(Protocol):
    @property
    def client(self) -> object: ...

    @property
    def terminated(self) -> str | None: ...


class ClientAliases:
    """The private names of a client. (``_config`` is the client's own attribute.)"""

    @property
    def _initialized(self: _Client) -> bool:
        return self.is_open

    @property
    def _sdk_header_entry(self: _Client) -> str | None:
        return self.sdk_header_entry

    def _set_sdk_header_entry(self: _Client, sdk_header_entry: str | None) -> None:
        self.set_sdk_header_entry(sdk_header_entry)

    @property
    def _termination_monitor(self: _Client) -> TerminationMonitor:
        # The run is chosen here: an adapter that keeps a method of the monitor asks about the run
        # that it has just started, also where that is not the current one.
        termination = self.termination
        return TerminationMonitor(lambda: termination.reason)


class RunAliases:
    """The private name of a run. ``_initialized`` is none: adapters know a client by it."""

    @property
    def _client(self: _Run) -> object:
        return _ClientOfRun(self)


class _ClientOfRun(Uncopyable):
    """The client of a run, except that its termination monitor is that of this run.

    A callback handler has a run, and asks the run's client whether to stop. The client would
    answer for the run of the calling context, which may be another one.
    """

    _kind = "a client in this process"

    def __init__(self, run: _Run) -> None:
        self._run = run

    @property
    def _termination_monitor(self) -> TerminationMonitor:
        run = self._run
        return TerminationMonitor(lambda: run.terminated)

    def __getattr__(self, name: str) -> object:
        return getattr(self._run.client, name)
