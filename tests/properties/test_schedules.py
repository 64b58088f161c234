"""Any schedule of an agent is stored as it happened, whatever cancels it, and whenever."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from support.examples import examples
from support.playing import Play
from support.schedules import (
    PROGRAMS,
    Cancel,
    Catch,
    Checkpoint,
    Finally,
    FinishSpan,
    Interrupt,
    Open,
    Program,
    Raise,
    Run,
    Scope,
    Service,
    Sleep,
    Spawn,
    Steps,
    Terminate,
)

# Every way to open a span, and a place where something is open around each checkpoint.
RICH = (
    Run(
        "scope",
        (
            Open("started", (Sleep(0.125), Open("with", (Checkpoint(),))), end="complete"),
            Catch((Open("async with", (Sleep(0.125), Raise())),)),
            # Cancelled while it is created, nobody has it: nothing is below it later.
            Scope((Cancel(), Open("created"))),
            # Cancelled while the API has not answered yet.
            Scope((Run("steps"),), 0.0625),
            # A span that has ended when another task opens one inside of it.
            Open("started", (Spawn(((Sleep(0.125), Open("with")),), (FinishSpan(),)),)),
            # On trio, an error and a cancellation in one group.
            Catch(
                (
                    Open(
                        "async with",
                        (Spawn(((Finally((Sleep(0.125),), (Raise(),)),),), (Sleep(0.5),)),),
                    ),
                )
            ),
            Open(
                "async with",
                (
                    Spawn(
                        (
                            (Open("traced", (Sleep(0.5), Open("created", (Sleep(0.25),)))),),
                            (Run("steps", (Open("created", (Sleep(0.25),), end="complete"),)),),
                        ),
                        (
                            Open(
                                "traced, a generator",
                                (
                                    Open("created", (Sleep(0.125),)),
                                    Open("async with", (Sleep(1.0),)),
                                ),
                            ),
                        ),
                    ),
                    Finally(
                        (Scope((Open("by hand", (Sleep(1.0),)),), 0.25),),
                        (Open("async with", (Sleep(0.125), Open("with", (Checkpoint(),)))),),
                    ),
                ),
            ),
        ),
    ),
    Run("left to the client", (Open("by hand", (Sleep(0.25),)), Open("traced, synchronous"))),
    Sleep(0.25),
)
# The API stops a run in whose block another task of it is, and one whose spans may not begin.
STOPPED = (
    Catch(
        (
            Run(
                "scope",
                (
                    Open(
                        "started",
                        (
                            Spawn(
                                ((Sleep(0.25), Terminate(), Sleep(1.0), Sleep(1.0)),),
                                (
                                    Finally(
                                        (Open("traced", (Sleep(4.0),)),),
                                        (Open("async with", (Sleep(0.125),)),),
                                    ),
                                ),
                            ),
                        ),
                    ),
                ),
            ),
        )
    ),
    Run(
        "steps",
        (
            Open("created", (Terminate(), Sleep(0.5))),
            Catch((Open("async with", (Sleep(0.125),)),)),
            Sleep(0.25),
        ),
    ),
)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(
    max_examples=examples(60),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(program=PROGRAMS)
# Nothing of a run may overtake its registration, for which no answer comes.
@example(
    Program(
        (Run("scope", (Checkpoint(),)),),
        service=Service(45.0, batch_window=0.0, max_batch_operations=1, num_workers=1),
    )
)
def test_any_schedule_is_stored_as_it_happened(backend: str, program: Program) -> None:
    assert Play(program, backend).perform() == []


@pytest.mark.parametrize("answering_time", [0.0, 0.125])
@pytest.mark.parametrize("body", [RICH, STOPPED], ids=["a rich one", "one that is stopped"])
@pytest.mark.parametrize(
    ("backend", "native"),
    [("asyncio", False), ("asyncio", True), ("trio", False)],
    ids=["asyncio", "asyncio, natively", "trio"],
)
def test_a_program_is_stored_as_it_happened_wherever_it_is_cancelled(
    backend: str, native: bool, body: Steps, answering_time: float
) -> None:
    service = Service(answering_time, max_batch_operations=2, poll_interval=0.25)
    program = Program(body, service=service)
    whole = Play(program, backend)
    assert whole.perform() == []
    assert whole.turns > 40
    wrong = {}
    # At every sixth turn; with the profile "fuzz" at every one.
    for turn in range(0, whole.turns + 1, max(1, 240 // examples(100))):
        cancelled = replace(program, interrupt=Interrupt("turns", turn, native))
        wrong[turn] = Play(cancelled, backend).perform()
    assert not any(wrong.values()), wrong
