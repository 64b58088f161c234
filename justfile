# The verbs of this project. Nothing has to be there before: each makes what it needs.

set shell := ["sh", "-eu", "-c"]

venv := ".venv"
# ASYNC124: what a framework awaits is async also without an await. ASYNC127: httpx is given.
# ASYNC112 (in tests): a task group with one task is how a test gets another task.
# ASYNC103, ASYNC104: workers survive what was not meant for them; what is raised in a thread of
# ours is handed to the caller, and what leaves a cancel scope to who leaves that.
not_here := "ASYNC124,ASYNC127"
survivors := "prefactor_core/agent/cancellation.py:ASYNC103,ASYNC104 prefactor_core/queue/workers.py:ASYNC103,ASYNC104 prefactor_core/client/loop_thread.py:ASYNC103,ASYNC104 prefactor_core/export/termination.py:ASYNC103 prefactor_core/payloads/timebox.py:ASYNC103,ASYNC104 prefactor_core/queue/daemon_thread.py:ASYNC103"
python := venv / "bin/python"
# What needs none of the run-time dependencies, or starts whole programs that others start too.
not_lowest := "--ignore=tests/payloads/test_credentials.py --ignore=tests/processes/test_main_job.py --ignore=tests/exceptions/test_messages.py --ignore=tests/schema_registry/test_patterns.py --ignore=tests/test_readme.py --ignore=tests/payloads/test_redaction.py --ignore=tests/schema_registry/test_schema_check.py"

# List the verbs.
default:
    @'{{ just_executable() }}' --list

# Run the example agent and show the tree that was stored.
demo *options: (_install venv "local" "trio")
    @{{ python }} -m prefactor_core demo {{ options }}

# Run the tests, on asyncio and trio, on all processors (-n 0: in one process).
test *options: (_install venv "dev")
    {{ python }} -m pytest -n auto {{ options }}

# Run the tests that touch an event loop on uvloop.
test-uvloop *options: (_install venv "dev")
    {{ python }} -m pytest -n auto --uvloop {{ options }}

# Run the tests, on asyncio, on exactly the lowest versions of the run-time dependencies.
test-lowest *options: (_install venv "dev") (_install ".venv-lowest" "dev")
    @# The pytest plugin of the lowest anyio does not load in pytest 9.2 and later.
    .venv-lowest/bin/python -m pip install -q $({{ python }} tests/support/lowest_versions.py) 'pytest<9.2'
    .venv-lowest/bin/python -m pytest -n auto -k 'not trio' --hypothesis-profile=few {{ not_lowest }} {{ options }}

# Play 10,000 schedules of an agent that no test has played before, half of them on trio.
fuzz *options: (_install venv "dev")
    {{ python }} -m pytest --hypothesis-profile=fuzz tests/properties/test_schedules.py {{ options }}

# Measure this client beside the official SDK and OpenTelemetry (--quick: in about a minute).
bench *options: (_install venv "dev")
    PYTHONPATH=tests {{ python }} -m benchmarks {{ options }}

# Measure runs that begin together, and outages, before an API that fails.
bench-faults *options: (_install venv "dev")
    PYTHONPATH=tests {{ python }} -m benchmarks.faults {{ options }}

# Show how a program starts and ends while the API fails (takes some minutes).
bench-exits *options: (_install venv "dev")
    PYTHONPATH=tests {{ python }} -m benchmarks.exits {{ options }}

# Check style, types and floors.
check: (_install venv "dev")
    {{ venv }}/bin/ruff check .
    {{ venv }}/bin/ruff format --check .
    {{ venv }}/bin/flake8 --select ASYNC1,ASYNC2,ASYNC3 --extend-ignore {{ not_here }} --per-file-ignores '{{ survivors }}' prefactor_core examples
    {{ venv }}/bin/flake8 --select ASYNC1,ASYNC2,ASYNC3 --extend-ignore {{ not_here }},ASYNC112 tests
    {{ venv }}/bin/mypy
    {{ venv }}/bin/basedpyright
    {{ venv }}/bin/lint-imports

# Format the code and repair what can be repaired.
fmt: (_install venv "dev")
    {{ venv }}/bin/ruff format .
    {{ venv }}/bin/ruff check --fix .

# Make a virtual environment with an extra (and more) in it, unless it is up to date.
_install folder extra *more:
    @[ -x {{ folder }}/bin/python ] || python3 -m venv {{ folder }}
    @[ {{ folder }}/.installed-{{ extra }} -nt pyproject.toml ] || { \
        {{ folder }}/bin/python -m pip install -q --disable-pip-version-check -e '.[{{ extra }}]' {{ more }} \
        && touch {{ folder }}/.installed-{{ extra }}; }
