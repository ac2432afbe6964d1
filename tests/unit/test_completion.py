"""`ruvd completion`: what it prints completes commands, flags and values in real shells."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ruvd.cli import run

NEEDS_ZSH = pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
NEEDS_FISH = pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
LINES = (
    ("ruvd se", ["serve", "sessions"]),
    ("ruvd admin log", ["log-level"]),
    ("ruvd completion ", ["bash", "fish", "zsh"]),
    ("ruvd serve --drain-s", ["--drain-seconds"]),
    ("ruvd serve --engine ", ["echo", "llama", "openai"]),
)
BASH = """
source "$1"
COMP_WORDS=($2)
[[ $2 == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_ruvd
printf '%s\\n' "${COMPREPLY[@]}"
"""
# A terminal of zsh's own: the lines that make the completion known, then a line with two tabs.
ZSH = """
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "$1"
zpty -w shell "stty -echo; print REA''DY"
zpty -r -m shell seen '*READY*'
zpty -w -n shell $'ruvd completion \\t\\t'
zpty -r -m shell seen '*bash*fish*'
print -r -- "$seen"
"""


def script(shell: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Writes what `ruvd completion` prints to a file."""
    assert run(["completion", shell]) == 0
    path = folder / f"ruvd.{shell}"
    path.write_text(capsys.readouterr().out)
    return path


def output(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_bash_completes_what_it_has_sourced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = script("bash", tmp_path, capsys)
    for line, expected in LINES:
        found = output("bash", "--norc", "-c", BASH, "bash", path, line)
        assert sorted(found.split()) == expected, line


@NEEDS_FISH
def test_fish_completes_what_it_has_sourced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = script("fish", tmp_path, capsys)
    for line, expected in LINES:
        found = output("fish", "-N", "-c", "source $argv[1]; complete -C $argv[2]", path, line)
        words = {each.split("\t")[0] for each in found.splitlines()}
        assert set(expected) <= words, line


@NEEDS_ZSH
def test_zsh_completes_what_it_has_sourced_or_found_in_fpath(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = script("zsh", tmp_path, capsys)
    starts = [f"autoload -Uz compinit; compinit -u -D; source {path}"]
    for name in ("_ruvd", "_cyclopts_ruvd"):
        folder = tmp_path / f"as{name}"
        folder.mkdir()
        shutil.copy(path, folder / name)
        starts.append(f"fpath=({folder} $fpath); autoload -Uz compinit; compinit -u -D")
    for start in starts:
        seen = output("zsh", "-f", "-c", ZSH, "zsh", start)
        assert "bash" in seen
        assert "fish" in seen


@pytest.mark.parametrize(
    ("shell", "name", "startup"),
    [
        ("bash", ".local/share/bash-completion/completions/ruvd", ".bashrc"),
        ("zsh", ".zsh/completions/_cyclopts_ruvd", ".zshrc"),
        ("fish", ".config/fish/completions/ruvd.fish", None),
    ],
)
def test_install_writes_the_script_where_the_shell_finds_it(
    shell: str,
    name: str,
    startup: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("ZSH", "ZSH_CUSTOM"):
        monkeypatch.delenv(variable, raising=False)
    for _ in range(2 if shell == "bash" else 1):
        assert run(["completion", shell, "--install"]) == 0
        assert capsys.readouterr().out.strip() == str(tmp_path / name)
    assert "sessions" in (tmp_path / name).read_text()
    if startup:
        assert (tmp_path / startup).read_text().count("ruvd completion") == 1


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".config").write_text("not a folder")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        run(["completion", "fish", "--install"])
    assert ended.value.code == 1
    assert "ruvd: cannot write " in capsys.readouterr().err


def test_another_shell_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", "tcsh"]) == 2
    assert "tcsh" in capsys.readouterr().err
