"""The commands about journals, as a user gives them."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from msgspec import Raw
from support.commands import run_here, run_in_terminal
from support.dead_journals import Journal, run_agent_until_killed
from support.harness import StoredRun, make_config, open_faulty_api, stored_runs
from support.journal_files import NOON, create, end, register, start
from support.server import serve_local_prefactor

from prefactor_core.cli.journal_folder import take, was_written_lately
from prefactor_core.cli.journal_replay import Delivery, Outcome
from prefactor_core.client.connection import open_api
from prefactor_core.journal.directory import Hold, JournalDirectory
from prefactor_core.local import open_local_prefactor
from prefactor_core.models.lifecycle import SpanStatus
from prefactor_core.operations import CreateSpan, Operation
from prefactor_core.operations.identifiers import generate

NOWHERE = "http://127.0.0.1:9"


def journal(*command: str | Path, cwd: Path, **options: str) -> tuple[int, str, str]:
    return run_here("journal", *command, cwd=cwd, **options)


def listed(folder: Path) -> list[dict[str, Any]]:
    code, shown, errors = journal("ls", "journals", "--json", cwd=folder)
    assert (code, errors) == (0, "")
    return list(json.loads(shown))


def runs_in(path: Path) -> list[StoredRun]:
    async def read() -> list[StoredRun]:
        async with open_local_prefactor(str(path)) as app:
            return await stored_runs(app, "research")

    return anyio.run(read)


def held(path: Path) -> Hold:
    hold = take(path)
    assert isinstance(hold, Hold)
    return hold


@pytest.fixture(scope="module")
def of_a_killed_agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an agent that was killed while its API did not answer."""
    directory = tmp_path_factory.mktemp("killed") / "journals"
    run_agent_until_killed(directory, NOWHERE)
    return directory


@pytest.fixture
def killed(of_a_killed_agent: Path, tmp_path: Path) -> Path:
    """A copy of that directory, as on another machine."""
    return Path(shutil.copytree(of_a_killed_agent, tmp_path / "journals"))


@pytest.fixture
def journals(tmp_path: Path) -> Path:
    return tmp_path / "journals"


def new_database(path: Path) -> str:
    """Make an empty database of the local Prefactor; return the address of its API."""

    async def make() -> None:
        async with open_local_prefactor(str(path)):
            pass

    anyio.run(make)
    return f"local:{path}"


def run_of(agent_id: str) -> list[Operation]:
    """A run that the local Prefactor accepts, if it knows the agent."""
    instance_id, span_id = generate(0), generate(0)
    registration = msgspec.structs.replace(
        register(instance_id),
        agent_id=agent_id,
        agent_version=Raw(b'{"name":"An agent","external_identifier":"v1"}'),
        agent_schema_version=Raw(
            b'{"external_identifier":"s1","span_type_schemas":'
            b'[{"name":"agent:llm","params_schema":{"type":"object"}}]}'
        ),
    )
    return [registration, start(instance_id), create(span_id, run=instance_id)]


# --- ls


def test_one_line_for_each_journal_says_who_wrote_it_and_what_it_holds(journals: Path) -> None:
    dead, living = Journal(journals), Journal(journals, api_url="local:/runs.db")
    dead.append(register(), start(), create("one"), create("two"))
    dead.open_span("three", "run", NOON)
    dead.refuse(create("one"), "422 validation_errors")
    dead.settle(register())
    dead.die()
    code, shown, errors = journal("ls", "journals", cwd=journals.parent)
    assert (code, errors) == (0, "")
    titles, *lines = shown.splitlines()
    first, second = sorted(lines, key=lambda line: line.startswith(living.name))
    assert re.split(r"  +", titles) == [
        *("journal", "pending", "refused", "open runs", "open spans", "size", "written by")
    ]
    name, pending, refused, runs, spans, size, wrote = re.split(r"  +", first)
    assert (name, pending, refused, runs, spans) == (dead.name, "2", "1", "1", "2")
    assert re.fullmatch(r"\d\.\d kB", size)
    assert re.fullmatch(
        r"dead: process 42 on build-7 since \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ, for https://api.example",
        wrote,
    )
    assert second.startswith(living.name)
    assert "  in use: process 42 on build-7 since " in second
    assert second.endswith(", for local:/runs.db")


def test_a_program_gets_the_list_as_json(journals: Path) -> None:
    dead, living = Journal(journals), Journal(journals)
    dead.append(register(), start(), create("one"))
    dead.die()
    first, second = sorted(listed(journals.parent), key=lambda each: each["name"] == living.name)
    assert first.pop("since")[:4] == first.pop("until")[:4] == time.strftime("%Y")
    assert first.pop("bytes") == sum(file.stat().st_size for file in dead.path.iterdir())
    assert first == {
        "name": dead.name,
        "in_use": False,
        "lock_problem": None,
        "host": "build-7",
        "process": 42,
        "api_url": "https://api.example",
        "pending": 3,
        "refused": 0,
        "open_runs": 1,
        "open_spans": 1,
        "damaged": 0,
        "damaged_files": [],
        "problem": None,
    }
    assert (second["name"], second["in_use"], second["pending"]) == (living.name, True, 0)


def test_a_directory_without_a_journal_is_no_error(journals: Path) -> None:
    journals.mkdir()
    for command, said in {
        "ls": "there is no journal in journals\n",
        "show": "there is no journal in journals\n",
        "replay": "there is nothing to replay in journals\n",
        "discard": "there is nothing to discard in journals\n",
    }.items():
        assert journal(command, "journals", cwd=journals.parent) == (0, said, "")
    for command in ("ls", "show"):
        assert journal(command, "journals", "--json", cwd=journals.parent) == (0, "[]\n", "")


def test_damage_is_listed_and_shown(journals: Path) -> None:
    left = Journal(journals)
    left.append(create("one"), create("two"), create("three"))
    left.die()
    segment = left.path / "000001.log"
    content = bytearray(segment.read_bytes())
    content[content.index(b"one-create")] ^= 1
    segment.write_bytes(content[:-1])
    (found,) = listed(journals.parent)
    assert (found["damaged"], found["pending"]) == (2, 1)
    _, shown, _ = journal("show", "journals", cwd=journals.parent)
    assert "dead, damaged: process 42" in shown
    assert "\ndamaged: 2 places cannot be read; files set aside: none\n" in shown


def test_replay_delivers_the_rest_of_a_damaged_journal_and_keeps_the_file(journals: Path) -> None:
    left, (registration, begin, span) = Journal(journals), run_of("research")
    other = msgspec.structs.replace(span, span_id=generate(0), idempotency_key="of-the-damaged")
    left.append(registration, begin, other, span)
    left.die()
    segment = left.path / "000001.log"
    content = bytearray(segment.read_bytes())
    content[content.index(b"of-the-damaged")] ^= 1
    segment.write_bytes(content)
    api_url = new_database(journals.parent / "runs.db")
    code, shown, _ = journal("replay", "journals", "--api-url", api_url, cwd=journals.parent)
    delivered, run_id, stays = shown.splitlines()
    assert delivered == f"{left.name}: 5 operations delivered to {api_url}"
    assert run_id.startswith(f"run {registration.instance_id} is ")
    discard = f"'journal discard {journals} {left.name}'"
    assert stays == (
        f"nothing is pending in {left.name}; what could be read of 000001.damaged is delivered: "
        f"{discard} removes the rest"
    )
    assert code == 1
    # The next one says so again.
    ended = journal("replay", "journals", cwd=journals.parent)
    assert ended == (1, f"{stays}\n", "")
    (found,) = listed(journals.parent)
    assert (found["pending"], found["damaged_files"]) == (0, ["000001.damaged"])
    assert journal("discard", "journals", "--yes", cwd=journals.parent)[0] == 0
    assert list(journals.iterdir()) == []


def test_a_journal_whose_header_is_damaged_can_be_removed(journals: Path) -> None:
    left = Journal(journals)
    left.append(*run_of("research"))
    left.die()
    segment = left.path / "000001.log"
    segment.write_bytes(segment.read_bytes().replace(b"build-7", b"build-8"))
    code, shown, _ = journal("replay", "journals", cwd=journals.parent)
    why = "its API is not known: give --api-url"
    assert (code, shown) == (1, f"{left.name} is left alone, because {why}\n")
    api_url = new_database(journals.parent / "runs.db")
    code, shown, _ = journal("replay", "journals", "--api-url", api_url, cwd=journals.parent)
    assert shown == (
        f"{left.name}: 0 operations delivered to {api_url}, 3 left: its header is damaged, so that "
        "it can only be removed, by 'journal discard'\n"
    )
    assert code == 1


def test_a_later_version_is_named_and_left_alone(journals: Path) -> None:
    later = Journal(journals, version=2)
    later.append(register())
    later.die()
    before = (later.path / "000001.log").read_bytes()
    (found,) = listed(journals.parent)
    assert "version 2 of the format" in found["problem"]
    for command in ("ls", "show", "replay"):
        code, shown, errors = journal(command, "journals", cwd=journals.parent)
        assert "version 2 of the format" in shown
        assert code == ("left alone" in shown)
        assert errors == ""
    assert (later.path / "000001.log").read_bytes() == before


# --- show


def test_what_is_pending_refused_and_open_is_shown_by_run(journals: Path) -> None:
    left = Journal(journals)
    one, two = create("one"), create("two", run="other")
    left.append(register(), start(), one, two, end("one"))
    left.open_span("three", "run", NOON)
    left.send(one)
    left.refuse(two, "422 validation_errors: payload: is too\nlong")
    left.die()
    code, shown, errors = journal("show", "journals", left.name[:20], cwd=journals.parent)
    assert (code, errors) == (0, "")
    parts = [part.splitlines() for part in shown.split("\n\n")]
    assert [part[0].split("  ")[0] for part in parts] == [
        "journal",
        "agent instance run",
        "refused by the API",
        "open at 2026-07-20 12:00:00Z, the latest time in it",
    ]
    cells = [[re.split(r"  +", line) for line in part[1:]] for part in parts]
    noon = "2026-07-20 12:00:00Z"
    assert cells[1][1:] == [
        ["REGISTER_AGENT_INSTANCE agent", noon, "561"],
        ["START_AGENT_INSTANCE", noon, "512"],
        ["CREATE_SPAN agent:llm", "active", noon, "527", "yes", "one"],
        ["FINISH_SPAN", "complete", noon, "530", "one"],
    ]
    ((operation, status, _, reason, error),) = cells[2][1:]
    assert (operation, status, reason) == ("CREATE_SPAN agent:llm", "active", "refused")
    assert error == "422 validation_errors: payload: is too long; agent instance other two"
    assert cells[3][1:] == [
        ["agent instance", "active", noon, "run"],
        ["agent:llm span", "not reported yet", noon, "three of agent instance run"],
    ]
    titles = [re.split(r"  +", part[1]) for part in parts[1:]]
    assert titles == [
        ["pending", "status", "time", "bytes", "sent", "span id"],
        ["refused", "status", "time", "reason", "error"],
        ["open", "status", "since", "id"],
    ]


def test_a_column_that_no_row_needs_is_left_out(journals: Path) -> None:
    left = Journal(journals)
    left.append(register(), create("one"))
    left.die()
    _, shown, _ = journal("show", "journals", cwd=journals.parent)
    (titles,) = (line for line in shown.splitlines() if line.startswith("pending"))
    assert re.split(r"  +", titles) == ["pending", "status", "time", "bytes", "span id"]


def test_an_open_span_has_its_type_and_payload_if_the_journal_has_them(journals: Path) -> None:
    left = Journal(journals)
    pending, delivered = create("pending"), create("delivered")
    left.append(register(), pending, delivered)
    left.settle(delivered)
    left.open_span("opened", "run", NOON)
    left.die()
    show = "show", "journals", "--payloads"
    _, shown, _ = journal(*show, "--json", cwd=journals.parent)
    spans = {span["span_id"]: span for span in json.loads(shown)[0]["open_spans"]}
    schema_names = {span_id: span.get("schema_name", "no type") for span_id, span in spans.items()}
    assert schema_names == {
        "pending": "agent:llm",
        "delivered": "no type",
        "opened": "agent:llm",
    }
    payloads = {span_id: span.get("payload") for span_id, span in spans.items()}
    assert payloads == {"pending": None, "delivered": None, "opened": {"prompt": "Hi"}}
    _, shown, _ = journal(*show, cwd=journals.parent)
    assert [re.split(r"  +", line) for line in shown.splitlines()[-4:]] == [
        ["agent instance", "not started", "run"],
        ["agent:llm span", "active", "2026-07-20 12:00:00Z", "pending of agent instance run"],
        ["span", "active", "2026-07-20 12:00:00Z", "delivered of agent instance run"],
        [
            *("agent:llm span", "not reported yet", "2026-07-20 12:00:00Z"),
            *("opened of agent instance run", '{"prompt":"Hi"}'),
        ],
    ]
    _, shown, _ = journal("show", "journals", cwd=journals.parent)
    assert "prompt" not in shown


def test_payloads_are_shown_only_if_asked_for_and_sensitive_values_never(killed: Path) -> None:
    plain, plain_json, full, full_json = (
        journal("show", "journals", *options, cwd=killed.parent)[1]
        for options in ([], ["--json"], ["--payloads"], ["--payloads", "--json"])
    )
    for text in (plain, plain_json):
        assert "CREATE_SPAN" in text
        assert "number" not in text
    assert '  {"number":1,"to":"[contact_information]"} → {"found":1}\n' in full
    (document,) = json.loads(full_json)
    spans = [each for each in document["pending"] if each["operation_type"] == "CREATE_SPAN"]
    assert [span["payload"]["number"] for span in spans] == [0, 1, 2]
    assert [span["result_payload"] for span in spans] == [{"found": n} for n in range(3)]
    assert '  {"left":"open","to":"[contact_information]"}\n' in full
    for text in (full, full_json):
        assert "me@example.org" not in text
        assert "token-of-the-agent" not in text


def test_a_program_gets_what_is_pending_refused_and_open_as_json(journals: Path) -> None:
    left = Journal(journals)
    one, two = create("one"), create("two")
    left.append(register(), one, two)
    left.open_span("three", "run", NOON)
    left.send(one)
    left.refuse(two, "422 validation_errors")
    left.die()
    code, shown, errors = journal("show", "journals", "--json", cwd=journals.parent)
    assert (code, errors) == (0, "")
    (document,) = json.loads(shown)
    assert document["journal"] == listed(journals.parent)[0]
    registration, created = document["pending"]
    assert registration["operation_type"] == "REGISTER_AGENT_INSTANCE"
    noon = "2026-07-20T12:00:00.000Z"
    assert created == {
        "operation_type": "CREATE_SPAN",
        "timestamp": noon,
        "idempotency_key": "one-create",
        "instance_id": "run",
        "span_id": "one",
        "schema_name": "agent:llm",
        "status": "active",
        "parent_span_id": None,
        "finished_at": None,
        "sequences": created["sequences"],
        "bytes": one.size,
        "sent": True,
        "changed": False,
    }
    (refused,) = document["refused"]
    assert (refused["span_id"], refused["reason"]) == ("two", "refused")
    assert refused["error"] == "422 validation_errors"
    assert document["open_runs"] == [
        {"instance_id": "run", "status": "pending", "started_at": None}
    ]
    assert [(span["span_id"], span["status"]) for span in document["open_spans"]] == [
        ("one", "active"),
        ("three", "pending"),
    ]


@pytest.mark.parametrize(
    ("command", "columns", "encoding"),
    [
        ("ls journals", 40, "ascii"),
        ("ls journals", 80, "utf-8"),
        ("show journals --payloads", 40, "utf-8"),
        ("show journals --payloads", 80, "ascii"),
        ("show journals --payloads", 120, "utf-8"),
    ],
)
def test_a_terminal_of_any_width_gets_every_word(
    killed: Path, command: str, columns: int, encoding: str
) -> None:
    (name,) = (each["name"] for each in listed(killed.parent))
    code, shown, errors = run_in_terminal(
        "journal", *command.split(), cwd=killed.parent, columns=columns, encoding=encoding
    )
    assert (code, errors) == (0, "")
    lines = shown.splitlines()
    assert max(map(len, lines)) <= columns
    assert all(line.isprintable() for line in lines)
    assert any(name in line for line in lines)
    assert not any("…" in line or "..." in line for line in lines)
    is_table = any(re.match(r".*[─-]{20}", line) for line in lines)
    assert is_table == (columns >= 80)
    assert "process " in shown
    if command.startswith("show"):
        assert "CREATE_SPAN agent:tool" in shown
        assert '"number":2' in shown


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_is_json_whatever_the_pipe_can_encode(journals: Path, encoding: str) -> None:
    left, text = Journal(journals), "Größe → ☃ 日本 \N{SNAKE}"
    left.append(msgspec.structs.replace(create("one"), payload=Raw(json.dumps([text]).encode())))
    left.die()
    command = "show", "journals", "--json", "--payloads"
    code, shown, errors = journal(*command, cwd=journals.parent, encoding=encoding)
    assert (code, errors) == (0, "")
    ((payload,),) = ([each["payload"] for each in d["pending"]] for d in json.loads(shown))
    assert payload == [text]


# --- names and folders


def test_input_that_is_wrong_is_one_line_with_the_value_and_the_way_out(journals: Path) -> None:
    first, second = Journal(journals), Journal(journals)
    first.die()
    second.die()
    (journals.parent / "file").touch()
    directory = "give the folder that open_prefactor(journal=...) or PREFACTOR_JOURNAL names"
    one = f"journals/{first.name}.journal"
    cases: list[tuple[list[str], str]] = [
        (["typo"], f"'typo' is not there: {directory}"),
        (["file"], f"'file' is no folder: {directory}"),
        ([one], f"'{one}' is one journal: give its folder, 'journals', and its name"),
    ]
    commands = [
        *([command, *words] for words, _ in cases for command in ("ls", "show", "replay")),
        *(["discard", *words, "--yes"] for words, _ in cases),
    ]
    expected = [said for _, said in cases for _ in range(3)] + [said for _, said in cases]
    for name, count in ((first.name[:4], 2), ("typo", 0)):
        for command in ("show", "replay", "discard"):
            commands.append([command, "journals", name])
            expected.append(
                f"{count} journals in 'journals' have a name that begins with '{name}': "
                "'journal ls journals' has the names"
            )
    for command, said in zip(commands, expected, strict=True):
        assert journal(*command, cwd=journals.parent) == (1, "", f"Error: {said}\n")
    assert len(list(journals.iterdir())) == 2


def test_a_file_that_may_not_be_read_is_named(journals: Path) -> None:
    left = Journal(journals)
    left.append(register())
    left.die()
    (left.path / "000001.log").rename(journals / "elsewhere")
    (left.path / "000001.log").symlink_to(journals / "elsewhere")
    (found,) = listed(journals.parent)
    assert f"{left.path.name}/000001.log cannot be read: " in found["problem"]


def test_a_journal_that_others_can_read_is_listed_and_not_touched(journals: Path) -> None:
    left = Journal(journals)
    left.append(register())
    left.die()
    left.path.chmod(0o755)
    (found,) = listed(journals.parent)
    assert (found["in_use"], found["pending"]) == (None, 1)
    problem = f"{left.path} has the mode 0755: use 'chmod 700 {left.path}'"
    assert found["lock_problem"].endswith(problem)
    _, shown, _ = journal("ls", "journals", cwd=journals.parent)
    assert "  in use or dead: process 42 on build-7 since " in shown
    assert shown.endswith(f"{problem}\n")
    for command, code in ((["discard", "--yes"], 0), (["replay", "--api-url", "local:x.db"], 1)):
        ended, shown, _ = journal(*command, "journals", cwd=journals.parent)
        assert ended == code
        assert f"use 'chmod 700 {left.path}'" in shown
    assert left.path.exists()


def test_a_symbolic_link_is_listed_with_the_way_out(journals: Path) -> None:
    left = Journal(journals)
    left.append(register())
    left.die()
    left.path.rename(journals / "elsewhere")
    left.path.symlink_to(journals / "elsewhere")
    (found,) = listed(journals.parent)
    assert (found["in_use"], found["pending"]) == (None, 1)
    said = f"{left.path} is a symbolic link: replace it by the folder"
    assert found["lock_problem"].endswith(said)
    _, shown, _ = journal("ls", "journals", cwd=journals.parent)
    assert shown.endswith(f"{said}\n")


def test_the_folder_is_by_default_that_of_the_environment(journals: Path) -> None:
    left = Journal(journals)
    left.append(register())
    left.die()
    environment = {"PREFACTOR_JOURNAL": str(journals)}
    for command in ("ls", "show", "replay", "discard"):
        code, shown, errors = journal(command, cwd=journals.parent)
        assert (code, shown) == (1, "")
        assert errors == (
            "Error: there is no DIR: give the folder that open_prefactor(journal=...) names, or "
            "set PREFACTOR_JOURNAL\n"
        )
        _, shown, _ = journal(command, cwd=journals.parent, **environment)
        assert left.name in shown
    code, shown, _ = journal("ls", "elsewhere", cwd=journals.parent, **environment)
    assert (code, shown) == (1, ""), "a DIR that is given is another one"


# --- discard


def test_discard_says_what_would_go_and_deletes_nothing_without_a_yes(killed: Path) -> None:
    for typed in ("n\n", ""):
        code, shown, errors = journal("discard", "journals", cwd=killed.parent, typed=typed)
        assert code == 1
        assert "process " in shown
        asked = (
            "Delete 1 journal with 5 pending operations, 0 refused operations, 1 open run and 2 "
            "open spans? [y/N]: "
        )
        assert errors.startswith(asked)
        said = errors.removeprefix(asked).strip()
        assert said == (
            "nothing is deleted" if typed else "Error: nothing is deleted: answer y, or give --yes"
        )
        assert len(list(killed.iterdir())) == 1
    code, _, errors = run_in_terminal(
        "journal", "discard", "journals", cwd=killed.parent, typed="y\n"
    )
    assert (code, list(killed.iterdir())) == (0, []), errors


def test_discard_leaves_the_journals_of_living_processes_alone(journals: Path) -> None:
    dead, living = Journal(journals), Journal(journals)
    dead.append(register())
    living.append(register("other"))
    dead.die()
    said = f"{living.name} is left alone, because a process has it"
    code, _, errors = journal("discard", "journals", living.name, "--yes", cwd=journals.parent)
    assert (code, errors) == (1, f"Error: {said}\n")
    code, shown, errors = journal("discard", "journals", "--yes", cwd=journals.parent)
    assert (code, errors) == (0, "")
    assert said in shown.splitlines()
    assert list(journals.iterdir()) == [living.path]


def test_discard_can_remove_only_what_was_refused(journals: Path) -> None:
    pending, done, other = Journal(journals), Journal(journals), Journal(journals)
    for left in (pending, done, other):
        left.append(create("one"))
    for left in (pending, other):
        left.append(create("two"))
    for left in (pending, done):
        left.refuse(create("one"), "422 validation_errors")
    for left in (pending, done, other):
        left.die()
    code, shown, errors = journal("discard", "journals", "--refused", "--yes", cwd=journals.parent)
    assert (code, errors) == (0, "")
    assert other.name not in shown
    found = {each["name"]: (each["pending"], each["refused"]) for each in listed(journals.parent)}
    assert found == {pending.name: (1, 0), other.name: (2, 0)}


# --- replay


@pytest.mark.virtual_time
async def test_an_outage_in_between_leaves_the_rest_in_the_journal(journals: Path) -> None:
    left = Journal(journals)
    left.append(*run_of("research"))
    left.die()
    async with open_faulty_api() as api:
        # The run is registered, and then nothing is answered but errors of a gateway.
        api.faults["register"] = [None]
        api.faults["*"] = 503
        async with open_api(make_config().http_config, api) as connection:
            delivery = Delivery(connection, make_config())
            with anyio.fail_after(120):
                outcome = await delivery.deliver(held(left.path), lambda done, total: None)
            assert (outcome.delivered, outcome.refused, outcome.left) == (1, 0, 4)
            assert outcome.error is not None
            assert "503" in outcome.error
            api.faults.clear()
            with anyio.fail_after(120):
                outcome = await delivery.deliver(held(left.path), lambda done, total: None)
            assert outcome == Outcome(delivered=4)
    assert JournalDirectory(journals).journals() == []


def test_a_terminal_sees_what_is_going_on(killed: Path) -> None:
    code, shown, _ = run_in_terminal(
        *("journal", "replay", "journals", "--api-url", "local:runs.db"),
        cwd=killed.parent,
        errors_too=True,
    )
    assert code == 0
    assert re.search(r"sending \w{32} ", shown)
    assert shown.splitlines()[-2].endswith(": 9 operations delivered to local:runs.db")


def test_replay_delivers_what_a_killed_agent_left_and_ends_its_run(killed: Path) -> None:
    code, shown, errors = journal(
        "replay", "journals", "--api-url", "local:runs.db", cwd=killed.parent
    )
    assert (code, errors) == (0, "")
    delivered, run_id = shown.splitlines()
    assert re.fullmatch(r"\w+: 9 operations delivered to local:runs.db", delivered)
    assert list(killed.iterdir()) == []
    (stored,) = runs_in(killed.parent / "runs.db")
    assert re.fullmatch(rf"run \w{{32}} is {stored.id}", run_id)
    assert stored.status == "failed"
    assert sorted(span.status for span in stored.spans.values()) == [
        *["complete"] * 3,
        *["failed"] * 2,
    ]


def test_replay_goes_to_the_api_that_the_journal_names(tmp_path: Path) -> None:
    served = {"api_token": "right", "agents": ("research",)}
    journals = tmp_path / "journals"
    with serve_local_prefactor(tmp_path / "runs.db", **served) as url:  # type: ignore[arg-type]
        left = Journal(journals, api_url=url)
        left.append(*run_of("research"))
        left.die()
        for token, code in (("wr0ng", 1), ("", 1), ("right", 0)):
            environment = {"PREFACTOR_API_TOKEN": token, "PREFACTOR_API_URL": f"{url}/"}
            ended, shown, errors = journal("replay", "journals", cwd=tmp_path, **environment)
            assert ended == code
            assert left.path.exists() == bool(code)
            if code:
                (line,) = errors.splitlines()
                assert line.startswith("Error: ")
                assert "wr0ng" not in line
                assert "401 bad_authtoken" in line
                assert ("PREFACTOR_API_TOKEN" in line) == (not token)
                assert line.endswith("; nothing was sent, 1 journal stays")
            else:
                assert shown.startswith(f"{left.name}: 5 operations delivered to {url}\n")


@pytest.mark.parametrize("api_url", ["", "http://127.0.0.1:9", "local:runs.db"])
def test_the_token_goes_to_no_server_that_only_a_journal_names(
    tmp_path: Path, api_url: str
) -> None:
    left = Journal(tmp_path / "journals", api_url="http://stranger.invalid")
    left.append(*run_of("research"))
    left.die()
    before = listed(tmp_path)
    environment = {"PREFACTOR_API_TOKEN": "token", "PREFACTOR_API_URL": api_url}
    code, shown, errors = journal("replay", "journals", cwd=tmp_path, **environment)
    assert (code, errors) == (1, "")
    problem = "another one" if api_url else "not set"
    assert shown == (
        f"{left.name} is left alone, because it is for http://stranger.invalid, and "
        f"PREFACTOR_API_URL is {problem}: to send it there, with your token, give --api-url "
        "http://stranger.invalid\n"
    )
    assert listed(tmp_path) == before


def test_an_api_that_does_not_answer_leaves_the_journal_as_it_is(killed: Path) -> None:
    before = listed(killed.parent)
    environment = {"PREFACTOR_API_TOKEN": "token"}
    code, shown, errors = journal(
        "replay", "journals", "--api-url", NOWHERE, cwd=killed.parent, **environment
    )
    assert (code, shown) == (1, "")
    (line,) = errors.splitlines()
    assert line.startswith("Error: ")
    assert NOWHERE in line
    assert line.endswith("; nothing was sent, 1 journal stays: try again later")
    assert listed(killed.parent) == before


def test_a_journal_that_the_api_has_nothing_to_do_with_is_left(journals: Path) -> None:
    a, b = (new_database(journals.parent / name) for name in ("a.db", "b.db"))
    strange, fine = Journal(journals, api_url=a), Journal(journals, api_url=b)
    strange.append(*run_of("research")[1:])
    fine.append(*run_of("research"))
    strange.die()
    fine.die()
    code, shown, errors = journal("replay", "journals", cwd=journals.parent)
    assert (code, errors) == (1, "")
    lines = sorted(shown.splitlines())
    assert f"{fine.name}: 5 operations delivered to {b}" in lines
    assert any(
        line.startswith(f"{strange.name}: 0 operations delivered to {a}, 3 left: ")
        and " 404 not_found: agent instance " in line
        for line in lines
    )
    assert [each["name"] for each in listed(journals.parent)] == [strange.name]


def test_a_database_that_is_not_there_is_not_made(journals: Path) -> None:
    left = Journal(journals, api_url="local:/elsewhere/runs.db")
    left.append(*run_of("research"))
    left.die()
    why = "there is no database '/elsewhere/runs.db': give --api-url"
    said = f"{left.name} is left alone, because {why}\n"
    assert journal("replay", "journals", cwd=journals.parent) == (1, said, "")
    ended = journal("replay", "journals", left.name, cwd=journals.parent)
    assert ended == (1, "", f"Error: {said}")


def test_replay_leaves_the_journals_of_living_processes_alone(journals: Path) -> None:
    living = Journal(journals, api_url=new_database(journals.parent / "runs.db"))
    living.append(*run_of("research"))
    said = f"{living.name} is left alone, because a process has it\n"
    assert journal("replay", "journals", cwd=journals.parent) == (0, said, "")
    ended = journal("replay", "journals", living.name[:12], cwd=journals.parent)
    assert ended == (1, "", f"Error: {said}")
    assert living.writer.pending == 3


def test_what_the_api_refuses_stays_with_its_reason(journals: Path) -> None:
    api_url = new_database(journals.parent / "runs.db")
    left = Journal(journals, api_url=api_url)
    registration, begin, span = run_of("research")
    assert isinstance(span, CreateSpan)
    nameless = msgspec.structs.replace(
        create(generate(0), run=span.instance_id, status=SpanStatus.COMPLETE),
        schema_name="",
        finished_at=NOON,
    )
    left.append(registration, begin, span, nameless)
    left.die()
    code, shown, _ = journal("replay", "journals", cwd=journals.parent)
    assert code == 1
    assert shown.startswith(
        f"{left.name}: 5 operations delivered to {api_url}, 1 refused: "
        f"'journal show {journals}' has the reasons\n"
    )
    _, shown, _ = journal("show", "journals", cwd=journals.parent)
    assert re.search(r"CREATE_SPAN  ?complete  .* 422 .*schema_name", shown)
    assert "process 42 on build-7 since " in shown
    # The API is asked once more, and says the same.
    code, shown, _ = journal("replay", "journals", "--refused", cwd=journals.parent)
    assert code == 1
    assert f": 0 operations delivered to {api_url}, 1 refused: " in shown
    (kept,) = listed(journals.parent)
    assert (kept["pending"], kept["refused"], kept["api_url"]) == (0, 1, api_url)
    said = f"nothing is pending in {left.name}; 1 refused operation stays: give --refused\n"
    assert journal("replay", "journals", cwd=journals.parent) == (1, said, "")


def test_what_the_api_refused_of_a_living_process_is_no_failure_of_a_replay(journals: Path) -> None:
    living = Journal(journals)
    living.append(create("one"))
    living.refuse(create("one"), "422 validation_errors")
    (living.path / "000001.log").unlink()
    said = "there is nothing to replay in journals\n"
    assert journal("replay", "journals", cwd=journals.parent) == (0, said, "")


def test_what_was_refused_before_is_named_after_a_replay_of_the_rest(journals: Path) -> None:
    api_url = new_database(journals.parent / "runs.db")
    left = Journal(journals, api_url=api_url)
    left.append(*run_of("research"), create("one"))
    left.refuse(create("one"), "422 validation_errors")
    left.die()
    code, shown, _ = journal("replay", "journals", cwd=journals.parent)
    delivered, _, stays = shown.splitlines()
    assert (code, delivered) == (1, f"{left.name}: 5 operations delivered to {api_url}")
    assert stays == f"nothing is pending in {left.name}; 1 refused operation stays: give --refused"


def test_a_run_that_was_refused_is_delivered_whole_when_the_api_takes_it(journals: Path) -> None:
    api_url = new_database(journals.parent / "runs.db")
    left = Journal(journals, api_url=api_url)
    registration, begin, span = run_of("research")
    assert isinstance(span, CreateSpan)
    left.append(registration, begin, span, end(span.span_id, span.instance_id))
    left.refuse(registration, "422 validation_errors")
    left.die()
    code, shown, errors = journal("replay", "journals", "--refused", cwd=journals.parent)
    assert (code, list(journals.iterdir())) == (0, []), errors
    first, second, run_id = shown.splitlines()
    assert run_id.startswith(f"run {registration.instance_id} is ")
    assert first.startswith(f"{left.name}: 0 operations delivered to {api_url}, 3 refused: ")
    assert second == f"{left.name}: 4 operations delivered to {api_url}"
    (stored,) = runs_in(journals.parent / "runs.db")
    assert stored.status == "failed"
    assert [span.status for span in stored.spans.values()] == ["complete"]


def test_a_journal_that_was_written_lately_may_be_in_use_where_no_lock_tells(
    journals: Path,
) -> None:
    left = Journal(journals)
    left.append(register())
    left.die()
    written = (left.path / "000001.log").stat().st_mtime
    assert was_written_lately(left.path, written + 89)
    assert not was_written_lately(left.path, written + 91)
