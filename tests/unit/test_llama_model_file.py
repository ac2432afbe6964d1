"""The fingerprint of all that a saved KV state depends on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ruvd.engines.llama.model_file import DEFAULT_MODEL, find_model, fingerprint


def test_an_argument_that_is_too_long_for_a_file_name_is_no_file(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"weights")
    template = "{{ message.content }} and so on" * 100
    found = fingerprint(model, model, ["--chat-template", template], 1024)
    assert found != fingerprint(model, model, ["--chat-template", "x"], 1024)


@pytest.mark.parametrize("changed", ["m-00002-of-00002.gguf", "server", "adapter.gguf"])
def test_it_changes_with_every_file_that_a_state_depends_on(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "server", "adapter.gguf"):
        (tmp_path / name).write_bytes(b"content")
    monkeypatch.chdir(tmp_path)

    def now() -> str:
        model = tmp_path / "m-00001-of-00002.gguf"
        return fingerprint(model, tmp_path / "server", ["--lora-scaled", "adapter.gguf:2"], 1024)

    before = now()
    assert now() == before
    (tmp_path / changed).write_bytes(b"others!")
    os.utime(tmp_path / changed, ns=(1, 1))
    assert now() != before


def test_it_changes_with_the_arguments_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"weights")
    before = fingerprint(model, model, (), 1024)
    monkeypatch.setenv("LLAMA_ARG_CACHE_TYPE_K", "q8_0")
    assert fingerprint(model, model, (), 1024) != before


def test_the_default_model_is_that_of_the_package_of_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "ruvd_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('it is not imported')")
    (package / DEFAULT_MODEL).write_bytes(b"weights")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_model(None) == package / DEFAULT_MODEL
