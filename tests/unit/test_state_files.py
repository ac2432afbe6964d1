"""The directory of saved KV states: ruvd uses one that it made, and changes no other."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from ruvd.core.errors import EngineUnavailable
from ruvd.engines.llama.kv_cache import KvCache
from ruvd.engines.llama.state import State
from ruvd.engines.llama.state_directory import DirectoryRefused, open_directory
from ruvd.engines.llama.state_files import StateFiles

NAME = "0" * 24
OTHER_USER = 12345


def files(path: Path) -> StateFiles:
    return StateFiles(path, 1 << 20, "model")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def snapshot(path: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Returns all that can be seen of a directory and of what is in it."""
    seen = {}
    for each in [path, *path.iterdir()]:
        status = each.lstat()
        content = each.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        seen[each.name] = (status.st_mode, status.st_uid, status.st_ino, content)
    return seen


def foreign(path: Path) -> Path:
    path.mkdir(mode=0o755)
    (path / "letter.txt").write_text("mine")
    return path


def link(path: Path) -> Path:
    foreign(path.with_name("target"))
    path.symlink_to(path.with_name("target"))
    return path


def other_lock(path: Path) -> Path:
    path.mkdir(mode=0o700)
    (path / "lock").write_text("pid 1")
    return path


def linked_lock(path: Path) -> Path:
    path.mkdir(mode=0o700)
    (path / "lock").symlink_to(foreign(path.with_name("target")) / "letter.txt")
    return path


def open_to_all(path: Path) -> Path:
    path.mkdir()
    path.chmod(0o777)
    return path


def somebody_elses(path: Path) -> Path:
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory to another user")
    path.mkdir(mode=0o700)
    os.chown(path, OTHER_USER, OTHER_USER)
    return path


def marked_by_somebody_else(path: Path) -> Path:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    open_directory(path).close()
    os.chown(path / "lock", OTHER_USER, OTHER_USER)
    path.chmod(0o777)
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (foreign, "was not made by ruvd"),
        (link, "is a symbolic link"),
        (other_lock, "was not made by ruvd"),
        (linked_lock, "was not made by ruvd"),
        (open_to_all, r"mode 0777\): run `chmod 700"),
        (somebody_elses, f"belongs to user {OTHER_USER}"),
        (marked_by_somebody_else, "was not made by ruvd"),
    ],
)
@pytest.mark.parametrize("max_bytes", [0, 1 << 20])
def test_a_directory_that_is_not_ruvds_is_refused_and_left_as_it_is(
    make: Callable[[Path], Path],
    reason: str,
    max_bytes: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = make(tmp_path / "kv")
    before = snapshot(path), snapshot(tmp_path)
    for is_default in (False, True):
        with pytest.raises(DirectoryRefused, match=reason):
            files(path).open(is_default=is_default)
    private = tmp_path / "kv"
    cache = KvCache(
        lambda: None, slots=1, model="m", path=path, max_bytes=max_bytes, observer=lambda _: None
    )
    assert cache.open(private, "model") == private
    assert cache.remembered() == ()
    assert (snapshot(path), snapshot(tmp_path)) == before
    nothing_to_do = max_bytes == 0 and make in (open_to_all, somebody_elses)  # they are empty
    assert ("the KV cache is off" in caplog.text) is not nothing_to_do


def test_a_directory_that_ruvd_makes_is_private_and_known_again(tmp_path: Path) -> None:
    path = tmp_path / "state" / "kv"
    before = os.umask(0o022)
    try:
        open_directory(path).close()
    finally:
        os.umask(before)
    assert mode(path) == mode(path.parent) == 0o700
    assert mode(path / "lock") == 0o600
    (path / "letter.txt").write_text("somebody left it there")
    open_directory(path).close()
    assert (path / "letter.txt").read_text() == "somebody left it there"


def test_an_empty_directory_is_used_with_the_mode_that_it_has(tmp_path: Path) -> None:
    path = tmp_path / "kv"
    path.mkdir(mode=0o755)
    for _ in range(2):
        open_directory(path).close()
        assert mode(path) == 0o755


def test_a_directory_of_ruvds_that_was_opened_to_others_is_made_private(tmp_path: Path) -> None:
    path = tmp_path / "kv"
    open_directory(path).close()
    path.chmod(0o2770)  # as Kubernetes does for a volume's group
    open_directory(path).close()
    assert mode(path) & 0o777 == 0o700


@pytest.mark.parametrize("bits", [0o700, 0o2770], ids=["private", "volume"])
@pytest.mark.parametrize("names", [["lock"], [f"{NAME}.kv", f"{NAME}.seal"], ["lock", "stray.txt"]])
def test_a_directory_of_an_earlier_version_is_known_by_its_mode_and_files(
    names: list[str], bits: int, tmp_path: Path
) -> None:
    path = tmp_path / "kv"
    path.mkdir()
    path.chmod(bits)
    for name in names:
        (path / name).touch()
    if "stray.txt" in names:
        with pytest.raises(DirectoryRefused):
            open_directory(path)
    open_directory(path, is_default="stray.txt" in names).close()
    open_directory(path).close()
    assert mode(path) & 0o777 == 0o700


def test_a_directory_has_one_daemon_at_a_time(tmp_path: Path) -> None:
    first, second = files(tmp_path / "kv"), files(tmp_path / "kv")
    first.open()
    with pytest.raises(EngineUnavailable, match="another daemon has it"):
        second.open()
    first.close()
    second.open()
    second.close()


@pytest.mark.parametrize("target", ["inside", "outside"])
def test_a_link_in_place_of_a_file_is_neither_read_nor_written_but_deleted(
    target: str, tmp_path: Path
) -> None:
    path, precious = tmp_path / "kv", tmp_path / "precious"
    kept = files(path)
    kept.open()
    name = asyncio.run(kept.create())
    (path / name).write_bytes(b"state")
    asyncio.run(kept.add(State(name, None, "session", 5)))
    asyncio.run(kept.seal())
    kept.close()
    seal = path / Path(name).with_suffix(".seal")
    if target == "outside":
        shutil.move(path / name, precious)
        (path / name).symlink_to(precious)
    else:
        precious.write_bytes(seal.read_bytes())
        seal.unlink()
        seal.symlink_to(precious)
    before = precious.read_bytes()
    (path / f"{NAME}.part").symlink_to(precious)
    again = files(path)
    again.open()
    assert again.sessions() == set()
    assert again.rejected == ["corrupt"]
    assert [each.name for each in path.iterdir()] == ["lock"]
    assert precious.read_bytes() == before
    again.close()


def test_a_link_that_comes_while_the_daemon_runs_is_not_followed(tmp_path: Path) -> None:
    path, precious = tmp_path / "kv", tmp_path / "precious"
    precious.write_text("precious")
    kept = files(path)
    kept.open()
    name = asyncio.run(kept.create())
    state = State(name, None, "session", 8, sha256="0")
    asyncio.run(kept.add(state))
    (path / name).unlink()
    (path / name).symlink_to(precious)
    for suffix in (".seal", ".part"):
        (path / name).with_suffix(suffix).symlink_to(precious)
    asyncio.run(kept.seal())
    assert not state.sealed
    assert not asyncio.run(kept.verify_checksum(state))
    assert precious.read_text() == "precious"
    assert [each.name for each in path.iterdir()] == ["lock"]
    kept.close()


def test_a_seal_replaces_what_is_in_its_way_and_writes_through_no_link(
    tmp_path: Path,
) -> None:
    path, precious = tmp_path / "kv", tmp_path / "precious"
    precious.write_text("precious")
    kept = files(path)
    kept.open()
    name = asyncio.run(kept.create())
    asyncio.run(kept.add(State(name, None, "session", 0)))
    for suffix in (".seal", ".part"):
        (path / name).with_suffix(suffix).symlink_to(precious)
    asyncio.run(kept.seal())
    assert precious.read_text() == "precious"
    seal = (path / name).with_suffix(".seal")
    assert not seal.is_symlink()
    assert msgspec.json.decode(seal.read_bytes())["session"] == "session"
    kept.close()


def test_a_directory_that_was_deleted_does_not_fail_the_stop(tmp_path: Path) -> None:
    kept = files(tmp_path / "kv")
    kept.open()
    shutil.rmtree(kept.directory)
    kept.close()
    kept.open()
    kept.close()


def test_nothing_is_written_into_a_directory_that_took_the_place_of_ruvds(
    tmp_path: Path,
) -> None:
    path = tmp_path / "kv"
    kept = files(path)
    kept.open()
    path.rename(tmp_path / "moved")
    foreign(path)
    before = snapshot(path)
    name = asyncio.run(kept.create())
    kept.close()
    assert snapshot(path) == before
    assert not (tmp_path / "moved" / name).exists()
