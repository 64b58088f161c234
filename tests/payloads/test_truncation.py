"""A payload that is too large is cut to the limit, the largest strings first, and says so."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import product
from pathlib import PurePosixPath
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cases import for_each
from support.examples import examples

from prefactor_core.payloads.capture import Capture
from prefactor_core.payloads.jsonable import TooLargeError
from prefactor_core.payloads.truncation import encode_within, fit, truncated

MARKER = re.compile(r"… \[(\d+) characters truncated\]$")


def cut(payload: Any, bound: int = 1_024) -> Any:
    raw = bytes(Capture(max_payload_bytes=bound)(payload))
    assert len(raw) <= bound
    return json.loads(raw.decode())


def kept_of(whole: str, stored: str) -> int:
    """How many characters of a string were kept; checks what its marker says."""
    marker = MARKER.search(stored)
    if marker is None:
        assert stored == whole
        return len(whole)
    kept = stored[: marker.start()]
    assert whole.startswith(kept)
    assert int(marker[1]) == len(whole) - len(kept)
    return len(kept)


def test_what_fits_is_not_touched() -> None:
    payload = {"a": "x" * (1_024 - len('{"a":""}'))}
    assert cut(payload) == payload
    assert cut({"a": payload["a"] + "x"}) != payload


def test_the_largest_strings_are_cut_to_the_same_size_and_smaller_ones_stay() -> None:
    payload = {"big": "b" * 10_000, "small": "s" * 200, "list": [{"huge": "h" * 50_000}, 1]}
    stored = cut(payload)
    assert stored["small"] == payload["small"]
    assert stored["list"][1] == 1
    big, huge = stored["big"], stored["list"][0]["huge"]
    assert len(big.encode()) == pytest.approx(len(huge.encode()), abs=1)
    assert kept_of("b" * 10_000, big) + kept_of("h" * 50_000, huge) > 600


@for_each(
    "text",
    ["x", "é", "\u20ac", "😀", "\x01", '"', "\\", "\n", "\ud800", "x\\", "\\\\x01", "a😀\x02é"],
    ids=ascii,
)
@for_each("bound", [1_024, 1_025, 1_026, 1_027, 1_028, 1_029, 5_000, 100_001])
def test_no_character_and_no_escape_is_cut_in_two_and_little_room_is_left(
    text: str, bound: int
) -> None:
    whole = text * 100_000
    capture = Capture(max_payload_bytes=bound)
    raw = bytes(capture({"a": whole}))
    kept_of(whole.replace("\ud800", "?"), json.loads(raw.decode())["a"])
    assert bound - 12 < len(raw) <= bound


def test_strings_of_nearly_the_same_size_are_cut_to_the_limit() -> None:
    for bound, wide in product(range(1_024, 1_040), range(5)):
        length = (bound - len('{"a":"","b":"","c":""}')) // 3
        text = "z" * (length - wide) + "é" * wide
        stored = cut({"a": "x" * 5_000, "b": "y" * 5_000, "c": text}, bound)
        assert kept_of("x" * 5_000, stored["a"]) > 200
        assert kept_of(text, stored["c"]) > 200


strings = st.builds(
    lambda text, times: text * times, st.text(min_size=1), st.integers(1, 200)
) | st.text(st.characters(), min_size=60, max_size=70)
trees = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        strings | st.integers() | st.none(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=30,
    ),
)


def agree(whole: Any, stored: Any) -> bool:
    """Whether the stored value is the whole, but for what is marked; True if anything is."""
    if isinstance(stored, dict) and stored.keys() == {"$truncated"} and stored != whole:
        return True
    if isinstance(whole, dict):
        assert list(whole) == list(stored)
        return max((agree(item, stored[key]) for key, item in whole.items()), default=False)
    if isinstance(whole, list):
        assert len(whole) == len(stored)
        return max((agree(*pair) for pair in zip(whole, stored, strict=True)), default=False)
    if isinstance(whole, str):
        return kept_of(whole.encode("utf-8", "replace").decode(), stored) < len(whole)
    assert whole == stored
    return False


@given(trees, st.sampled_from([1_024, 1_500, 4_096]))
def test_a_cut_payload_is_the_payload_but_for_its_largest_strings(tree: Any, bound: int) -> None:
    tree = {"name": "n", **tree}
    stored = cut(tree, bound)
    size = len(
        json.dumps(tree, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    )
    assert agree(tree, stored) == (size > bound)


def is_marker_of(value: Any, stored: Any) -> bool:
    """Whether this stands for a part that is too large, and says how large, as far as is known."""
    size = len(msgspec.json.encode(value))
    return stored in ({"$truncated": {"bytes": size}}, {"$truncated": {"more_than_bytes": 1_024}})


@for_each(
    ("payload", "lost"),
    [
        ({"b": [2] * 300, "a": [1] * 400, "c": 1}, ["a"]),
        ({"docs": [{"n": n} for n in range(500)], "text": "x" * 90}, ["docs"]),
        ({"texts": ["short text"] * 200, "b": {"c": 1}}, ["texts"]),
        ({"texts": ["x" * 100] * 100, "b": None}, ["texts"]),
        ({"shared": [[*range(50)]] * 50}, ["shared"]),
        ({"a": {str(key): key for key in range(1_000)}, "b": 1}, ["a"]),
        ({"a": [1] * 2_000, "b": 1, "c": {"d": [2] * 1_000}}, ["a", "c.d"]),
    ],
    ids=["two lists", "objects", "short texts", "texts", "shared", "object", "inner"],
)
def test_what_cutting_strings_cannot_make_fit_goes_itself_and_nothing_beside_it(
    payload: dict[str, Any], lost: list[str]
) -> None:
    for ordered in (payload, dict(reversed(payload.items()))):
        stored, whole = cut(ordered), json.loads(json.dumps(ordered))
        for path in lost:
            *outer, name = path.split(".")
            for step in outer:
                stored[step], whole[step] = dict(stored[step]), dict(whole[step])
                assert stored.keys() == whole.keys()
            inner, whole_inner = stored, whole
            for step in outer:
                inner, whole_inner = inner[step], whole_inner[step]
            assert is_marker_of(whole_inner.pop(name), inner.pop(name))
        assert stored == whole


# Large by many small values: by their number.
MANY_SMALL: dict[str, Callable[[int], object]] = {
    "numbers": lambda count: list(range(count)),
    "nothings": lambda count: [None] * count,
    "rows": lambda count: [{"id": n, "v": 2 * n} for n in range(count)],
    "pairs": lambda count: [[n, -n] for n in range(count)],
    "short texts": lambda count: ["short"] * count,
    "fields": lambda count: {f"k{n}": n for n in range(count)},
    "nested rows": lambda count: {"a": [{"b": {"c": n}} for n in range(count)]},
}


@given(
    st.sampled_from([*MANY_SMALL]),
    st.sampled_from([600, 1_000, 1_500, 3_000, 20_000]),
    st.lists(st.sampled_from(["object", "list"]), max_size=6),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=examples(150), deadline=None)
def test_beside_many_small_values_short_ones_stay_at_every_depth(
    kind: str, count: int, around: list[str], is_first: bool, natively: bool
) -> None:
    large = MANY_SMALL[kind](count)
    payload: Any = {"rows": large, "question": "what?"}
    for each in around:
        beside: object = "short" if natively else PurePosixPath("short")
        pair = [payload, beside] if is_first else [beside, payload]
        payload = dict(zip("ab", pair, strict=True)) if each == "object" else pair
    stored = cut({"input": payload, "more": 1}, 4_096)
    assert stored.pop("more") == 1
    inner = stored.pop("input")
    for each in reversed(around):
        at = 0 if is_first else 1
        key = "ab"[at] if each == "object" else at
        assert inner["ab"[1 - at] if each == "object" else 1 - at] == "short"
        inner = inner[key]
    assert inner["question"] == "what?"
    if kind != "nested rows":
        kept = inner["rows"] == large
        assert kept or inner["rows"].keys() == {"$truncated"}


@for_each("text", ["x" * 1_200_000, "x" * 1_000_000, "\ud800" * 2_000])
def test_a_part_is_measured_up_to_16_megabytes(text: str) -> None:
    texts = [text] * 15
    stored = cut({"a": {"c": texts, "d": texts, "e": 1}})["a"]
    assert (len(stored["d"]), stored["e"]) == (15, 1)
    whole = 15 * (len(text.encode("utf-8", "replace")) + len('"",')) + 1
    (known, size), *others = stored["c"]["$truncated"].items()
    assert not others
    if text.isascii() and whole < 16_000_000:
        assert (known, size) == ("bytes", whole)
    else:
        assert known == "more_than_bytes"
        assert 900 < size <= min(whole, 16_000_000)


@given(st.lists(st.integers(1, 3_000), min_size=2, max_size=12))
@settings(max_examples=examples(50), deadline=None)
def test_of_several_containers_the_largest_go_and_no_more_than_must(counts: list[int]) -> None:
    lists = {f"k{n}": [7] * count for n, count in enumerate(counts)}
    stored = cut({"input": lists}, 4_096)["input"]
    kept = {name: part for name, part in stored.items() if part == lists[name]}
    gone = [len(lists[name]) for name in lists if name not in kept]
    assert stored.keys() == lists.keys()
    assert max(map(len, kept.values()), default=0) <= min(gone, default=3_000)
    # The smallest that has gone would not have fitted.
    room = 4_096 - len(msgspec.json.encode({"input": stored}))
    assert not gone or 2 * min(gone) > room - 64


def test_a_list_that_is_too_large_goes_as_the_value_that_it_is() -> None:
    for payload in (list(range(1_000)), ["short text"] * 200, [object()] + [1] * 1_000):
        (name,) = cut(payload)
        assert name == "value"


@pytest.mark.parametrize(
    "payload",
    [{str(key): key for key in range(1_000)}, {"k" * 2_000: 1}],
    ids=["many fields", "long name"],
)
def test_a_payload_of_which_no_part_can_go_is_replaced_whole(payload: Any) -> None:
    size = len(msgspec.json.encode(payload))
    known: dict[str, Any] = {"bytes": size} if size <= 8_192 else {"more_than_bytes": 8_192}
    assert cut(payload) == {"$truncated": known}


def test_keys_of_other_kinds_than_text_count_once() -> None:
    payload = {PurePosixPath("k" * 58 + f"{number:02}"): 1 for number in range(15)}
    assert cut(payload) == {str(key): 1 for key in payload}


def test_bytes_that_alone_are_too_large_are_named_by_their_size() -> None:
    assert cut({"image": bytes(2_000), "name": "a"}) == {"image": "<2000 bytes>", "name": "a"}


def test_a_payload_cut_is_as_it_would_be_without_its_neighbours_faults() -> None:
    stored = cut({"text": "x" * 10_000, "bad": "\ud800", "object": b"\xff"})
    assert (stored["bad"], stored["object"]) == ("?", "/w==")
    kept_of("x" * 10_000, stored["text"])


def test_a_string_that_is_there_twice_counts_twice() -> None:
    part = ["x" * 1_000]
    stored = cut({"a": part, "b": part, "c": part})
    assert stored["a"] == stored["b"] == stored["c"]
    kept_of(part[0], stored["a"][0])


def test_the_marker_for_a_payload_the_api_finds_too_large_has_its_size() -> None:
    assert json.loads(bytes(truncated(12_345))) == {"$truncated": {"bytes": 12_345}}


def test_encoding_ends_at_the_bound() -> None:
    part: Any = []
    for _ in range(40):
        part = [part, part]
    for bound in (1_024, 4_096, 4_097, 100_000):
        with pytest.raises(BufferError):
            encode_within(part, bound)


@given(trees, st.integers(2, 200))
def test_encoding_within_a_bound_is_encoding(tree: Any, bound: int) -> None:
    tree = json.loads(json.dumps(tree).replace("\\ud", "x"))
    encoded = msgspec.json.encode(tree)
    if len(encoded) <= bound:
        assert encode_within(tree, bound) == encoded
    else:
        with pytest.raises(BufferError):
            encode_within(tree, bound)
    assert encode_within(tree, len(encoded)) == encoded


def test_fitting_does_not_change_what_it_is_given() -> None:
    part = {"text": "x" * 5_000}
    tree: dict[str, object] = {"a": part, "b": [part]}
    fit(tree, 1_024)
    assert tree == {"a": part, "b": [part]}
    assert part == {"text": "x" * 5_000}


def test_a_tree_that_cannot_fit_is_refused() -> None:
    with pytest.raises(TooLargeError):
        fit({str(number): 1 for number in range(1_000)}, 1_024)
