"""The files of saved KV states, when their directory is not as it was left."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ruvd.engines.llama.state_files import StateFiles


def test_a_directory_that_was_deleted_does_not_fail_the_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = StateFiles(tmp_path / "kv", 1 << 20, "model")
    files.open()
    shutil.rmtree(files.directory)
    files.close()
    assert "could not be deleted" in caplog.text
    again = StateFiles(tmp_path / "kv", 1 << 20, "model")
    again.open()
    again.close()
