"""Directories of sockets and of the store that other users can enter are reported, once each."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest

from ruvd.config.settings import Settings
from ruvd.server.directories import report_loose_directories

OTHER_USER = 12345


def directory(path: Path, mode: int) -> Path:
    path.mkdir()
    path.chmod(mode)
    return path


def reported(
    caplog: pytest.LogCaptureFixture, store: Path | None, *sockets: Path
) -> list[tuple[str, str, str, str]]:
    """Returns level, directory, mode and remedy of each report about these files."""
    listen = [f"unix:{path};tenant=t" for path in sockets] or ["127.0.0.1:0"]
    settings = Settings(store=f"sqlite:{store}" if store else "memory", listen=listen)
    with caplog.at_level(logging.DEBUG, "ruvd.daemon"):
        report_loose_directories(settings)
    found = [
        (each.levelname, each.path, each.mode, each.remedy)  # type: ignore[attr-defined]
        for each in caplog.records
    ]
    caplog.clear()
    return found


def test_a_directory_of_ours_in_a_sockets_directory_makes_it_no_shared_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = directory(tmp_path / "run", 0o755)
    (run / "admin").mkdir(mode=0o700)
    settings = Settings(
        store="memory",
        listen=[f"unix:{run}/r.sock"],
        admin_listen=f"unix:{run}/admin/admin.sock",
    )
    with caplog.at_level(logging.INFO, "ruvd.daemon"):
        report_loose_directories(settings)
    assert [each.remedy for each in caplog.records] == [f"chmod 750 {run}"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode", [0o700, 0o500, 0o2700])
def test_a_private_directory_is_not_reported(
    mode: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = directory(tmp_path / "d", mode)
    assert reported(caplog, folder / "s.db", folder / "r.sock") == []


@pytest.mark.parametrize("mode", [0o710, 0o750, 0o755, 0o777, 0o2770])
def test_a_store_directory_of_any_other_mode_is_reported_with_the_command(
    mode: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = directory(tmp_path / "d", mode)
    (folder / "s.db").touch()
    (folder / "s.db-kv").mkdir()
    remedy = f"chmod 700 {folder}"
    expected = [("WARNING", str(folder), f"{mode:04o}", remedy)]
    assert reported(caplog, folder / "s.db") == expected
    assert stat.S_IMODE(folder.stat().st_mode) == mode


def test_a_socket_directory_may_be_open_to_its_group_and_not_to_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = directory(tmp_path / "d", 0o750)
    (folder / "r.sock").touch()
    assert reported(caplog, None, folder / "r.sock") == []
    folder.chmod(0o777)
    expected = [("WARNING", str(folder), "0777", f"chmod 750 {folder}")]
    assert reported(caplog, None, folder / "r.sock") == expected
    # Two sockets and the store in one directory: the clients still have to enter it.
    assert reported(caplog, folder / "s.db", folder / "r.sock", folder / "2.sock") == expected


def test_a_directory_that_others_need_is_not_to_be_closed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = directory(tmp_path / "d", 0o1777)  # as /tmp has
    remedy = f"use a directory that ruvd makes: unix:{folder}/ruvd/r.sock"
    expected = [("WARNING", str(folder), "1777", remedy)]
    assert reported(caplog, None, folder / "r.sock") == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
def test_only_a_directory_of_ones_own_is_to_be_closed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = directory(tmp_path / "d", 0o755)
    (folder / "other.pid").touch()
    remedy = f"use a directory that ruvd makes: sqlite:{folder}/ruvd/s.db"
    expected = [("WARNING", str(folder), "0755", remedy)]
    assert reported(caplog, folder / "s.db") == expected, "as /run is root's"
    (folder / "other.pid").unlink()
    os.chown(folder, OTHER_USER, OTHER_USER)
    assert reported(caplog, folder / "s.db") == expected


def test_a_volume_of_a_pod_is_told_of_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = directory(tmp_path / "d", 0o2777)
    monkeypatch.setattr(Path, "is_mount", lambda path: path == folder)
    remedy = "mount the volume readOnly in other containers"
    expected = [("INFO", str(folder), "2777", remedy)]
    assert reported(caplog, None, folder / "r.sock") == expected


def test_a_directory_that_is_missing_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(store=f"sqlite:{tmp_path}/none/s.db")
    report_loose_directories(settings)
    assert caplog.records == []
