"""PFIDs, verified by the reference implementation, and the idempotency keys made of them."""

from __future__ import annotations

import os
import string
import subprocess
import sys
import threading
import time
import uuid
from typing import Any

import pfid
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from support.cases import for_each

from prefactor_core import (
    PrefactorValueError,
    generate_idempotency_key,
    validate_idempotency_key,
)
from prefactor_core.operations.identifiers import (
    generate,
    generate_related,
    idempotency_key,
    is_pfid,
    partition_of,
    with_partition_of,
)

partitions = st.integers(0, 2**30 - 1)
times = st.integers(0, 2**48 - 1)
VALID = pfid.generate_example()


@given(partitions, times)
def test_the_reference_reads_what_went_into_a_pfid(partition: int, milliseconds: int) -> None:
    made = generate(partition, milliseconds)
    assert pfid.is_pfid(made)
    binary = pfid.decode(made)
    assert int.from_bytes(binary[:6]) == milliseconds
    assert int.from_bytes(binary[6:10]) == partition
    assert pfid.encode(binary) == made


@given(partitions, times)
def test_the_partition_of_the_references_pfids_is_read(partition: int, milliseconds: int) -> None:
    made = pfid.generate_with_timestamp(pfid.Partition(partition), pfid.Timestamp(milliseconds))
    assert is_pfid(made)
    assert partition_of(made) == partition


@given(st.integers(0, 31), st.sampled_from(string.printable) | st.characters())
def test_one_strange_character_is_judged_as_the_reference_does(at: int, strange: str) -> None:
    text = VALID[:at] + strange + VALID[at + 1 :]
    assert is_pfid(text) == pfid.is_pfid(text)


@for_each(
    "other",
    ["", VALID[:-1], VALID + "0", VALID + "\n", VALID.upper(), VALID.encode(), None, 7],
    ids=["empty", "short", "long", "a line", "upper case", "bytes", "None", "a number"],
)
def test_a_value_without_the_form_is_no_pfid(other: object) -> None:
    assert not is_pfid(other)


@given(partitions, times, partitions, times)
@example(2**30 - 1, 1, 0, 2)
def test_the_order_of_the_text_is_the_order_of_time(p1: int, t1: int, p2: int, t2: int) -> None:
    assume(t1 != t2)
    assert (generate(p1, t1) < generate(p2, t2)) == (t1 < t2)


def test_the_time_of_a_pfid_is_now_by_default() -> None:
    before = time.time_ns() // 1_000_000
    made = int.from_bytes(pfid.decode(generate(0))[:6])
    assert before <= made <= time.time_ns() // 1_000_000


def test_all_eighty_random_bits_vary() -> None:
    drawn = [int.from_bytes(pfid.decode(generate(0, 0))[10:]) for _ in range(1_000)]
    ever_one, always_one = 0, 2**80 - 1
    for number in drawn:
        ever_one |= number
        always_one &= number
    assert (ever_one, always_one) == (2**80 - 1, 0)
    assert len(set(drawn)) == len(drawn)


@given(partitions)
def test_a_related_pfid_is_new_and_of_the_same_partition(partition: int) -> None:
    old = generate(partition, 0)
    related = generate_related(old)
    assert pfid.extract_partition(related) == partition
    assert related > old


@given(partitions, times, partitions, times)
def test_a_pfid_takes_the_partition_of_another_and_keeps_all_else(
    p1: int, t1: int, p2: int, t2: int
) -> None:
    one, other = generate(p1, t1), generate(p2, t2)
    taken = with_partition_of(one, other)
    assert pfid.is_pfid(taken)
    binary, kept = pfid.decode(taken), pfid.decode(other)
    assert binary == kept[:6] + pfid.decode(one)[6:10] + kept[10:]
    assert with_partition_of(one, taken) == taken
    assert with_partition_of(other, taken) == other


@for_each("milliseconds", [-1, 2**48])
def test_a_time_out_of_bounds_is_refused(milliseconds: int) -> None:
    message = f"^milliseconds must be between 0 and 2\\*\\*48 - 1, got {milliseconds}$"
    with pytest.raises(PrefactorValueError, match=message):
        generate(0, milliseconds)


@for_each("partition", [-1, 2**30])
def test_a_partition_out_of_bounds_is_refused(partition: int) -> None:
    message = f"^partition must be between 0 and 1073741823, got {partition}$"
    with pytest.raises(PrefactorValueError, match=message):
        generate(partition)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_no_fork_repeats_an_id_of_its_parent_or_of_another() -> None:
    """Random numbers are drawn in advance: a fork has those of its parent."""
    program = """
import os
from prefactor_core.operations.identifiers import generate

def write(count):
    os.write(1, b"".join(generate(0, 0).encode() + b"\\n" for _ in range(count)))

write(10)
os.fork()
os.fork()
for _ in range(6):
    write(100)  # so little that it is written at once
"""
    run = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, timeout=60
    )
    ids = run.stdout.split()
    assert len(ids) == len(set(ids)) == 10 + 4 * 600


def test_threads_that_make_ids_at_once_make_no_two_equal_ones() -> None:
    each, made = 30_000, list[list[str]]()
    all_there = threading.Barrier(4)

    def make() -> None:
        all_there.wait(20)
        made.append([generate(0, 0) for _ in range(each)])

    threads = [threading.Thread(target=make) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert len({one for ids in made for one in ids}) == 4 * each


@for_each("step", ["create", "start", "finish"])
def test_an_idempotency_key_follows_from_id_and_step_within_the_apis_bounds(step: str) -> None:
    key = idempotency_key(VALID, step)
    assert 8 <= len(key) <= 64
    assert key == idempotency_key(VALID, step)


def test_no_two_steps_or_ids_have_the_same_idempotency_key() -> None:
    ids = [generate(0) for _ in range(100)]
    keys = {idempotency_key(id_, step) for id_ in ids for step in ("create", "start", "finish")}
    assert len(keys) == 300


def test_a_generated_idempotency_key_is_new_and_can_be_one() -> None:
    keys = {generate_idempotency_key() for _ in range(100)}
    assert len(keys) == 100
    for key in keys:
        assert validate_idempotency_key(key) == key
        assert uuid.UUID(key).version == 4


@for_each("length", [1, 64])
def test_an_idempotency_key_within_its_bounds_is_given_back(length: int) -> None:
    assert validate_idempotency_key("k" * length) == "k" * length


@for_each(
    ("key", "message"),
    [
        ("", "must not be empty"),
        ("k" * 65, "must be at most 64 characters, got 65"),
        (None, "must be a string, got NoneType"),
        (b"key", "must be a string, got bytes"),
    ],
)
def test_an_invalid_idempotency_key_is_refused(key: Any, message: str) -> None:
    with pytest.raises(PrefactorValueError, match=f"^Idempotency key {message}$"):
        validate_idempotency_key(key)
