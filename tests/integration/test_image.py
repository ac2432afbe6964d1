"""The image of deploy/Dockerfile, really built, and run as Kubernetes runs it.

debootstrap makes the Debian base image, in place of a registry's. buildah builds the Dockerfile on
it with chroot isolation, which needs no daemon. The image runs in its own mount and process
namespaces, with a read-only root and as its own user. The test is skipped only if debootstrap,
buildah or root are missing.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruvd_client import Client

REPOSITORY = Path(__file__).parents[2]
BASE = "localhost/debian:bookworm-slim"
USER = 10001
APP = 10002
SOCKET = "unix:/run/ruvd/ruvd.sock"
START_SECONDS = 60.0
STOP_SECONDS = 15.0

pytestmark = [
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, ("debootstrap", "buildah"))),
        reason="needs root, and Debian's packages debootstrap and buildah",
    ),
    pytest.mark.timeout(900),
]

# The work of the kubelet and the runtime: a read-only root, volumes, an ordinary user. The last
# mount is the app's, of the socket's folder: read-only, as in deploy/kubernetes/example/app.yaml.
START = """
set -e
root=$1 volumes=$2 user=$3
shift 3
mount --make-rprivate /
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount --bind "$volumes/socket" "$root/run/ruvd"
mount --bind "$volumes/state" "$root/var/lib/ruvd"
mount --bind "$volumes/tmp" "$root/tmp"
mount --bind "$volumes/socket" "$root/mnt"
mount -o remount,bind,ro "$root/mnt"
exec /usr/sbin/chroot --userspec="$user" --groups="${user#*:}" "$root" "$@"
"""


def run(*command: str | Path, seconds: float = 400.0) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


class Builder:
    """Runs buildah with its images in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._command = ("buildah", "--root", folder / "images", "--runroot", folder / "run")

    def __call__(self, *arguments: str | Path) -> str:
        return run(*self._command, *arguments).strip()

    def make_base(self) -> None:
        """Makes a Debian base image, with the certificates that pip uses here, if any are set."""
        root = self._folder / "base"
        # It mounts /proc and /sys, which must be private and must vanish if it fails.
        run("unshare", "--mount", "debootstrap", "--variant=minbase", "bookworm", root)
        if trusted := os.environ.get("PIP_CERT"):
            shutil.copy(trusted, root / "etc" / "pip.pem")
            (root / "etc" / "pip.conf").write_text("[global]\ncert = /etc/pip.pem\n")
        container = self("from", "scratch")
        self("add", "--quiet", container, root, "/")
        self("commit", "--quiet", container, BASE)
        self("rm", container)
        shutil.rmtree(root)

    def build(self, model: str) -> str:
        """Builds the image; returns its name."""
        deploy = REPOSITORY / "deploy"
        self(
            "build", "--isolation", "chroot", "--network", "host", "--layers",
            "--format", "docker",  # the OCI format has no HEALTHCHECK
            "--file", deploy / "Dockerfile",
            "--ignorefile", deploy / "Dockerfile.dockerignore",
            "--build-arg", f"BASE_IMAGE={BASE}", "--build-arg", f"MODEL={model}",
            "--build-arg", "REVISION=0123abc",
            "--tag", f"localhost/ruvd:{model}", REPOSITORY,
        )  # fmt: skip
        return f"localhost/ruvd:{model}"

    @contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        container = self("from", "--pull-never", image)
        try:
            yield Path(self("mount", container))
        finally:
            self("umount", container)
            self("rm", container)


@pytest.fixture
def builder() -> Iterator[Builder]:
    folder = Path(tempfile.mkdtemp(prefix="ruvd-image-"))
    builder = Builder(folder)
    try:
        yield builder
    finally:
        builder("rm", "--all")
        builder("rmi", "--all", "--force")
        mounts = Path("/proc/self/mounts").read_text()
        assert f" {folder}/" not in mounts, "a mounted folder must not be removed"
        shutil.rmtree(folder)


class Container:
    """A running container of an image."""

    def __init__(self, root: Path, config: dict[str, Any], folder: Path, **more: str) -> None:
        environment = dict(each.split("=", 1) for each in config["Env"]) | more
        self._environment = [f"{name}={value}" for name, value in environment.items()]
        self.log = folder / "log"
        with self.log.open("w") as log:
            self._unshare = subprocess.Popen(
                [
                    "unshare", "--mount", "--pid", "--fork",
                    "sh", "-c", START, "sh", root, folder, config["User"],
                    "env", "-i", *self._environment, *config["Entrypoint"], *config["Cmd"],
                ],
                stderr=log,
            )  # fmt: skip
        self.address = f"unix:{folder}/socket/ruvd.sock"
        self.until(lambda: psutil.Process(self._unshare.pid).children())

    @property
    def first(self) -> psutil.Process:
        """The first process of the container, whose process id in it is 1."""
        (found,) = psutil.Process(self._unshare.pid).children()
        return found

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            assert self._unshare.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def execute(self, *command: str, user: int = USER, group: int = USER) -> int:
        """Runs a command in it as the kubelet runs probes and hooks; returns its exit code."""
        done = subprocess.run(
            [
                "nsenter", "--target", str(self.first.pid), "--mount", "--pid", "--root",
                "setpriv", f"--reuid={user}", f"--regid={user}", f"--groups={group}",
                "env", "-i", *self._environment, *command,
            ],
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        return done.returncode

    def stop(self) -> int:
        """Sends SIGTERM to the first process, as the kubelet does; returns the exit code."""
        self.first.send_signal(signal.SIGTERM)
        return self._unshare.wait(STOP_SECONDS)

    def close(self) -> None:
        """Kills the first process; the kernel then kills all others of the namespace."""
        if self._unshare.poll() is None:
            for each in psutil.Process(self._unshare.pid).children():
                each.kill()
            self._unshare.kill()
        self._unshare.wait()


@contextmanager
def volumes() -> Iterator[Path]:
    """Makes folders as the kubelet does for `fsGroup`: of root, with the group and setgid."""
    with tempfile.TemporaryDirectory(prefix="ruvd-") as path:
        for name in ("socket", "state", "tmp"):
            folder = Path(path, name)
            folder.mkdir()
            os.chown(folder, 0, USER)
            folder.chmod(0o2770)
        yield Path(path)


@contextmanager
def running(root: Path, config: dict[str, Any], **more: str) -> Iterator[Container]:
    with volumes() as folder:
        container = Container(root, config, folder, **more)
        try:
            yield container
        finally:
            container.close()


def check_config(config: dict[str, Any]) -> None:
    assert config["User"] == f"{USER}:{USER}"
    assert config["Entrypoint"] == ["/usr/bin/tini", "--", "ruvd"]
    assert config["Cmd"] == ["serve"]
    assert config["Healthcheck"]["Test"] == ["CMD", "ruvd", "health"]
    labels = {
        name.removeprefix("org.opencontainers.image."): value
        for name, value in config["Labels"].items()
    }
    assert labels["licenses"] == "Apache-2.0"
    assert labels["revision"] == "0123abc"
    assert labels["base.name"] == BASE
    project = (REPOSITORY / "pyproject.toml").read_text()
    assert f'\nversion = "{labels["version"]}"\n' in project


def check_contents(root: Path) -> None:
    """Checks that the packages are those pinned and needed, and that the SBOM lists them."""
    listed = json.loads((root / "opt/ruvd/share/ruvd.cdx.json").read_text())["components"]
    named = {each["purl"].removeprefix("pkg:pypi/") for each in listed}
    (packages,) = (root / "opt/ruvd/lib").glob("python3*/site-packages")
    assert len(named) == len(list(packages.glob("*.dist-info")))
    pins = "".join(path.read_text() for path in REPOSITORY.glob("requirements*.txt"))
    for each in named:
        name, version = each.split("@")
        assert name in ("ruvd", "ruvd-client") or f"\n{name}=={version}" in f"\n{pins}", each
    assert not any(each.startswith(("pytest@", "ruff@", "mypy@", "pip@")) for each in named)
    for left in ("opt/build", "src"):
        assert not (root / left).exists(), left


def check_pod_life(root: Path, config: dict[str, Any]) -> None:
    """Checks probes, the app's access, a turn, preStop and the end, as an ordinary user."""
    with running(root, config, RUVD_ENGINE="echo") as container:
        container.until(lambda: container.execute("ruvd", "health") == 0)
        assert container.execute("touch", "/opt/mine") != 0
        assert container.execute("touch", "/opt/roots", user=0, group=0) != 0
        socket = Path(container.address.removeprefix("unix:")).stat()
        assert (socket.st_uid, socket.st_gid, socket.st_mode & 0o777) == (USER, USER, 0o660)

        app = ("ruvd", "health", "--address", "unix:/mnt/ruvd.sock")
        assert container.execute(*app, user=APP, group=USER) == 0, "fsGroup gives the app access"
        assert container.execute(*app, user=APP, group=APP) != 0, "and no other user"

        with Client(container.address) as client:
            assert client.complete("Hello there", session_id="a").text() == "Hello there"
            assert container.execute("ruvd", "drain") == 0
            assert container.execute("ruvd", "health") == 1
            assert client.complete("Still here", session_id="a").text() == "Still here"
        assert container.stop() == 0


def check_early_signal(root: Path, config: dict[str, Any]) -> None:
    """Checks that SIGTERM while Python still starts ends the container: the kernel would drop the
    signal for a first process without a handler."""
    with running(root, config, RUVD_ENGINE="echo") as container:
        container.until(lambda: container.first.name() == "tini" and container.first.children())
        assert container.stop() in (0, 128 + signal.SIGTERM)


def check_embedded_model(root: Path, config: dict[str, Any]) -> None:
    """Checks that the model answers offline, and that its process ends with the daemon."""
    with running(root, config, RUVD_ENGINE="llama", RUVD_LLAMA_THREADS="2") as container:
        container.until(lambda: container.execute("ruvd", "health") == 0)
        with Client(container.address) as client:
            answer = client.complete("What is a sidecar?", session_id="a", max_tokens=8)
            assert answer.text()
            assert answer.finished is not None
            assert answer.finished.usage.completion_tokens > 0
        processes = container.first.children(recursive=True)
        assert len(processes) == 2, "ruvd and its engine"
        assert container.stop() == 0
        assert not any(each.is_running() for each in processes)


def test_the_image_builds_with_and_without_the_model_and_works_as_a_sidecar(
    builder: Builder,
) -> None:
    """Slow: two to five minutes, most of it for Debian and the wheels.

    It is one test, because all of it needs the images, and tests may run in several processes.
    """
    builder.make_base()
    image = builder.build("none")
    config = json.loads(builder("inspect", "--type", "image", image))["Docker"]["config"]
    check_config(config)
    with builder.mounted(image) as root:
        check_contents(root)
        check_pod_life(root, config)
        check_early_signal(root, config)

    with builder.mounted(builder.build("smollm2")) as root:
        check_contents(root)
        check_embedded_model(root, config)
