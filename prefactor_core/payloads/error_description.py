"""What is kept of an exception that ended a span or a run: bounded text, made once.

An exception that unwinds through many spans is described by the innermost one. Those around it
keep the same text, with the frames that it had left by then.
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
_MAX_SOURCE: Final = 1_000_000  # bytes of files that have to be read for it
_MAX_ERRORS: Final = 30
_MAX_CHAIN: Final = 50
# How many are shown at both ends, where there are more.
_FRAMES: Final = (20, 30)
_CAUSES: Final = (3, 5)
_MEMBERS: Final = (7, 3)
_MAX_NESTED_GROUPS: Final = 5
_STACK_NEEDED: Final = 60
_PLAIN: Final = frozenset({int, float, bool, NoneType})
_REMEMBERED: Final = 64

_CAUSE: Final = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT: Final = "\nDuring handling of the above exception, another exception occurred:\n\n"


class ErrorDescription(dict[str, object]):
    """What a failed span keeps of an exception, told from what an agent calls an error."""

    __slots__ = ()


def describe_error(error: BaseException, since: datetime | None = None) -> ErrorDescription:
    """What is kept of an exception: type, message and stacktrace, as text.

    ``since``: when that was entered what it ended; if it was described after that, on its way
    here, that is the description. What is long is cut in the middle, and says how much is missing:
    messages, stacktraces, chains of causes and groups.
    """
    place = (id(error) >> 4) % _REMEMBERED
    known = _described[place]
    with suppress(Exception):  # what Python knows of it may be a property of somebody's
        if known is not None and since is not None and known.is_of(error, since):
            known.leaves(error)
            return known.description
    if not _has_stack(_STACK_NEEDED):
        # What it unwinds through next has more of it.
        return ErrorDescription(
            type=full_type_name(type(error)), message="<no stack left to look at it>", stacktrace=""
        )
    description, at = _describe(error), datetime.now(UTC)
    with suppress(Exception):
        # The clock of a run may be ahead of the wall.
        _described[place] = _Described(error, description, max(at, since or at))
    return description


class _Described:
    """An exception that was described, as far as it can be known again without a reference to it,
    which would keep alive the frames that it came through.

    Few types that are built in can be referred to weakly. Such an exception is known by its
    address, its type and its arguments, if these are plain. Another one at that address has other
    arguments, or has not come through the block that was left last.

    Of whatever type, it is not what was described if it has come another way: a second waiter has
    got it from the same task, or it was caught and is raised at another place, such as one that a
    module keeps for all its uses.
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
        """It leaves a block now."""
        self._blocks: dict[int, tuple[object, ...]] = {}
        block = error.__traceback__
        while block is not None:
            self._blocks[id(block)] = _place_of(block)
            # A context manager that is a generator takes its own off the traceback.
            is_forked = not block.tb_frame.f_code.co_flags & GENERATOR
            block = None if is_forked else block.tb_next

    def is_of(self, error: BaseException, since: datetime) -> bool:
        """Whether it is ``error`` that was described, and that after ``since``."""
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
        # What it has come through since; what is raised again puts that on top of the rest.
        frames: list[FrameType] = []
        block = error.__traceback__
        while block is not None:
            frames.append(block.tb_frame)
            # Where one was taken off, a newer one may have its address.
            if self._blocks.get(id(block)) == _place_of(block):
                return not _is_raised_again(frames)
            block = block.tb_next
        return False


def _place_of(block: TracebackType) -> tuple[object, ...]:
    """Where an exception has left a block, and the one inside of it."""
    inner = block.tb_next
    inside = (inner.tb_lasti, inner.tb_frame.f_code) if inner is not None else ()
    return block.tb_lasti, block.tb_frame.f_code, *inside


def _is_raised_again(frames: list[FrameType]) -> bool:
    """Whether one of them has called others, and then the exception was raised there anew.

    Where one follows itself, the same function has caught it and goes on with ``raise error``.
    """
    calls = [frame for frame, _ in groupby(frames, key=id)]
    return len(set(calls)) < len(calls)


# By address: one replaces another, and several threads need no lock.
_described: list[_Described | None] = [None] * _REMEMBERED


def _are_plain(arguments: tuple[object, ...]) -> bool:
    """Whether they can be kept: they refer to nothing, and are not large."""
    return len(arguments) <= _MAX_ERRORS and all(
        type(part) in _PLAIN or (type(part) is str and len(part) <= _MAX_MESSAGE)
        for part in arguments
    )


def _has_stack(depth: int) -> bool:
    """Whether so many calls can be made inside each other."""
    try:
        return depth == 0 or _has_stack(depth - 1)
    except RecursionError:
        return False


def _describe(error: BaseException) -> ErrorDescription:
    timebox = Timebox()
    message = _cut(_message_of(error, timebox), _MAX_MESSAGE)
    try:
        stacktrace = utf8("".join(_Stacktrace(timebox).of(error, message)))
    except Exception:  # what Python knows of it is a property of somebody's
        stacktrace = ""
    return ErrorDescription(
        type=full_type_name(type(error)),
        message=message,
        stacktrace=_cut(stacktrace, _MAX_STACKTRACE),
    )


def _message_of(error: BaseException, timebox: Timebox) -> str:
    """``str(error)``, or a marker."""
    try:
        if hidden_fields(type(error)):  # its text shows all
            return timebox.call(lambda: shown(error))
        text = str(error) if has_quick_text(error) else timebox.call(lambda: str(error))
        return utf8(str.__str__(text))
    except TooSlowError:
        return slow(type(error))
    except Exception:
        return UNPRINTABLE


class _Stacktrace:
    """The text that Python would print of an exception, about, with bounds."""

    def __init__(self, timebox: Timebox) -> None:
        self._timebox = timebox
        self._errors_left = _MAX_ERRORS
        self._source_left = _MAX_SOURCE

    def of(self, error: BaseException, message: str | None, groups: int = 0) -> list[str]:
        """Its causes, the oldest first, and itself; it is inside of so many groups."""
        chain = _chain(error)
        shown, missing = _ends(chain, _CAUSES)
        # The newest first, in case that there are too many.
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
        except Exception:  # its source is no text
            yield "  <unprintable>\n"
        name, message = full_type_name(type(error)), _cut(message, _MAX_LINE)
        yield f"{name}: {message}\n" if message else f"{name}\n"
        for note in _notes(error):
            yield f"{note}\n"
        if isinstance(error, BaseExceptionGroup):
            with suppress(Exception):  # what it holds may be a property of somebody's
                yield from self._members(
                    cast("BaseExceptionGroup[BaseException]", error).exceptions, groups + 1
                )

    def _frames(self, traceback: TracebackType) -> Iterator[str]:
        frames: list[TracebackType] = []
        following: TracebackType | None = traceback
        while following is not None:
            frames.append(following)
            following = following.tb_next
        shown, missing = _ends(frames, _FRAMES)
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
        if known is None or len(known) == 1:  # it is not read yet
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


def _chain(error: BaseException) -> list[tuple[BaseException, str]]:
    """The exception and what led to it, the oldest first, each with what leads to the next."""
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
    # Not asked by name, which may run code of its class.
    found: object = object.__getattribute__(error, "__dict__").get("__notes__")
    notes = cast("list[object]", found) if type(found) is list else []
    shown, missing = _ends(notes, _MEMBERS)
    texts = [_cut(note, _MAX_LINE) for note in shown if type(note) is str]
    return [*texts, f"… {missing} notes left out …"] if missing else texts


def _ends(parts: list[T], ends: tuple[int, int]) -> tuple[list[T], int]:
    """The first and the last ones, and how many are missing between them."""
    first, last = ends
    missing = len(parts) - first - last
    return (parts, 0) if missing <= 1 else ([*parts[:first], *parts[-last:]], missing)


def _cut(text: str, most: int) -> str:
    missing = len(text) - most
    if missing <= 0:
        return text
    half = most // 2
    return f"{text[:half]}\n… {missing} characters left out …\n{text[-half:]}"
