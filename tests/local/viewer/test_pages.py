"""The pages and their files, and what the viewer says about itself."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from support.cases import case
from support.local_api import opened
from support.transport import http_to
from support.viewing import Site, viewing

from prefactor_core import PrefactorValueError, __version__
from prefactor_core.local.server import open_site
from prefactor_core.local.viewer import open_viewer
from prefactor_core.local.viewer.static import FOLDER

FILES = sorted(
    path.relative_to(FOLDER).as_posix()
    for path in FOLDER.rglob("*")
    if path.suffix in (".js", ".css", ".svg")
)


async def test_all_pages_are_one_page_that_names_its_files_by_their_version(site: Site) -> None:
    for path in ("/", "/runs/anything", "/agents", "/cli/connect"):
        with case(path):
            answer = await site.get(path)
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "text/html; charset=utf-8"
            assert answer.headers["cache-control"] == "no-cache"
            assert "{{" not in answer.text
            for address in re.findall(r'(?:src|href)="([^"]*)"', answer.text):
                assert (await site.get(address)).status_code == 200, address
    for path in ("/nothing", "/runs", "/runs/", "/runs/a/b", "/index.html"):
        with case(path):
            unknown = await site.get(path)
            assert (unknown.status_code, unknown.text) == (404, answer.text)


async def test_files_are_kept_for_ever_under_a_name_that_changes_with_them(site: Site) -> None:
    version = site.viewer.static_version
    for name in FILES:
        with case(name):
            packed = await site.get(f"/-/static/{version}/{name}")
            plain = await site.http.get(
                f"/-/static/{version}/{name}", headers={"Accept-Encoding": "identity"}
            )
            assert packed.content == plain.content == (FOLDER / name).read_bytes()
            encodings = [each.headers.get("content-encoding") for each in (packed, plain)]
            assert encodings == ["gzip", None]
            for answer in (packed, plain):
                assert "immutable" in answer.headers["cache-control"]
                assert answer.headers["vary"] == "Accept-Encoding"
                kind = answer.headers["content-type"].partition(";")[0]
                assert kind in ("text/javascript", "text/css", "image/svg+xml")


async def test_no_other_file_is_served(site: Site) -> None:
    version = site.viewer.static_version
    for path in (
        f"{version}/index.html",
        f"{version}/run",
        f"{version}/run/boot.js",
        f"{version}/../app.py",
        f"{version}/..%2Fapp.py",
        f"{version}/%2e%2e/app.py",
        f"{version}/",
        f"another/{FILES[0]}",
        version,
    ):
        with case(path):
            answer = await site.get(f"/-/static/{path}")
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_a_span_has_an_address_of_its_own(site: Site) -> None:
    run_id = await site.api.start()
    span = await site.api.created(run_id)
    answer = await site.get(f"/spans/{span['id']}")
    assert answer.status_code == 302
    assert answer.headers["location"] == f"/runs/{run_id}?span={span['id']}"
    assert (await site.get("/spans/unknown")).status_code == 404


async def test_an_unknown_endpoint_or_method_is_an_error_of_the_api(site: Site) -> None:
    for method, path, status, code in (
        ("GET", "/-/nothing", 404, "not_found"),
        ("POST", "/-/runs", 405, "bad_request"),
        ("DELETE", "/", 405, "bad_request"),
    ):
        with case(method, path):
            answer = await site.http.request(method, path)
            assert answer.status_code == status
            body = answer.json()
            assert (body["status"], body["code"]) == ("error", code)
    assert (await site.http.head("/-/runs")).status_code == 200


async def test_the_viewer_says_which_file_it_shows(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    for read_only in (False, True):
        async with viewing(str(path), read_only=read_only) as site:
            about = await site.json("/-/about")
            account_id = (await site.api.instance(await site.api.start()))["account_id"]
            assert about == {
                "database": "runs.db",
                "path": str(path),
                "url": "http://127.0.0.1:8787",
                "version": __version__,
                "read_only": read_only,
                "needs_token": False,
                "time": about["time"],
                "account_id": account_id,
            }


async def test_a_large_answer_is_compressed_for_clients_that_take_it(site: Site) -> None:
    run_id = await site.api.start()
    for _ in range(20):
        await site.api.created(run_id)
    path = f"/-/runs/{run_id}/skeleton"
    packed = await site.get(path)
    plain = await site.http.get(path, headers={"Accept-Encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert packed.json() == plain.json()
    assert "content-encoding" not in (await site.get("/-/about")).headers


async def test_a_file_is_shown_without_a_server_that_writes(tmp_path: Path) -> None:
    # A space and a % in the name: SQLite gets it as a URL.
    path = str(tmp_path / "my runs%41?.db")
    async with opened(path) as api:
        run_id = await api.start()
    async with (
        open_viewer(path, read_only=True) as viewer,
        http_to(viewer, "http://x") as http,
    ):
        assert (await http.get(f"/-/runs/{run_id}")).status_code == 200
        with closing(sqlite3.connect(path)) as db:
            assert db.execute("SELECT count(*) FROM agent_instances").fetchone() == (1,)


async def test_a_file_that_cannot_be_shown_says_why(tmp_path: Path) -> None:
    old, new, other, missing = (tmp_path / name for name in ("old", "new", "other", "missing"))
    for path, version in ((old, 1), (new, 99)):
        with closing(sqlite3.connect(path)) as db:
            db.execute(f"PRAGMA user_version = {version}")
    other.write_text("no database " * 100)
    for path, problem in (
        (old, "python -m prefactor_core serve"),
        (new, "by a later version"),
        (other, "not a database"),
        (missing, "there is no such file"),
        (tmp_path, "there is no such file"),
    ):
        with case(path.name), pytest.raises(PrefactorValueError) as raised:
            async with open_viewer(str(path)):
                pass
        assert problem in str(raised.value)
        assert str(path) in str(raised.value)
    assert not missing.exists()


async def test_a_file_that_is_damaged_later_is_an_error_of_the_api(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    async with opened(str(path)) as api:
        await api.start()
    async with (
        open_viewer(str(path)) as viewer,
        http_to(viewer, "http://x") as http,
    ):
        with closing(sqlite3.connect(path)) as db:
            db.execute("DROP TABLE agents")
        answer = await http.get("/-/runs")
        assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")


async def test_the_pages_are_told_whether_agents_need_a_token(tmp_path: Path) -> None:
    for token in (None, "a secret"):
        async with open_site(str(tmp_path / "runs.db"), port=0, token=token) as site:
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            async with http_to(site.app, site.url, **headers) as http:
                about = (await http.get("-/about")).json()
                assert about["needs_token"] is (token is not None)
