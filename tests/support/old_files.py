"""Files of a local Prefactor as earlier releases left them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from prefactor_core.local.migrations import MIGRATIONS


def downgrade(path: str | Path, version: int) -> None:
    """Give the closed file the tables of the first ``version`` migrations, with their rows."""
    path = Path(path)
    old = path.with_suffix(".old")
    with closing(sqlite3.connect(old)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        for migration in MIGRATIONS[:version]:
            database.executescript(migration.replace(":now", "0"))
        # The first release did not number its files.
        database.execute(f"PRAGMA user_version = {0 if version == 1 else version}")
        database.execute("ATTACH ? AS new", (str(path),))
        with database:
            for (table,) in database.execute(
                "SELECT name FROM main.sqlite_schema WHERE type = 'table'"
            ).fetchall():
                old_columns, new_columns = (
                    [row[1] for row in database.execute(f"PRAGMA {schema}.table_info({table})")]
                    for schema in ("main", "new")
                )
                columns = ", ".join(name for name in old_columns if name in new_columns)
                database.execute(f"DELETE FROM main.{table}")
                database.execute(
                    f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM new.{table}"
                )
    old.replace(path)
