# The verbs of this project. Nothing has to be there before: each makes what it needs.

set shell := ["sh", "-eu", "-c"]

# Python writes what it has compiled, or each of the many processes of the tests compiles it anew.
export PYTHONDONTWRITEBYTECODE := ""

venv := ".venv"
python := venv / "bin/python"
# One more than processors, as some tests wait; who is done takes over what waits for another.
parallel := "-n $(( $(getconf _NPROCESSORS_ONLN) + 1 )) --dist worksteal"

# ASYNC124: what a framework awaits is async also without an await. ASYNC127: httpx is given.
# ASYNC100, ASYNC300 (RUF006): ruff looks for that. Disabled, a rule costs no time.
not_here := "ASYNC100,ASYNC124,ASYNC127,ASYNC3,ASYNC9"
# A file with none of these words breaks no rule, and each file takes a tenth of a second to read.
waiting := "\\b(async|await|anyio|trio|asyncio)\\b|BaseException|ExceptionGroup|except:"
# ASYNC103, ASYNC104: workers survive what was not meant for them; what is raised in a thread of
# ours is handed to the caller, and what leaves a cancel scope to who leaves that. ASYNC113,
# ASYNC114, ASYNC128: commands wait for the connection, which coredis starts.
survivors := "prefactor_core/agent/cancellation.py:ASYNC103,ASYNC104 prefactor_core/queue/workers.py:ASYNC103,ASYNC104 prefactor_core/client/loop_thread.py:ASYNC103,ASYNC104 prefactor_core/export/termination.py:ASYNC103 prefactor_core/payloads/timebox.py:ASYNC103,ASYNC104 prefactor_core/queue/daemon_thread.py:ASYNC103 prefactor_core/relay/server.py:ASYNC103,ASYNC113 prefactor_core/relay/connections.py:ASYNC114,ASYNC128"
# The code that waits, sends, or holds threads and signals: what another loop could break.
on_a_loop := "tests/agent/test_generators.py tests/agent/test_runs_in_threads.py tests/agent/test_turns.py tests/client/test_scope.py tests/client/test_threads.py tests/processes/test_signals.py tests/queue"
# What calls anyio (queue), httpx (api) and msgspec (the stored answers, the capture of values,
# schemas from types) itself, and two properties that go through all of them, the client included.
on_dependencies := "tests/api tests/local/test_bulk.py tests/local/test_states.py tests/payloads/test_capture.py tests/properties/test_delivery_machine.py tests/properties/test_outcomes.py tests/queue tests/schema_registry/test_type_schema.py"
# The rooms that operations pass: what a cancellation breaks there is lost.
on_the_way := "prefactor_core/agent prefactor_core/api prefactor_core/client prefactor_core/compat prefactor_core/export prefactor_core/journal prefactor_core/otel prefactor_core/payloads prefactor_core/queue prefactor_core/recording prefactor_core/relay prefactor_core/schema_registry prefactor_core/testing.py"
# What goes on for as many examples as it is given.
fuzzed := "tests/properties/test_schedules.py tests/properties/test_journal_machine.py tests/processes/test_crashes.py"

# List the verbs.
default:
    @'{{ just_executable() }}' --list

# Run the example agent, show the tree that was stored, and serve its page (--slow: watch a run).
demo *options: (_install venv "local" "trio")
    @{{ python }} -m prefactor_core demo {{ options }}

# Run the tests, on asyncio and trio, on all processors (-n 0: in one process).
test *options: (_install venv "dev")
    {{ python }} -m pytest {{ parallel }} {{ options }}

# Run the tests that touch an event loop, and no virtual time, on uvloop.
test-uvloop *options: (_install venv "dev")
    {{ python }} -m pytest {{ parallel }} --uvloop {{ on_a_loop }} {{ options }}

# Run the tests of the local Prefactor again, through servers: hypercorn on trio, then uvicorn.
test-server *options: (_install venv "dev")
    {{ python }} -m pytest {{ parallel }} --served-by hypercorn tests/local {{ options }}
    {{ python }} -m pytest {{ parallel }} --served-by uvicorn tests/local {{ options }}

# Run the tests that touch a run-time dependency, on asyncio, on exactly the lowest versions.
test-lowest *options: (_install venv "dev")
    @# In front of the newest ones. anyio's oldest plugin does not load in pytest 9.2 and later.
    {{ python }} -m pip install -q --disable-pip-version-check --no-compile --upgrade --target .venv-lowest $({{ python }} tests/support/lowest_versions.py) 'pytest<9.2'
    PYTHONPATH="$PWD/.venv-lowest" {{ python }} -m pytest {{ parallel }} -k 'not trio' --hypothesis-profile=few {{ on_dependencies }} {{ options }}

# Drive the pages in a real browser; installs Debian's Chromium where root and apt-get are.
test-browser *options: _chromium _browser
    {{ python }} -m pytest -n 2 --dist loadfile tests/browser {{ options }}

# Run the cells of notebooks in a kernel of Jupyter and in the shell of IPython.
test-notebook *options: (_install ".venv-notebook" "local" "pytest" "hypothesis" "trio" "ipykernel" "jupyter-client")
    .venv-notebook/bin/python -m pytest {{ options }} tests/notebooks

# Run the test kit with pytest-asyncio, anyio's plugin and pytest-trio.
test-plugins *options: (_install ".venv-plugins" "local" "hypothesis" "pytest-asyncio" "pytest-trio")
    .venv-plugins/bin/python -m pytest -p no:asyncio -p no:trio {{ options }} tests/plugins

# Run the tests of the relay with real Redis servers; installs Debian's where root and apt-get are.
test-relay *options: _redis (_install venv "dev")
    {{ python }} -m pytest {{ parallel }} tests/redis {{ options }}

# Let Schemathesis make some thousand requests by the OpenAPI document of a served file.
test-openapi *options: (_install ".venv-openapi" "local" "schemathesis")
    PYTHONPATH=tests .venv-openapi/bin/python -m openapi {{ options }}

# Make the pictures of the README.
shots: _chromium _browser
    PYTHONPATH=tests {{ python }} -m browser.shots examples/pictures

_browser: (_install venv "dev")
    @{{ python }} -c 'import playwright, axe_playwright_python' 2> /dev/null || {{ python }} -m pip install -q --disable-pip-version-check --no-compile playwright axe-playwright-python

_chromium:
    @command -v chromium > /dev/null || command -v google-chrome > /dev/null || { \
        [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null \
            || { echo 'error: Chromium is needed: install it, as by "sudo apt-get install chromium"' >&2; exit 1; }; \
        apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y install \
            --no-install-recommends chromium fonts-dejavu-core > /dev/null; }

_redis:
    @command -v redis-server > /dev/null || { \
        [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null \
            || { echo 'error: Redis is needed: install it, as by "sudo apt-get install redis-server"' >&2; exit 1; }; \
        apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y install \
            --no-install-recommends redis-server > /dev/null; }

# Build the wheel, install it where nothing else is, and run its demo there.
test-wheel:
    rm -rf .venv-wheel dist
    python3 -m venv .venv-wheel
    .venv-wheel/bin/python -m pip wheel -q --disable-pip-version-check --no-deps --wheel-dir dist .
    .venv-wheel/bin/python -m pip install -q --disable-pip-version-check "$(echo dist/*.whl)[local]"
    cd .venv-wheel && bin/python -I -m prefactor_core demo

# Play 10,000 schedules that no test has played before, and kill agents 1,800 times; half on trio.
fuzz *options: (_install venv "dev")
    {{ python }} -m pytest --hypothesis-profile=fuzz {{ fuzzed }} {{ options }}

# Measure this client beside the official SDK and OpenTelemetry (--quick: in about a minute).
bench *options: (_install venv "dev")
    PYTHONPATH=tests {{ python }} -m benchmarks {{ options }}

# Measure runs that begin together, and outages, before an API that fails.
bench-faults *options: (_install venv "dev")
    PYTHONPATH=tests {{ python }} -m benchmarks.faults {{ options }}

# Show how a program starts and ends while the API fails (takes some minutes).
bench-exits *options: (_install venv "dev")
    PYTHONPATH=tests {{ python }} -m benchmarks.exits {{ options }}

# Measure what a journal costs, and how fast it is replayed (--quick: in about a minute).
bench-journal *options: (_install venv "dev")
    PYTHONPATH=tests {{ python }} -m benchmarks.journal {{ options }}

# Measure what producers bring to Redis, and relays to the API (--quick: in about a minute).
bench-relay *options: _redis (_install venv "dev")
    PYTHONPATH=tests {{ python }} -m benchmarks.relay {{ options }}

# Measure agents that record beside a local server, and whether it loses anything (five minutes).
bench-server *options: (_install venv "dev")
    PYTHONPATH=tests {{ python }} -m benchmarks.local_server {{ options }}

# Run the published clients against the local Prefactor, the adapters, instrumentations and chapters
# of frameworks on this package, and make the calls of the vendor's command line and dashboard
# (WORDS: only environments with such a word in their names, as otel; chapter, cli, dashboard).
compat *words: (_install venv "dev")
    PYTHONPATH=tests {{ python }} -m compat {{ words }}

# Check style, types and floors.
[parallel]
check: _style _mypy _basedpyright

_style: (_install venv "dev")
    {{ venv }}/bin/ruff check .
    {{ venv }}/bin/ruff format --check .
    {{ venv }}/bin/lint-imports
    {{ venv }}/bin/flake8 --select ASYNC1,ASYNC2 --disable {{ not_here }} --per-file-ignores '{{ survivors }}' $(grep -rlE --include='*.py' '{{ waiting }}' {{ on_the_way }})

_mypy: (_install venv "dev")
    {{ venv }}/bin/mypy

_basedpyright: (_install venv "dev")
    {{ venv }}/bin/basedpyright

# Format the code and repair what can be repaired.
fmt: (_install venv "dev")
    {{ venv }}/bin/ruff format .
    {{ venv }}/bin/ruff check --fix .

# Make a virtual environment with an extra (and more) in it, unless it is up to date.
_install folder extra *more:
    @[ -x {{ folder }}/bin/python ] || python3 -m venv {{ folder }}
    @[ {{ folder }}/.installed-{{ extra }} -nt pyproject.toml ] || { \
        {{ folder }}/bin/python -m pip install -q --disable-pip-version-check --no-compile -e '.[{{ extra }}]' {{ more }} \
        && touch {{ folder }}/.installed-{{ extra }}; }
