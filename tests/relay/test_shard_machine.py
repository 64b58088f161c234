"""Who reads a shard, what is settled, what is next: relays that die, pause and lose answers."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from prefactor_core.operations import identifiers
from prefactor_core.relay.keys import Keys
from prefactor_core.relay.run_record import OpenSpan
from prefactor_core.relay.shard_state import ShardState

RUNS = [identifiers.generate(0) for _ in range(3)]
RELAYS = 3

places = st.integers(0, RELAYS - 1)
batches = st.lists(st.sampled_from(RUNS), max_size=4)
often = st.sampled_from([True, True, True, False])


@dataclass
class Server:
    """The streams, leases and hashes of a Redis server, as far as a shard uses them.

    ``entries``: the operations of each entry, by its number; ``read``: what the group has given to
    its consumer. ``holder``: of the lease. ``refused``: what was set aside.
    """

    entries: dict[int, list[tuple[str, int]]] = field(default_factory=dict)
    read: set[int] = field(default_factory=set)
    next_new: int = 1
    newest: int = 0
    holder: int | None = None
    runs: set[str] = field(default_factory=set)
    hashes: dict[str, dict[str, bytes]] = field(default_factory=lambda: defaultdict(dict))
    refused: list[str] = field(default_factory=list)
    last_step: str = ""

    def step(
        self, holder: int, read_from: str, count: int, name: str, words: list[object]
    ) -> list[int] | None:
        """The script STEP."""
        if self.holder != holder:
            return None
        if words and name == self.last_step:
            words = []
        elif words:
            self.last_step = name
        while words:
            length = int(str(words[0]))
            self._run(
                [
                    str(word) if not isinstance(word, bytes) else word
                    for word in words[1 : length + 1]
                ]
            )
            words = words[length + 1 :]
        if read_from == "":
            return []
        if read_from == "0":
            self.delete_group()
        new = [n for n in sorted(self.entries) if n >= self.next_new][:count]
        self.read.update(new)
        self.next_new = new[-1] + 1 if new else self.next_new
        return new

    def delete_group(self) -> None:
        """The script makes the group again, from the beginning of the stream."""
        self.read.clear()
        self.next_new = 1

    def _run(self, words: list[str | bytes]) -> None:
        match words:
            case ["XACK", _, _, *ids]:
                self.read -= {number(id) for id in ids}
            case ["XDEL", _, *ids]:
                for id in ids:
                    self.entries.pop(number(id), None)
            case ["HSET", key, name, value]:
                value = value.encode() if isinstance(value, str) else value
                self.hashes[str(key)][str(name)] = value
            case ["HDEL", key, *names]:
                for name in names:
                    self.hashes[str(key)].pop(str(name), None)
            case ["DEL", key]:
                self.hashes.pop(str(key), None)
            case ["SADD", _, key]:
                self.runs.add(str(key))
            case ["XADD", _, _, "op", operation, *_]:
                self.refused.append(str(operation))
            case ["SREM", _, key]:
                self.runs.discard(str(key))
            case _:
                raise AssertionError(words)


def number(id: str | bytes) -> int:
    return int(str(id).partition("-")[0])


def size(place: int) -> int:
    """Bytes of the operation at this place in its run."""
    return 1 + place % 5


@dataclass
class Relay:
    """A relay that has had the lease: what it has read, in order, and not settled."""

    name: str
    state: ShardState
    waiting: list[tuple[str, str, int, int]] = field(default_factory=list)
    passed_over: set[str] = field(default_factory=set)


class ShardMachine(RuleBasedStateMachine):
    """Agents write entries; relays gain the lease, read, settle, write down, lose it and die.

    Every operation of a run opens a span; every third one ends the run, and begins it anew.
    """

    def __init__(self) -> None:
        super().__init__()
        self.server = Server()
        self.relays: dict[int, Relay] = {}
        self.gains = 0
        self.written: dict[str, int] = defaultdict(int)
        # What the API has seen of each run, in the order of its first arrival.
        self.arrived: dict[str, list[int]] = defaultdict(list)

    @initialize(entries=st.lists(batches, min_size=3, max_size=6))
    def write_entries(self, entries: list[list[str]]) -> None:
        for runs in entries:
            self.write_an_entry(runs)

    @rule(runs=batches)
    def write_an_entry(self, runs: list[str]) -> None:
        self.server.newest += 1
        operations: list[tuple[str, int]] = []
        for run in runs:
            self.written[run] += 1
            operations.append((run, self.written[run]))
        self.server.entries[self.server.newest] = operations

    @rule(
        relay=places,
        steps=st.lists(st.tuples(st.integers(1, 3), often, often), min_size=1, max_size=5),
        runs=st.lists(st.sampled_from(RUNS), min_size=1, max_size=6),
    )
    def let_a_relay_work(
        self, relay: int, steps: list[tuple[int, bool, bool]], runs: list[str]
    ) -> None:
        """Also one that has lost the lease, and does not know yet."""
        if self.server.holder is None:
            self.gain_the_lease(relay)
        for count, reads, answered in steps:
            if relay in self.relays:
                self.take_a_step(relay, count, reads, answered)
        for run in runs if relay in self.relays else ():
            self.deliver_the_next_of_a_run(self.relays[relay], run)

    def gain_the_lease(self, relay: int) -> None:
        self.server.holder = relay
        state = ShardState(Keys("pf"), 0, most_words=12)
        self.gains += 1
        self.relays[relay] = Relay(f"relay-{self.gains}", state)
        done = self.server.hashes[Keys("pf").done(0)]
        state.load_done({name.encode(): value for name, value in done.items()})
        for key in self.server.runs:
            fields = {n.encode(): v for n, v in self.server.hashes[key].items()}
            if fields:
                state.load(key, fields)

    def take_a_step(self, relay: int, count: int, reads: bool, answered: bool) -> None:
        state = self.relays[relay].state
        read_from = state.read_from if reads else ""
        words = list(state.words())
        name = f"{self.relays[relay].name}-{state.steps}"
        answer = self.server.step(relay, read_from, count, name, words)
        if answer is None:
            # Another relay has the lease: this one forgets what it has.
            del self.relays[relay]
            return
        if not answered:
            state.read_again()  # done, and the relay does not know
            return
        state.written()
        if not reads:
            return
        ids = [f"{number}-0" for number in answer]
        for id in state.has_read(ids, count):
            operations = self.server.entries.get(number(id), [])
            passed_over = [
                position
                for position, (run, _) in enumerate(operations)
                if run in self.relays[relay].passed_over
            ]
            self.relays[relay].waiting += [
                (id, *operations[position], position)
                for position in state.took(
                    id, [size(place) for _, place in operations], passed_over
                )
            ]

    def deliver_the_next_of_a_run(self, relay: Relay, run: str) -> None:
        item = next((item for item in relay.waiting if item[1] == run), None)
        if item is None:
            return
        relay.waiting.remove(item)
        if item[1] in relay.passed_over:
            relay.passed_over.remove(item[1])
            relay.state.read_again()
        entry_id, run, place, position = item
        if place not in self.arrived[run]:
            self.arrived[run].append(place)
        if place % 2 == 0:
            relay.state.set_aside(["op", f"{relay.name}: {place} of {run}"])
        if place % 3 == 0:
            relay.state.close_run(run)
        else:
            record = relay.state.open_run(run, "agent", None)
            record.span_opened(OpenSpan(f"span-{place}", None, True))
        relay.state.settled(entry_id, position)

    @rule(relay=places, run=st.sampled_from(RUNS))
    def pass_a_run_over(self, relay: int, run: str) -> None:
        """The API fails at its oldest operation; the later ones are left to the server."""
        if relay in self.relays:
            held = self.relays[relay]
            _, *later = [item for item in held.waiting if item[1] == run] or [None]
            for item in later:
                assert item is not None
                held.waiting.remove(item)
                held.state.put_back(item[0], item[3])
                held.passed_over.add(run)

    @rule(relay=places, what=st.sampled_from(["the lease ends", "a relay dies", "no group"]))
    def disturb(self, relay: int, what: str) -> None:
        if what == "the lease ends":
            self.server.holder = None
        elif what == "a relay dies":
            self.relays.pop(relay, None)
        else:
            self.server.delete_group()

    @invariant()
    def the_operations_of_a_run_arrive_in_order(self) -> None:
        for arrived in self.arrived.values():
            assert arrived == list(range(1, len(arrived) + 1))

    @invariant()
    def a_relay_sets_nothing_aside_twice(self) -> None:
        assert len(set(self.server.refused)) == len(self.server.refused)

    @invariant()
    def a_relay_counts_the_bytes_of_the_operations_that_it_holds(self) -> None:
        for relay in self.relays.values():
            assert relay.state.bytes == sum(size(place) for _, _, place, _ in relay.waiting)

    @invariant()
    def what_is_deleted_has_arrived(self) -> None:
        left = {item for entry in self.server.entries.values() for item in entry}
        for run, count in self.written.items():
            for place in range(1, count + 1):
                assert (run, place) in left or place in self.arrived[run]

    def teardown(self) -> None:
        """One relay that lives on brings everything to its end."""
        self.server.holder = None
        self.relays.clear()
        self.gain_the_lease(0)
        relay = self.relays[0]
        for _ in range(10 + 4 * self.server.newest):
            self.take_a_step(0, 3, True, True)
            for _, run, _, _ in list(relay.waiting):
                self.deliver_the_next_of_a_run(relay, run)
        assert relay.state.is_at_end
        assert not relay.state.has_changes
        assert (relay.state.unsettled, relay.state.bytes) == (0, 0)
        assert self.server.entries == {}
        assert self.server.read == set()
        assert not self.server.hashes[Keys("pf").done(0)]
        self.the_operations_of_a_run_arrive_in_order()
        self.what_is_deleted_has_arrived()
        self.what_is_kept_of_runs_is_what_is_open()

    def what_is_kept_of_runs_is_what_is_open(self) -> None:
        keys = Keys("pf")
        for run in RUNS:
            count = self.written[run]
            spans = {f"span-{place}" for place in range(count - count % 3 + 1, count + 1)}
            kept = self.server.hashes.get(keys.run(run), {})
            assert {name.removeprefix("span:") for name in kept if "span:" in name} == spans
            assert (keys.run(run) in self.server.runs) == bool(spans)


TestShard = ShardMachine.TestCase
TestShard.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
