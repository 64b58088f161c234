"""tree.js, in the browser that runs it, beside a simple model in Python."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import pytest
from browser.recording import at
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser, Page

RUN = -1  # TREE_RUN
NOW = 30  # seconds after noon, when the spans are looked at
STATUSES = ["pending", "active", "complete", "failed", "cancelled"]

Row = list[Any]
"""id, parent, name, status, start, end, and what the tree does not read."""

# Many trees at once: each call into the browser takes a while.
many = settings(max_examples=15)


@pytest.fixture(scope="module")
def page(chromium: Browser, url: str) -> Generator[Page]:
    """A page that holds the functions of tree.js."""
    page = chromium.new_page()
    page.goto(url)
    page.evaluate(
        """async () => {
            const boot = document.querySelector("script[src$='/boot.js']").src;
            window.tree = await import(new URL("tree/tree.js", boot));
            window.seconds = (ms) => Math.round((ms - Date.parse("2026-01-01T12:00:00Z")) / 1000);
        }"""
    )
    yield page
    page.close()


@st.composite
def spans(draw: st.DrawFn) -> list[Row]:
    """Rows of a skeleton: parents of all kinds, unknown ones and circles among them."""
    count = draw(st.integers(1, 9))
    rows = []
    for number in range(count):
        parents = st.one_of(st.none(), st.integers(0, count).map(str))
        status = draw(st.sampled_from(STATUSES))
        start = None if status == "pending" else draw(st.integers(0, 20))
        end = draw(st.integers(start or 0, 25)) if status not in ("pending", "active") else None
        rows.append([str(number), draw(parents), "step", status, start, end])
    return rows


def batches(of: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(of, min_size=1, max_size=25)


def with_times(rows: Sequence[Row]) -> list[Row]:
    """The rows as the server sends them."""
    unread = [0, None, None, None, 2, None]
    return [
        [*row[:4], *(None if time is None else at(time) for time in row[4:6]), *unread]
        for row in rows
    ]


class Model:
    """The tree of rows, by recursion."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = {row[0]: row for row in rows}
        self.children: dict[str | None, list[str]] = {None: []}
        for row in rows:
            self.children.setdefault(row[0], [])
        for row in rows:
            reaches_top = self._reaches_top(row[0])
            self.children[self._known_parent(row[0]) if reaches_top else None].append(row[0])
        for siblings in self.children.values():
            siblings.sort(key=lambda id: (self.start(id) is None, self.start(id) or 0, id))

    def _known_parent(self, id: str) -> str | None:
        parent = self.rows[id][1]
        return parent if parent in self.rows and parent != id else None

    def _reaches_top(self, id: str) -> bool:
        met = set()
        above: str | None = id
        while above is not None and above not in met:
            met.add(above)
            above = self._known_parent(above)
        return above is None

    def start(self, id: str) -> int | None:
        start: int | None = self.rows[id][4]
        return start

    def end(self, id: str) -> int | None:
        start, end = self.rows[id][4:6]
        return (
            end if end is not None else max(start, NOW) if self.rows[id][3] == "active" else start
        )

    def walk(self, parent: str | None = None, folded: frozenset[str] = frozenset()) -> list[str]:
        """The ids in the order of the rows, without those below ``folded`` ones."""
        ids = []
        for id in self.children[parent]:
            ids += [id, *([] if id in folded else self.walk(id, folded))]
        return ids

    def path(self, id: str) -> list[str]:
        """The ids from the top to ``id``."""
        for parent, children in self.children.items():
            if id in children:
                return [*([] if parent is None else self.path(parent)), id]
        raise AssertionError(id)

    def busy(self, parent: str, start: int, end: int) -> set[int]:
        """The seconds between ``start`` and ``end`` in which a child of ``parent`` was active."""
        return {
            second
            for child in self.children[parent]
            if self.start(child) is not None
            for second in range(self.start(child) or 0, self.end(child) or 0)
            if start <= second < end
        }


def seconds_of(parts: Sequence[Mapping[str, int]]) -> set[int]:
    return {second for part in parts for second in range(part["from"], part["to"])}


def folds(rows: list[Row]) -> st.SearchStrategy[tuple[Any, ...]]:
    """Rows, with some folded, and one that may be the only one to show."""
    ids = st.sampled_from([row[0] for row in rows])
    return st.tuples(st.just(rows), st.frozensets(ids), st.none() | ids)


@st.composite
def changes(draw: st.DrawFn) -> tuple[list[Row], list[Row]]:
    """Rows that are known first, some of them active then, and all rows."""
    rows = draw(spans())
    known = [
        [*row[:3], "active", row[4], None] if row[4] is not None and draw(st.booleans()) else row
        for row in rows[: draw(st.integers(0, len(rows)))]
    ]
    return known, rows


@given(batch=batches(spans()))
@many
def test_every_span_stands_below_its_parent_in_the_order_of_starts(
    page: Page, batch: list[list[Row]]
) -> None:
    trees = page.evaluate(
        """(batch) => batch.map((rows) => {
            const { spans, parent, depth, last, rank, siblings } = tree.buildTree(rows);
            const [parents, depths, ends] = [parent, depth, last].map((each) => [...each]);
            const ids = spans.map(({ id }) => id);
            return { ids, parents, depths, ends, rank: [...rank], siblings: [...siblings] };
        })""",
        [with_times(rows) for rows in batch],
    )
    for rows, tree in zip(batch, trees, strict=True):
        model = Model(rows)
        ids = model.walk()
        assert tree["ids"] == ids
        for place, id in enumerate(ids):
            path = model.path(id)
            above = ids.index(path[-2]) if len(path) > 1 else RUN
            brothers = model.children[path[-2] if len(path) > 1 else None]
            assert tree["parents"][place] == above
            assert tree["depths"][place] == len(path) - 1
            assert tree["ends"][place] == place + 1 + len(model.walk(id))
            assert tree["rank"][place] == brothers.index(id) + 1
            assert tree["siblings"][place] == len(brothers)


@given(batch=batches(spans().flatmap(folds)))
@many
def test_folded_spans_hide_what_is_below_them(page: Page, batch: list[tuple[Any, ...]]) -> None:
    found = page.evaluate(
        """(batch) => batch.map(([rows, folded, only]) => {
            const built = tree.buildTree(rows);
            const options = { only: only === null ? null : built.at.get(only) };
            return tree.visibleRows(built, new Set(folded), options)
                .map((p) => built.spans[p].id);
        })""",
        [[with_times(rows), list(folded), only] for rows, folded, only in batch],
    )
    for (rows, folded, only), shown in zip(batch, found, strict=True):
        model = Model(rows)
        if only is None:
            assert shown == model.walk(folded=folded)
            continue
        above = model.path(only)[:-1]
        if not folded.intersection(above):
            below = [] if only in folded else model.walk(only, folded)
            assert shown == [*above, only, *below]


@given(batch=batches(spans()))
@many
def test_each_moment_of_a_span_is_idle_or_waits_for_a_child(
    page: Page, batch: list[list[Row]]
) -> None:
    found = page.evaluate(
        """([batch, now]) => batch.map((rows) => {
            const built = tree.buildTree(rows);
            const part = ({ from, to }) => ({ from: seconds(from), to: seconds(to) });
            return built.spans.map(({ id }, p) => {
                const { idle, waiting } = tree.gaps(built, p, Date.parse(now));
                return { id, idle: idle.map(part), waiting: waiting.map(part) };
            });
        })""",
        [[with_times(rows) for rows in batch], at(NOW)],
    )
    for rows, gaps in zip(batch, found, strict=True):
        model = Model(rows)
        for span in gaps:
            id = span["id"]
            start, end = model.start(id), model.end(id)
            if not model.children[id] or start is None or end is None:
                assert (span["idle"], span["waiting"]) == ([], [])
                continue
            busy = model.busy(id, start, end)
            assert seconds_of(span["waiting"]) == busy
            assert seconds_of(span["idle"]) == set(range(start, end)) - busy


@given(batch=batches(spans()))
@many
def test_the_critical_path_covers_the_run_with_work_that_was_going_on(
    page: Page, batch: list[list[Row]]
) -> None:
    paths = page.evaluate(
        """([batch, now]) => batch.map((rows) => {
            const built = tree.buildTree(rows);
            const { segments } = tree.criticalPath(built, Date.parse(now));
            const id = (p) => built.spans[p]?.id ?? null;
            return segments.map(({ p, from, to }) =>
                ({ id: id(p), from: seconds(from), to: seconds(to) }));
        })""",
        [[with_times(rows) for rows in batch], at(NOW)],
    )
    for rows, path in zip(batch, paths, strict=True):
        model = Model(rows)
        starts = [start for id in model.rows if (start := model.start(id)) is not None]
        ends = [end for id in model.rows if (end := model.end(id)) is not None]
        covered = [second for part in path for second in range(part["from"], part["to"])]
        if not starts:
            assert path == []
            continue
        active = any(row[3] == "active" for row in rows)
        assert covered == list(range(min(starts), NOW if active else max(ends)))
        for part in path:
            id = part["id"]
            if id is not None:
                assert (model.start(id) or 0) <= part["from"]
                assert part["to"] <= (model.end(id) or 0)
                # In its own work a span waited for no child: none ended within it.
                for child in model.children[id]:
                    start, end = model.start(child), model.end(child)
                    if start is not None and end is not None and start < end:
                        assert not part["from"] < end <= part["to"]


@given(batch=batches(changes()))
@many
def test_changes_give_the_tree_that_all_rows_give_at_once(
    page: Page, batch: list[tuple[list[Row], list[Row]]]
) -> None:
    found = page.evaluate(
        """(batch) => batch.map(([known, rows]) => {
            const shape = ({ spans, parent, last, from, to }) =>
                JSON.stringify([spans, [...parent], [...last], from, to]);
            const changed = tree.applyChanges(tree.buildTree(known), rows);
            return [shape(changed.tree), shape(tree.buildTree(rows)), changed.added];
        })""",
        [[with_times(known), with_times(rows)] for known, rows in batch],
    )
    for (known, rows), (changed, whole, added) in zip(batch, found, strict=True):
        assert changed == whole
        assert sorted(added) == [row[0] for row in rows[len(known) :]]


def test_bars_grow_while_their_run_is_open_and_stand_still_from_then_on(page: Page) -> None:
    rows = with_times([["1", None, "step", "active", 0, None]])
    for status in ["active", *(each for each in STATUSES if each != "active"), "terminated"]:
        run = {"status": status, "inserted_at": at(0), "last_activity_at": at(5)}
        model = page.evaluate(
            """async ([run, rows, now]) => {
                const boot = document.querySelector("script[src$='/boot.js']").src;
                const { RunModel } = await import(new URL("tree/model.js", boot));
                const model = new RunModel(run, tree.buildTree(rows), () => Date.parse(now));
                return { grows: model.grows(), now: seconds(model.now()) };
            }""",
            [run, rows, at(NOW)],
        )
        is_open = status in ("active", "pending")
        assert model == {"grows": is_open, "now": NOW if is_open else 5}, status
