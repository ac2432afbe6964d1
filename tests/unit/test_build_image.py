"""The script that builds and signs the image.

Programs that record how they are called stand for docker and cosign, which need a registry.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DIGEST = f"sha256:{'ab' * 32}"
NEWER = f"sha256:{'cd' * 32}"
DOCKER = f"""
for each; do [ "$last" != --metadata-file ] || metadata=$each; last=$each; done
case "$1 $2" in
  "buildx build") printf '{{"containerimage.digest": "{DIGEST}"}}' >"$metadata" ;;
  "buildx imagetools") echo "$NEWEST" ;;
  "create "*) echo container-1 ;;
  "cp "*) printf '{{"bomFormat": "CycloneDX"}}' >"$3" ;;
esac
"""


class Script:
    """The script in a copy of the repository's part that it needs, with recording programs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "repository"
        self._programs = folder / "bin"
        self._calls = folder / "calls"
        (self.folder / "deploy").mkdir(parents=True)
        self._programs.mkdir()
        for name in ("deploy/build-image.sh", "deploy/Dockerfile", "pyproject.toml"):
            shutil.copy(ROOT / name, self.folder / name)
        for name in ("sh", "sed", "head", "rm", "mkdir", "git", "dirname"):
            program = shutil.which(name)
            assert program
            (self._programs / name).symlink_to(program)
        self._git("init", "-q")
        (self.folder / ".gitignore").write_text("build/\n")
        self._git("add", ".")
        self._git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-q", "-m", "first")
        self.revision = self._git("rev-parse", "HEAD")
        self.add("docker", DOCKER)

    def _git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def add(self, name: str, body: str = "") -> None:
        """Puts a program in place that records its arguments, a call a line."""
        program = self._programs / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >>"{self._calls}"\n{body}')
        program.chmod(0o700)

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["deploy/build-image.sh", *arguments],
            cwd=self.folder,
            env={"PATH": str(self._programs), "NEWEST": "", **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines() if self._calls.exists() else []


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path)


def test_the_image_is_built_on_a_pinned_base_and_signed_by_its_digest(script: Script) -> None:
    script.add("cosign")
    done = script.run("registry.example:5000/ruvd:0.1.0", "none")
    assert done.returncode == 0, done.stderr
    build = next(each for each in script.calls if each.startswith("docker buildx build"))
    assert re.search(r"--build-arg BASE_IMAGE=debian:bookworm-slim@sha256:[0-9a-f]{64} ", build)
    for part in ("--push", "--sbom=true", "--provenance=mode=max", "MODEL=none",
                 f"REVISION={script.revision} ", "VERSION=0.1.0"):  # fmt: skip
        assert part in build, part
    pushed = f"registry.example:5000/ruvd@{DIGEST}"
    sbom = "build/image/ruvd.cdx.json"
    assert [each for each in script.calls if each.startswith("cosign")] == [
        f"cosign sign --yes {pushed}",
        f"cosign attest --yes --type cyclonedx --predicate {sbom} {pushed}",
    ]
    assert f"docker cp container-1:/opt/ruvd/share/ruvd.cdx.json {sbom}" in script.calls
    assert script.calls[-1] == "docker rm container-1"
    assert "CycloneDX" in (script.folder / sbom).read_text()
    assert (script.folder / "build/image/digest").read_text().strip() == pushed


def test_a_key_is_used_for_both_signatures(script: Script) -> None:
    script.add("cosign")
    assert script.run("r.example/ruvd:1", COSIGN_KEY="k.key").returncode == 0
    signing = [each for each in script.calls if each.startswith("cosign")]
    assert len(signing) == 2
    assert all("--yes --key k.key" in each for each in signing)


def test_without_cosign_the_image_is_unsigned_and_the_script_says_so(script: Script) -> None:
    done = script.run("r.example/ruvd:1")
    assert done.returncode == 0
    assert "NOT SIGNED, as cosign is not installed" in done.stdout
    assert (script.folder / "build/image/ruvd.cdx.json").exists()


def test_a_signature_that_is_required_is_checked_before_anything_is_built(script: Script) -> None:
    done = script.run("r.example/ruvd:1", REQUIRE_SIGNATURE="1")
    assert done.returncode == 1
    assert "cosign is not installed" in done.stderr
    assert not script.calls


def test_a_signature_that_fails_is_a_failure(script: Script) -> None:
    script.add("cosign", "exit 1\n")
    assert script.run("r.example/ruvd:1").returncode != 0


@pytest.mark.parametrize(
    "image", ["r.example/ruvd", "r.example:5000/ruvd", f"r.example/ruvd@{DIGEST}"]
)
def test_an_image_without_a_tag_is_refused(script: Script, image: str) -> None:
    assert script.run(image).returncode == 1
    assert not script.calls


def test_a_base_image_without_a_digest_is_refused(script: Script) -> None:
    done = script.run("r.example/ruvd:1", BASE_IMAGE="debian:bookworm-slim")
    assert done.returncode == 1
    assert "needs a digest" in done.stderr
    assert not script.calls


def test_a_newer_base_image_is_told(script: Script) -> None:
    done = script.run("r.example/ruvd:1", NEWEST=NEWER)
    assert done.returncode == 0
    assert f"debian:bookworm-slim is {NEWER} now" in done.stderr


def test_changes_that_are_not_committed_show_in_the_revision(script: Script) -> None:
    (script.folder / "new").touch()
    script.run("r.example/ruvd:1")
    assert any(f"REVISION={script.revision}-dirty" in each for each in script.calls)


def test_both_base_images_of_the_dockerfile_are_the_same_and_have_a_digest() -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    bases = re.findall(r"^ARG BASE_IMAGE=(.*)$", text, re.MULTILINE)
    assert len(bases) == 2
    assert len(set(bases)) == 1
    assert re.fullmatch(r"debian:bookworm-slim@sha256:[0-9a-f]{64}", bases[0])
    assert os.access(ROOT / "deploy" / "build-image.sh", os.X_OK)
