"""Pattern: a regular expression whose search takes a bounded number of steps. Pure.

``re`` backtracks: for some patterns it tries exponentially many ways through a text, and nothing
can stop it. This search follows all ways at once, character by character, so that the steps are
at most the number of characters times the number of states.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any, Final, TypeAlias

MOST_CHARACTERS: Final = 1_000
_MOST_STATES: Final = 2_000

_FOUND: Final = 0
"""The state that ends the search."""

Spend: TypeAlias = Callable[[int], object]
_CharacterTest: TypeAlias = Callable[[str], bool]
_PlaceTest: TypeAlias = Callable[[str, int, Spend], bool]


class UnknownPatternError(Exception):
    """A pattern that is too long, or has a part that this search does not support: a back
    reference, a look-behind, an atomic group, flags."""


@lru_cache(256)
def compile_pattern(source: str) -> Pattern:
    """Return the pattern ``source``, in the syntax of ``re``.

    Raises :class:`UnknownPatternError`, and ``re.error`` for an invalid pattern.
    """
    try:
        return Pattern(source)
    except RecursionError:
        raise UnknownPatternError("a pattern is nested too deep") from None


class Pattern:
    """A compiled pattern; see :func:`compile_pattern`."""

    def __init__(self, source: str) -> None:
        if len(source) > MOST_CHARACTERS:
            raise UnknownPatternError(f"a pattern of {len(source)} characters is too long")
        # For each state: the test of the next character, or else of the place, and the next states.
        self._characters: list[_CharacterTest | None] = []
        self._places: list[_PlaceTest | None] = []
        self._next: list[list[int]] = []
        self._state([])
        parsed = _parsed(source)
        self._start = self._sequence(parsed, _FOUND)
        self._at_start_only = bool(parsed) and str(parsed[0][1]) in _BEGINNINGS

    def is_in(self, text: str, spend: Spend) -> bool:
        """Whether ``re.search`` finds it in ``text``.

        ``spend`` is called repeatedly with a number of steps, and may raise to end the search.
        """
        return self._run(self._start, text, 0, spend, anywhere=not self._at_start_only)

    def _run(self, start: int, text: str, at: int, spend: Spend, *, anywhere: bool) -> bool:
        states = self._reached([start], text, at, spend)
        while _FOUND not in states:
            if at == len(text) or not (states or anywhere):
                return False
            character = text[at]
            at += 1
            reached = [start] if anywhere else []
            for state in states:
                test = self._characters[state]
                if test is not None and test(character):
                    reached += self._next[state]
            states = self._reached(reached, text, at, spend)
        return True

    def _reached(self, states: list[int], text: str, at: int, spend: Spend) -> set[int]:
        """Return ``states`` and all states reachable from them without a character."""
        reached: set[int] = set()
        while states:
            state = states.pop()
            if state in reached:
                continue
            reached.add(state)
            if self._characters[state] is None:
                test = self._places[state]
                if test is None or test(text, at, spend):
                    states += self._next[state]
        spend(len(reached) + 1)
        return reached

    def _state(
        self,
        following: list[int],
        character: _CharacterTest | None = None,
        place: _PlaceTest | None = None,
    ) -> int:
        if len(self._next) == _MOST_STATES:
            raise UnknownPatternError("a pattern has too many repetitions")
        self._characters.append(character)
        self._places.append(place)
        self._next.append(following)
        return len(self._next) - 1

    def _sequence(self, items: Iterable[Any], then: int) -> int:
        """Return the state from which ``items`` lead to ``then``."""
        for operator, given in reversed(list(items)):
            then = self._item(str(operator), given, then)
        return then

    def _item(self, operator: str, given: Any, then: int) -> int:
        match operator:
            case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN":
                return self._state([then], character=_character_test(operator, given))
            case "AT" if str(given) in _PLACES:
                return self._state([then], place=_PLACES[str(given)])
            case "BRANCH":
                return self._state([self._sequence(each, then) for each in given[1]])
            case "SUBPATTERN" if not given[1] and not given[2]:  # no flags
                return self._sequence(given[3], then)
            case "MAX_REPEAT" | "MIN_REPEAT":
                least, most, items = given
                return self._repeat(least, most, items, then)
            case "ASSERT" | "ASSERT_NOT" if given[0] > 0:  # what is ahead
                return self._state([then], place=self._ahead(operator == "ASSERT", given[1]))
            case _:
                raise UnknownPatternError(f"a pattern has {operator} {given}"[:100])

    def _repeat(self, least: Any, most: Any, items: Iterable[Any], then: int) -> int:
        items = list(items)
        if str(most) == "MAXREPEAT":
            loop = self._state([then])
            self._next[loop].append(self._sequence(items, loop))
            then = loop
        else:
            end = then
            for _ in range(int(most) - int(least)):
                then = self._state([end, self._sequence(items, then)])
        for _ in range(int(least)):
            # A state for each repetition, also of an empty one, so that they are counted.
            then = self._state([self._sequence(items, then)])
        return then

    def _ahead(self, wanted: bool, items: Iterable[Any]) -> _PlaceTest:
        start = self._sequence(items, _FOUND)

        def test(text: str, at: int, spend: Spend) -> bool:
            return self._run(start, text, at, spend, anywhere=False) is wanted

        return test


def _parsed(source: str) -> Sequence[Any]:
    # The parser of re, without its search. Used only here: its output differs a little from version
    # to version, and unknown parts are refused.
    parser: Any = import_module("re._parser")
    parsed = parser.parse(source)
    if parsed.state.flags != parser.SRE_FLAG_UNICODE:
        raise UnknownPatternError("a pattern has flags")
    return list(parsed)


def _character_test(operator: str, given: Any) -> _CharacterTest:
    match operator:
        case "LITERAL":
            return chr(given).__eq__
        case "NOT_LITERAL":
            return chr(given).__ne__
        case "ANY":
            return "\n".__ne__
        case _:
            return _set_test(given)


def _set_test(given: Sequence[Any]) -> _CharacterTest:
    negated = bool(given) and str(given[0][0]) == "NEGATE"
    tests: list[_CharacterTest] = []
    for operator, value in given[negated:]:
        match str(operator):
            case "LITERAL":
                tests.append(chr(value).__eq__)
            case "RANGE":
                tests.append(_range_test(*map(chr, value)))
            case "CATEGORY" if str(value) in _CATEGORIES:
                tests.append(_CATEGORIES[str(value)])
            case _:
                raise UnknownPatternError(f"a pattern has {operator} {value}"[:100])
    return lambda character: any(test(character) for test in tests) is not negated


def _range_test(least: str, most: str) -> _CharacterTest:
    return lambda character: least <= character <= most


def _is_word(character: str) -> bool:
    return character == "_" or character.isalnum()


def _no(test: _CharacterTest) -> _CharacterTest:
    return lambda character: not test(character)


_CATEGORIES: Final[dict[str, _CharacterTest]] = {
    "CATEGORY_DIGIT": str.isdecimal,
    "CATEGORY_NOT_DIGIT": _no(str.isdecimal),
    "CATEGORY_SPACE": str.isspace,
    "CATEGORY_NOT_SPACE": _no(str.isspace),
    "CATEGORY_WORD": _is_word,
    "CATEGORY_NOT_WORD": _no(_is_word),
}


def _at_beginning(text: str, at: int, spend: Spend) -> bool:
    return at == 0


def _at_end(text: str, at: int, spend: Spend) -> bool:
    return text[at:] in ("", "\n") if at >= len(text) - 1 else False


def _at_end_of_text(text: str, at: int, spend: Spend) -> bool:
    return at == len(text)


def _at_boundary(text: str, at: int, spend: Spend) -> bool:
    return any(map(_is_word, text[at - 1 : at])) is not any(map(_is_word, text[at : at + 1]))


def _inside(text: str, at: int, spend: Spend) -> bool:
    # For an empty text, versions of re differ.
    return (bool(text) or _INSIDE_OF_NOTHING) and not _at_boundary(text, at, spend)


_INSIDE_OF_NOTHING: Final = re.search(r"\B", "") is not None
_BEGINNINGS: Final = ("AT_BEGINNING", "AT_BEGINNING_STRING")
_PLACES: Final[dict[str, _PlaceTest]] = {
    "AT_BEGINNING": _at_beginning,
    "AT_BEGINNING_STRING": _at_beginning,
    "AT_END": _at_end,
    "AT_END_STRING": _at_end_of_text,
    "AT_BOUNDARY": _at_boundary,
    "AT_NON_BOUNDARY": _inside,
}
