"""Claims of socket paths: nothing is followed, and nothing but ruvd's stale socket is removed."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ruvd.server.unix_socket import AddressUnavailable, SocketClaim

OTHER_USER = 12345


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ruvd-") as folder:  # short, as the path must be
        yield Path(folder) / "r.sock"


def bind(path: Path) -> None:
    """Leaves a socket behind to which nobody listens."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))


def dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def to_a_stale_socket(path: Path) -> None:
    bind(path.with_name("other.sock"))
    path.symlink_to("other.sock")


def to_a_file(path: Path) -> None:
    path.with_name("precious").write_text("precious")
    path.symlink_to("precious")


def to_a_directory(path: Path) -> None:
    path.symlink_to(path.parent)


def a_file(path: Path) -> None:
    path.write_text("precious")


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def anothers_socket(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    bind(path)
    os.chown(path, OTHER_USER, OTHER_USER)


def seen(folder: Path) -> dict[str, tuple[int, int, str]]:
    return {
        each.name: (
            each.lstat().st_ino,
            each.lstat().st_mode,
            each.read_text() if each.is_file() else "",
        )
        for each in folder.iterdir()
    }


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (dangling, "symbolic link"),
        (to_a_stale_socket, "symbolic link"),
        (to_a_file, "symbolic link"),
        (to_a_directory, "symbolic link"),
        (a_file, "not a socket"),
        (a_pipe, "not a socket"),
        (anothers_socket, f"stale socket of user {OTHER_USER}"),
    ],
)
def test_only_a_stale_socket_of_ruvds_is_removed(
    make: Callable[[Path], None], reason: str, path: Path
) -> None:
    make(path)
    before = seen(path.parent)
    with pytest.raises(AddressUnavailable, match=reason):
        SocketClaim(path)
    assert {**seen(path.parent), "r.sock.lock": ()} == {**before, "r.sock.lock": ()}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (dangling, "symbolic link"),
        (to_a_file, "symbolic link"),
        (to_a_directory, "symbolic link"),
        (a_pipe, "not a regular file"),
    ],
)
def test_a_lock_file_is_neither_followed_nor_created_through_a_link(
    make: Callable[[Path], None], reason: str, path: Path
) -> None:
    make(path.with_name("r.sock.lock"))
    before = seen(path.parent)
    with pytest.raises(AddressUnavailable, match=rf"r\.sock\.lock: .*{reason}"):
        SocketClaim(path)
    assert seen(path.parent) == before


def test_a_stale_socket_is_replaced_and_the_lock_file_stays(path: Path) -> None:
    bind(path)
    claim = SocketClaim(path)
    assert not path.exists()
    with pytest.raises(AddressUnavailable, match="another ruvd"):
        SocketClaim(path)
    bind(path)
    claim.release()
    assert [each.name for each in path.parent.iterdir()] == ["r.sock.lock"]


def test_a_release_leaves_what_took_the_place_of_the_socket(path: Path) -> None:
    claim = SocketClaim(path)
    to_a_file(path)
    claim.release()
    assert path.is_symlink()
    assert path.read_text() == "precious"


def test_missing_directories_are_made_for_the_user_and_the_group(path: Path) -> None:
    before = os.umask(0)
    try:
        SocketClaim(path.parent / "a" / "b" / "r.sock").release()
    finally:
        os.umask(before)
    for made in (path.parent / "a", path.parent / "a" / "b"):
        assert stat.S_IMODE(made.stat().st_mode) == 0o750
    assert stat.S_IMODE((path.parent / "a/b/r.sock.lock").stat().st_mode) == 0o600


def test_a_directory_that_exists_keeps_its_mode(path: Path) -> None:
    path.parent.chmod(0o777)
    SocketClaim(path).release()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o777
