"""The description of an exception that ended a span or a run: bounded text, made once.

The innermost span describes an exception. The spans around it, which the exception leaves later,
reuse the text, with the frames of that moment.
"""

from __future__ import annotations

import linecache
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from itertools import groupby
from types import FrameType, NoneType, TracebackType
from typing import Final, TypeVar, cast
from weakref import ref

from prefactor_core.context_stack.generator_frames import GENERATOR
from prefactor_core.payloads.hidden_fields import hidden_fields
from prefactor_core.payloads.markers import (
    UNPRINTABLE,
    full_type_name,
    has_quick_text,
    shown,
    slow,
    utf8,
)
from prefactor_core.payloads.timebox import Timebox, TooSlowError

T = TypeVar("T")

_MAX_MESSAGE: Final = 10_000
_MAX_STACKTRACE: Final = 50_000
_MAX_LINE: Final = 1_000
_MAX_SOURCE: Final = 1_000_000  # bytes of source files to read
_MAX_ERRORS: Final = 30
_MAX_CHAIN: Final = 50
# The numbers shown of the first and the last, if there are more.
_FRAMES: Final = (20, 30)
_CAUSES: Final = (3, 5)
_MEMBERS: Final = (7, 3)
_MAX_NESTED_GROUPS: Final = 5
_STACK_NEEDED: Final = 60
_PLAIN: Final = frozenset({int, float, bool, NoneType})
_REMEMBERED: Final = 64
# The globals of code that ``exec`` runs may have a ``get`` of their own.
_GET: Final = dict[str, object].get

_CAUSE: Final = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT: Final = "\nDuring handling of the above exception, another exception occurred:\n\n"


class ErrorDescription(dict[str, object]):
    """The description of an exception; the type tells it from an ``error`` that an agent set."""

    __slots__ = ()


def describe_error(error: BaseException, since: datetime | None = None) -> ErrorDescription:
    """Return the type, message and stacktrace of an exception, as text.

    ``since``: the time at which the ended span or run was entered; a description that was made
    later than that, on the exception's way here, is reused. Long messages, stacktraces, chains of
    causes and groups are cut in the middle, with a note of how much is missing.
    """
    place = (id(error) >> 4) % _REMEMBERED
    known = _described[place]
    with suppress(Exception):  # an attribute of the exception may be a property of its class
        if known is not None and since is not None and known.is_of(error, since):
            known.leaves(error)
            return known.description
    if not _has_stack(_STACK_NEEDED):
        # The next frames that it unwinds through have more stack.
        return ErrorDescription(
            type=full_type_name(type(error)), message="<no stack left to look at it>", stacktrace=""
        )
    description, at = _describe(error), datetime.now(UTC)
    with suppress(Exception):
        # The clock of a run may be ahead of the wall clock.
        _described[place] = _Described(error, description, max(at, since or at))
    return description


class _Described:
    """Recognises a described exception without a reference, which would keep its frames alive.

    Few built-in types allow weak references. Their exceptions are recognised by address, type and
    arguments, if the arguments are plain. Another exception at the same address has other
    arguments, or did not come through the block that was left last.

    An exception of any type counts as another one if it came another way: a second waiter got it
    from the same task, or it was caught and is raised at another place, as an exception that a
    module keeps and raises again and again.
    """

    __slots__ = (
        "_arguments",
        "_at",
        "_blocks",
        "_id",
        "_type",
        "_weak",
        "description",
    )

    def __init__(self, error: BaseException, description: ErrorDescription, at: datetime) -> None:
        self.description = description
        self._at = at
        self._id, self._type = id(error), type(error)
        self._weak: ref[BaseException] | None = None
        self._arguments: tuple[object, ...] | None = None
        try:
            self._weak = ref(error)
        except TypeError:
            if _are_plain(error.args):
                self._arguments = error.args
        self.leaves(error)

    def leaves(self, error: BaseException) -> None:
        """Note the blocks that the exception has left so far."""
        self._blocks: dict[int, tuple[object, ...]] = {}
        block = error.__traceback__
        while block is not None:
            self._blocks[id(block)] = _place_of(block)
            # A context manager made of a generator takes its own blocks off the traceback.
            is_forked = not block.tb_frame.f_code.co_flags & GENERATOR
            block = None if is_forked else block.tb_next

    def is_of(self, error: BaseException, since: datetime) -> bool:
        """Whether ``error`` was described, after ``since``."""
        if since >= self._at:
            return False
        if self._weak is not None:
            if self._weak() is not error:
                return False
        elif (
            id(error) != self._id
            or type(error) is not self._type
            or error.args is not self._arguments
        ):
            return False
        # The frames that it has left since; raising it again puts new ones on top.
        frames: list[FrameType] = []
        block = error.__traceback__
        while block is not None:
            frames.append(block.tb_frame)
            # A newer block may have the address of one that was taken off.
            if self._blocks.get(id(block)) == _place_of(block):
                return not _is_raised_again(frames)
            block = block.tb_next
        return False


def _place_of(block: TracebackType) -> tuple[object, ...]:
    """Return where an exception has left a block and the next inner block."""
    inner = block.tb_next
    inside = (inner.tb_lasti, inner.tb_frame.f_code) if inner is not None else ()
    return block.tb_lasti, block.tb_frame.f_code, *inside


def _is_raised_again(frames: list[FrameType]) -> bool:
    """Whether a frame called others and then raised the exception anew.

    A frame that follows itself caught the exception and went on with ``raise error``.
    """
    calls = [frame for frame, _ in groupby(frames, key=id)]
    return len(set(calls)) < len(calls)


# By address: a new description replaces an old one, and threads need no lock.
_described: list[_Described | None] = [None] * _REMEMBERED


def _are_plain(arguments: tuple[object, ...]) -> bool:
    """Whether arguments can be kept: they are small and refer to nothing."""
    return len(arguments) <= _MAX_ERRORS and all(
        type(part) in _PLAIN or (type(part) is str and len(part) <= _MAX_MESSAGE)
        for part in arguments
    )


def _has_stack(depth: int) -> bool:
    """Whether the stack has room for ``depth`` nested calls."""
    try:
        return depth == 0 or _has_stack(depth - 1)
    except RecursionError:
        return False


def _describe(error: BaseException) -> ErrorDescription:
    timebox = Timebox()
    message = _cut(_message_of(error, timebox), _MAX_MESSAGE)
    try:
        stacktrace = utf8("".join(_Stacktrace(timebox).of(error, message)))
    except Exception:  # an attribute of the exception is a property that raises
        stacktrace = ""
    return ErrorDescription(
        type=full_type_name(type(error)),
        message=message,
        stacktrace=_cut(stacktrace, _MAX_STACKTRACE),
    )


def _message_of(error: BaseException, timebox: Timebox) -> str:
    """Return ``str(error)``, or a marker."""
    try:
        if hidden_fields(type(error)):  # str() shows all fields
            return timebox.call(lambda: shown(error))
        text = str(error) if has_quick_text(error) else timebox.call(lambda: str(error))
        return utf8(str.__str__(text))
    except TooSlowError:
        return slow(type(error))
    except Exception:
        return UNPRINTABLE


class _Stacktrace:
    """Text like the one that Python prints for an exception, within bounds."""

    def __init__(self, timebox: Timebox) -> None:
        self._timebox = timebox
        self._errors_left = _MAX_ERRORS
        self._source_left = _MAX_SOURCE

    def of(self, error: BaseException, message: str | None, groups: int = 0) -> list[str]:
        """Return its causes, the oldest first, and itself; ``groups``: the groups around it."""
        chain = _chain(error)
        shown, missing = _ends(chain, _CAUSES)
        # The newest first, in case there are too many.
        texts: list[list[str]] = []
        for number, (part, link) in reversed([*enumerate(shown)]):
            if self._errors_left <= 0:
                texts.append(["… more exceptions left out …\n\n"])
                break
            self._errors_left -= 1
            texts.append([link])
            if missing and number == _CAUSES[0] - 1:
                texts.append([f"\n… {missing} exceptions left out …\n"])
            texts.append([*self._alone(part, message if part is error else None, groups)])
        if len(chain) == _MAX_CHAIN:
            texts.append(["… more exceptions left out …\n\n"])
        return [line for text in reversed(texts) for line in text]

    def _alone(self, error: BaseException, message: str | None, groups: int) -> Iterator[str]:
        if message is None:
            message = _message_of(error, self._timebox)
        try:
            if error.__traceback__ is not None:
                yield "Traceback (most recent call last):\n"
                yield from self._frames(error.__traceback__)
        except Exception:  # its source file is not text
            yield "  <unprintable>\n"
        name, message = full_type_name(type(error)), _cut(message, _MAX_LINE)
        yield f"{name}: {message}\n" if message else f"{name}\n"
        for note in _notes(error):
            yield f"{note}\n"
        if isinstance(error, BaseExceptionGroup):
            with suppress(Exception):  # "exceptions" may be a property of a subclass
                yield from self._members(
                    cast("BaseExceptionGroup[BaseException]", error).exceptions, groups + 1
                )

    def _frames(self, traceback: TracebackType) -> Iterator[str]:
        frames: list[TracebackType] = []
        following: TracebackType | None = traceback
        while following is not None:
            frames.append(following)
            following = following.tb_next
        shown, missing = _ends(_from_the_agent_on(frames), _FRAMES)
        for number, frame in enumerate(shown):
            if missing and number == _FRAMES[0]:
                yield f"  … {missing} frames left out …\n"
            code = frame.tb_frame.f_code
            yield f'  File "{code.co_filename}", line {frame.tb_lineno}, in {code.co_name}\n'
            if source := self._source(code.co_filename, frame.tb_lineno):
                yield f"    {source}\n"

    def _source(self, filename: str, line: int | None) -> str:
        if line is None:
            return ""
        known = linecache.cache.get(filename)
        if known is None or len(known) == 1:  # not read yet
            try:
                file = os.stat(filename)  # noqa: PTH116 - pathlib takes milliseconds to import
            except (OSError, ValueError):
                return ""
            if not stat.S_ISREG(file.st_mode) or file.st_size > self._source_left:
                return ""
            self._source_left -= file.st_size
        return linecache.getline(filename, line).strip()[:_MAX_LINE]

    def _members(self, members: tuple[BaseException, ...], groups: int) -> Iterator[str]:
        if groups > _MAX_NESTED_GROUPS:
            yield f"  … {len(members)} exceptions left out …\n"
            return
        shown, missing = _ends([*enumerate(members, 1)], _MEMBERS)
        for place, (number, member) in enumerate(shown):
            if self._errors_left <= 0:
                yield "  … more exceptions left out …\n"
                return
            if missing and place == _MEMBERS[0]:
                yield f"  … {missing} exceptions left out …\n"
            yield f"  {number} of {len(members)}:\n"
            for text in self.of(member, None, groups):
                for line in text.splitlines(keepends=True):
                    yield line if line == "\n" else f"    {line}"


def _from_the_agent_on(frames: list[TracebackType]) -> list[TracebackType]:
    """Return the frames without the first ones that are of this library, such as the wrapper of a
    traced function; all of them if the error is of this library."""
    for number, frame in enumerate(frames):
        module = _GET(frame.tb_frame.f_globals, "__name__")
        if type(module) is not str or not module.startswith("prefactor_core."):
            return frames[number:]
    return frames


def _chain(error: BaseException) -> list[tuple[BaseException, str]]:
    """Return the exception and its causes, the oldest first, each with its link to the next."""
    chain, seen = [(error, "")], {id(error)}
    while len(chain) < _MAX_CHAIN:
        link, earlier = _CAUSE, error.__cause__
        if earlier is None and not error.__suppress_context__:
            link, earlier = _CONTEXT, error.__context__
        if earlier is None or id(earlier) in seen:
            break
        seen.add(id(earlier))
        chain.append((earlier, link))
        error = earlier
    chain.reverse()
    return chain


def _notes(error: BaseException) -> list[str]:
    # From the instance's dict: reading the attribute may run code of the class.
    found: object = object.__getattribute__(error, "__dict__").get("__notes__")
    notes = cast("list[object]", found) if type(found) is list else []
    shown, missing = _ends(notes, _MEMBERS)
    texts = [_cut(note, _MAX_LINE) for note in shown if type(note) is str]
    return [*texts, f"… {missing} notes left out …"] if missing else texts


def _ends(parts: list[T], ends: tuple[int, int]) -> tuple[list[T], int]:
    """Return the first and the last parts, and the number missing between them."""
    first, last = ends
    missing = len(parts) - first - last
    return (parts, 0) if missing <= 1 else ([*parts[:first], *parts[-last:]], missing)


def _cut(text: str, most: int) -> str:
    missing = len(text) - most
    if missing <= 0:
        return text
    half = most // 2
    return f"{text[:half]}\n… {missing} characters left out …\n{text[-half:]}"
