"""Upgrades and downgrades: of the store's file, and of the API.

`old_stores/N.sql` is the dump of a file with sessions that a ruvd of schema N has written. A new
migration needs a dump of the schema before it, and a test checks that it is there.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from running import StartDaemon
from wire import contents, say

from ruvd.stores.sqlite.schema import MIGRATIONS
from ruvd.v1 import session_service_pb2 as pb

OLD_STORES = Path(__file__).with_name("old_stores")
OLD = range(1, len(MIGRATIONS))
PROTO = Path(__file__).parents[2] / "proto"
FLAGS = ("--engine", "echo", "--echo-nonce")
FIRST = ["My name is Ada; d'accord? 😀", "My name is Ada; d'accord? 😀 #751f9064"]
SECOND = ["Who am I?", "Who am I? #f598d4ec"]
OTHER = ["Another way.", "Another way. #08db115b"]


def old_store(schema: int, path: Path) -> None:
    """Makes the file as that version left it, with sessions that were used just now."""
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript((OLD_STORES / f"{schema}.sql").read_text())
        now = time.time()
        db.execute("UPDATE sessions SET last_used_time = ?, expire_time = ?", (now, now + 1800))
        if schema >= 3:
            db.execute("UPDATE clock SET now = ?", (now,))


def tables(db: sqlite3.Connection) -> dict[str, str]:
    """Returns the SQL of tables and indices by their names, with white space collapsed."""
    rows = db.execute("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
    return {name: " ".join(sql.split()) for name, sql in rows}


def test_every_old_schema_has_a_dump() -> None:
    assert sorted(int(path.stem) for path in OLD_STORES.glob("*.sql")) == list(OLD)


@pytest.mark.parametrize("schema", OLD)
def test_a_migration_that_was_released_is_never_edited(schema: int, tmp_path: Path) -> None:
    old_store(schema, tmp_path / "s.db")
    with (
        closing(sqlite3.connect(tmp_path / "s.db")) as old,
        closing(sqlite3.connect(":memory:")) as made,
    ):
        for statements in MIGRATIONS[:schema]:
            for statement in statements:
                made.execute(statement)
        assert tables(made) == tables(old)


@pytest.mark.parametrize("schema", OLD)
async def test_a_store_of_an_older_ruvd_keeps_its_sessions_and_answers(
    daemon: StartDaemon, tmp_path: Path, schema: int
) -> None:
    path = tmp_path / "s.db"
    await asyncio.to_thread(old_store, schema, path)
    async with daemon(*FLAGS, "--store", f"sqlite:{path}") as running, running.stub() as stub:
        assert await contents(stub, "ada") == FIRST + SECOND
        assert await contents(stub, "fork") == FIRST + OTHER
        session = (await stub.GetSession(pb.GetSessionRequest(session_id="ada"))).session
        assert (session.system_prompt, dict(session.labels)) == ("Be brief.", {"team": "bern"})
        # A retry from before the upgrade gets the answer from before the upgrade.
        again = await say(stub, SECOND[0], "ada", request_id="second")
        assert (again.message.content, again.exchange_count) == (SECOND[1], 2)
        ref = pb.ResumeCompletionRequest(session_id="ada", request_id="first")
        resumed = [response.event async for response in stub.ResumeCompletion(ref)]
        assert resumed[-1].finished.message.content == FIRST[1]
        finished = await say(stub, "And now?", "ada", request_id="third")
        assert finished.exchange_count == 3
        # The prompt is "Be brief.", the two exchanges and the new words: the window has not moved.
        assert finished.usage.prompt_tokens == 2 + 13 + 7 + 2
        await stub.ForkSession(
            pb.ForkSessionRequest(session_id="fork", exchange_count=1, new_session_id="late")
        )
        assert await contents(stub, "late") == FIRST
    with closing(sqlite3.connect(path)) as db, closing(sqlite3.connect(":memory:")) as new:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        for statements in MIGRATIONS:
            for statement in statements:
                new.execute(statement)
        assert tables(db) == tables(new)


async def test_a_store_of_a_newer_ruvd_ends_the_daemon_and_is_left_as_it_is(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    path = tmp_path / "s.db"
    store = ("--store", f"sqlite:{path}")
    async with daemon(*FLAGS, *store) as running, running.stub() as stub:
        await say(stub, "kept", "s")
    newer = len(MIGRATIONS) + 1
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {newer}")
    before = path.read_bytes()
    refused = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "ruvd", "serve", *FLAGS, *store, "--listen", f"unix:{tmp_path}/r"],
        env=os.environ | {"COLUMNS": "1000"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert refused.returncode == 4
    assert (
        f"ruvd: {path} was written by a newer ruvd (schema {newer}, this one knows"
        f" {newer - 1}): install that version, or use another file"
    ) in " ".join(refused.stderr.split())
    assert path.read_bytes() == before
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {newer - 1}")
    async with daemon(*FLAGS, *store) as running, running.stub() as stub:
        assert (await contents(stub, "s"))[0] == "kept"


# --- proto/check-breaking.sh ---------------------------------------------------------------


class Checkout:
    """A temporary git repository that contains only proto/."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.proto = folder / "proto" / "ruvd" / "v1" / "session_service.proto"
        shutil.copytree(PROTO, folder / "proto")
        self.git("init", "--quiet")
        self.commit()

    def git(self, *arguments: str) -> None:
        environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        who = ("-c", "user.name=test", "-c", "user.email=test@localhost")
        subprocess.run(["git", *who, *arguments], cwd=self.folder, env=environment, check=True)

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "as it is")

    def change(self, edit: Callable[[str], str]) -> None:
        before = self.proto.read_text()
        after = edit(before)
        assert after != before
        self.proto.write_text(after)

    def check(self) -> tuple[int, str]:
        done = subprocess.run(
            [str(self.folder / "proto" / "check-breaking.sh")],
            env=os.environ | {"PYTHON": sys.executable},
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout + done.stderr


def test_a_field_that_is_removed_since_the_last_tag_fails_the_check(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    assert checkout.check() == (0, "proto/: not compared: there is no tag yet\n")
    checkout.git("tag", "v0.1.0")
    checkout.change(
        lambda text: text.replace(
            "message Finished {", "message Finished {\n  // New.\n  bool new = 99;"
        )
    )
    assert checkout.check() == (0, "proto/: breaks no client of v0.1.0\n")
    removed = "  int64 exchange_count = 5;\n"
    checkout.change(lambda text: text.replace(removed, "", 1))
    code, output = checkout.check()
    assert code == 1
    assert '"exchange_count" on message "Finished" was deleted' in output
    assert output.endswith("proto/: breaks clients of v0.1.0\n")
    # A commit does not change the result, a release does.
    checkout.commit()
    assert checkout.check()[0] == 1
    checkout.git("tag", "v0.2.0")
    assert checkout.check() == (0, "proto/: breaks no client of v0.2.0\n")


def test_without_git_the_check_reports_that_it_did_not_compare(tmp_path: Path) -> None:
    shutil.copytree(PROTO, tmp_path / "proto")
    done = subprocess.run(
        [str(tmp_path / "proto" / "check-breaking.sh")],
        env=os.environ | {"PYTHON": sys.executable, "GIT_CEILING_DIRECTORIES": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (
        0,
        "proto/: not compared: this is not a git repository\n",
    )
