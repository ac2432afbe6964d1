"""`ruvd doctor` and the daemon's log name the settings of a store that weaken a promise."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg
import pytest
from postgres import Server

from ruvd.cli import run
from ruvd.config.settings import Settings
from ruvd.core.ports.diagnosis import Finding
from ruvd.server.store_diagnosis import report
from ruvd.stores.postgres.diagnosis import diagnose
from ruvd.stores.sqlite import diagnosis as sqlite

MOUNTS = """\
20 1 8:1 / / rw - ext4 /dev/sda1 rw
21 20 0:20 / /mnt/my\\040share rw,relatime shared:1 - nfs4 server:/x rw
22 20 0:21 / /run rw - tmpfs tmpfs rw
"""


def findings(conninfo: str) -> dict[str, Finding]:
    found = asyncio.run(diagnose(conninfo, password=lambda: "", timeout_seconds=60.0, prepare=True))
    return {each.name: each for each in found}


def url(server: Server, **options: str) -> str:
    text = "%20".join(f"-c{name}%3D{value}" for name, value in options.items())
    return f"postgresql://ruvd@/postgres?host={server.directory}&options={text}"


def risks(found: dict[str, Finding]) -> set[str]:
    return {each.name for each in found.values() if each.is_risk}


def test_the_servers_settings_are_found_with_their_meaning(postgres: Server) -> None:
    found = findings(url(postgres))
    assert risks(found) == {"fsync"}  # as the server of the tests is started
    assert found["server_encoding"].value == "UTF8"
    assert found["role"].value == "primary"
    assert "survives a crash of the server" in found["synchronous_commit"].meaning
    assert "backup" in found["synchronous_standby_names"].meaning
    assert "pooler" not in found


def test_commits_that_do_not_wait_for_the_disk_are_a_risk(postgres: Server) -> None:
    found = findings(url(postgres, synchronous_commit="off"))
    assert risks(found) == {"fsync", "synchronous_commit"}


def test_a_synchronous_standby_that_is_not_connected_is_a_risk_and_one_that_is_protects(
    tmp_path_factory: pytest.TempPathFactory, postgres: Server
) -> None:
    def configure(statement: str) -> None:
        with psycopg.connect(postgres.conninfo(), autocommit=True) as db:
            db.execute(statement.encode())
            db.execute("SELECT pg_reload_conf()")

    standby = postgres.copy_to(postgres.directory.with_name("doctors-standby"))
    configure("ALTER SYSTEM SET synchronous_standby_names = 'missing'")
    try:
        until_setting(postgres, "missing")
        assert "synchronous_standby_names" in risks(findings(url(postgres)))
        standby.start()
        found = findings(url(standby))
        assert found["role"].value == "standby"
        assert "role" in risks(found)
        postgres.replicate_synchronously()
        until_standby(postgres)
        assert risks(findings(url(postgres))) == {"fsync"}
    finally:
        configure("ALTER SYSTEM RESET synchronous_standby_names")
        standby.stop()
        until_setting(postgres, "")


def until_setting(server: Server, value: str) -> None:
    until(server, f"SELECT current_setting('synchronous_standby_names') = '{value}'")


def until_standby(server: Server) -> None:
    until(server, "SELECT count(*) > 0 FROM pg_stat_replication WHERE sync_state IN ('sync')")


def until(server: Server, query: str) -> None:
    async def wait() -> None:
        async with asyncio.timeout(60):
            while True:
                async with await psycopg.AsyncConnection.connect(server.conninfo()) as db:
                    row = await (await db.execute(query.encode())).fetchone()
                if row and row[0]:
                    return
                await asyncio.sleep(0.05)

    asyncio.run(wait())


def test_doctor_prints_a_line_for_each_finding(
    postgres: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["doctor", "--store", url(postgres, synchronous_commit="off")]) == 1
    printed = capsys.readouterr().out
    assert "RISK synchronous_commit = off: a crash of the server loses the last turns" in printed
    assert "ok   full_page_writes = on" in printed


@pytest.mark.parametrize(
    ("path", "kind", "is_risk"),
    [
        ("/var/lib/ruvd/s.db", "ext4", False),
        ("/run/s.db", "tmpfs", True),
        ("/mnt/my share/s.db", "nfs4", True),
        ("/running/s.db", "ext4", False),
    ],
)
def test_the_file_system_of_a_sqlite_store_is_judged(
    tmp_path: Path, *, path: str, kind: str, is_risk: bool
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    found = sqlite.diagnose(Path(path), "normal", mounts)
    assert [(each.value, each.is_risk) for each in found] == [("normal", False), (kind, is_risk)]


def test_doctor_fails_where_there_is_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(["doctor", "--store", "postgresql://ruvd@127.0.0.1:1/ruvd"])
    assert end.value.code == 1
    assert "PostgreSQL: " in capsys.readouterr().err


async def test_a_daemon_starts_although_the_diagnosis_fails(tmp_path: Path) -> None:
    store = "postgresql://ruvd@127.0.0.1:1/ruvd"
    await report(Settings(store=store, store_password_file=tmp_path / "missing"))
    await report(Settings(store=store))
