"""Files that are read again when they change, and what happens when they are invalid."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ruvd.rpc.watched_files import Contents, FilesInvalid, WatchedFiles


class Loaded:
    """Loads two files, and refuses the text `bad` in one of them."""

    def __init__(self, folder: Path) -> None:
        self.paths = {"first": folder / "1", "second": folder / "2"}
        self.texts: list[tuple[bytes, ...]] = []

    def __call__(self, contents: Contents) -> None:
        for setting, content in contents.items():
            if content == b"bad":
                raise ValueError(f"{setting}: bad")
        self.texts.append(tuple(contents.values()))


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    loaded = Loaded(tmp_path)
    for path in loaded.paths.values():
        path.write_text("old")
    return loaded


def test_files_that_do_not_change_are_read_once(loaded: Loaded) -> None:
    watched = WatchedFiles(loaded.paths, loaded)
    watched.check()
    watched.check()
    assert loaded.texts == [(b"old", b"old")]


def test_a_change_is_loaded_once_it_is_stable(loaded: Loaded) -> None:
    watched = WatchedFiles(loaded.paths, loaded)
    loaded.paths["first"].write_text("newer")
    watched.check()
    loaded.paths["second"].write_text("newer")
    watched.check()
    assert len(loaded.texts) == 1, "the second file has just changed"
    watched.check()
    watched.check()
    assert loaded.texts[1:] == [(b"newer", b"newer")]


def test_a_swapped_symlink_is_a_change(loaded: Loaded, tmp_path: Path) -> None:
    # Kubernetes mounts a secret like this: the files are links into ..data, a link that it renames.
    for version in ("v1", "v2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "1").write_text(version)
    data = tmp_path / "..data"
    data.symlink_to("v1")
    loaded.paths["first"].unlink()
    loaded.paths["first"].symlink_to("..data/1")
    watched = WatchedFiles(loaded.paths, loaded)
    (tmp_path / "..new").symlink_to("v2")
    (tmp_path / "..new").rename(data)
    watched.check()
    watched.check()
    assert loaded.texts == [(b"v1", b"old"), (b"v2", b"old")]


def test_invalid_files_at_the_start_are_an_error_that_names_the_setting(loaded: Loaded) -> None:
    loaded.paths["second"].write_text("bad")
    with pytest.raises(FilesInvalid, match="second: bad"):
        WatchedFiles(loaded.paths, loaded)
    loaded.paths["second"].unlink()
    with pytest.raises(FilesInvalid, match=r"second: cannot read .*No such file"):
        WatchedFiles(loaded.paths, loaded)


def test_an_invalid_change_is_logged_once_and_the_next_good_one_is_loaded(
    loaded: Loaded, caplog: pytest.LogCaptureFixture
) -> None:
    watched = WatchedFiles(loaded.paths, loaded)
    with caplog.at_level(logging.ERROR, "ruvd.daemon"):
        loaded.paths["first"].unlink()
        for _ in range(4):
            watched.check()
        loaded.paths["first"].write_text("bad")
        for _ in range(4):
            watched.check()
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 2
    assert len(loaded.texts) == 1
    loaded.paths["first"].write_text("good")
    watched.check()
    watched.check()
    assert loaded.texts[1:] == [(b"good", b"old")]
