"""Symbolic links that somebody has put in place of ruvd's files are never followed."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import FrozenClock

from ruvd.cli import tokens
from ruvd.cli.batch_files import FilesRefused, OutcomeFile
from ruvd.core.errors import StoreUnavailable
from ruvd.core.private_files import open_private
from ruvd.stores.sqlite.backup import back_up
from ruvd.stores.sqlite.store import SqliteStore


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file of the user's that links lead to."""
    path = tmp_path / "precious"
    path.write_text("precious")
    return path


@pytest.fixture(params=["file", "nowhere"])
def planted(request: pytest.FixtureRequest, precious: Path) -> Callable[[Path], None]:
    """Puts a link at a path: to the precious file, or to a file that does not exist."""
    target = precious if request.param == "file" else precious.with_name("nowhere")
    return lambda path: path.symlink_to(target)


def unharmed(precious: Path) -> bool:
    is_same = precious.read_text() == "precious"
    return is_same and not os.path.lexists(precious.with_name("nowhere"))


async def store_at(path: Path) -> None:
    """Makes a store with nothing in it."""
    store = SqliteStore(path, clock=FrozenClock(), observer=lambda _: None)
    await store.open()
    await store.close()


async def test_a_store_is_not_locked_through_a_link(
    planted: Callable[[Path], None], precious: Path, tmp_path: Path
) -> None:
    planted(tmp_path / "s.db.lock")
    with pytest.raises(StoreUnavailable, match=r"s\.db\.lock: it is a symbolic link"):
        await store_at(tmp_path / "s.db")
    assert unharmed(precious)
    assert not (tmp_path / "s.db").exists()


def test_a_backup_replaces_a_link_only_on_request_and_never_follows_it(
    planted: Callable[[Path], None], precious: Path, tmp_path: Path
) -> None:
    source, target = tmp_path / "s.db", tmp_path / "copy.db"
    asyncio.run(store_at(source))
    planted(target)
    for suffix in ("", "-wal", "-shm", "-journal"):
        planted(Path(f"{target}.part{suffix}"))
    with pytest.raises(FileExistsError, match="exists"):
        back_up(source, target)
    assert target.is_symlink()
    back_up(source, target, overwrite=True)
    assert unharmed(precious)
    assert not target.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_a_copy_is_made_where_only_its_owner_can_enter(tmp_path: Path) -> None:
    source, target = tmp_path / "s.db", tmp_path / "copy.db"
    asyncio.run(store_at(source))
    room = tmp_path / "copy.db.part"
    room.mkdir()
    (room / "copy.db").write_text("left by a backup that was killed")
    modes = []
    before = os.umask(0)
    try:
        back_up(source, target, progress=lambda *_: modes.append(stat.S_IMODE(room.stat().st_mode)))
    finally:
        os.umask(before)
    assert set(modes) == {0o700}
    assert not room.exists()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_the_outcomes_of_a_batch_are_not_written_through_a_link(
    planted: Callable[[Path], None], precious: Path, tmp_path: Path
) -> None:
    planted(tmp_path / "out.jsonl")
    with pytest.raises(FilesRefused, match=r"out\.jsonl: it is a symbolic link"):
        OutcomeFile(tmp_path / "out.jsonl")
    planted(tmp_path / "own.jsonl.part")
    with OutcomeFile(tmp_path / "own.jsonl") as outcomes:
        outcomes.remove_failed()
    assert unharmed(precious)


def test_a_token_is_not_written_through_a_link(
    planted: Callable[[Path], None], precious: Path, tmp_path: Path
) -> None:
    planted(tmp_path / "tokens")
    with pytest.raises(SystemExit):
        tokens.create(tenant="acme", file=tmp_path / "tokens")
    assert unharmed(precious)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR | os.O_CREAT, os.O_WRONLY])
def test_what_is_no_regular_file_is_refused_without_waiting(flags: int, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"regular file|No such device"):
        open_private(tmp_path / "pipe", flags)
    with pytest.raises(OSError, match=r"regular file|directory"):
        open_private(tmp_path, flags)
