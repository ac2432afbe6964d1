"""The units of deploy/systemd: well-formed, hardened, and true of the daemon.

No systemd is booted here: it would take the machine's own units with it. Instead the daemon is
started with the command and the variables of its unit, under the same system call filter (by
libseccomp, which systemd itself uses) and the same prctl(2) settings, and the proxy by the
activation protocol of sd_listen_fds(3). Skipped where Debian's package systemd is missing.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import RunningDaemon
from ruvd_client import AsyncClient

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
SERVICES = {"ruvd.service": 1.2, "ruvd-on-demand.service": 0.4}
PROXY = Path("/lib/systemd/systemd-socket-proxyd")
RUVD = Path(sys.executable).with_name("ruvd")
INSTALLED = "/opt/ruvd/bin/ruvd"

pytestmark = pytest.mark.skipif(
    not (shutil.which("systemd-analyze") and PROXY.exists()), reason="needs Debian's systemd"
)

# Becomes a command as systemd would start it. Arguments: the allowed system calls with commas
# between, then the command. Numbers are those of linux/prctl.h and seccomp.h.
CONFINED = """
import ctypes, errno, os, sys
PR_SET_NO_NEW_PRIVS, PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 38, 65, 1
SCMP_ACT_ALLOW, SCMP_ACT_ERRNO = 0x7FFF0000, 0x00050000
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
if libc.prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0):
    assert ctypes.get_errno() == errno.EINVAL, "only a kernel before 6.3 may not have it"
seccomp = ctypes.CDLL("libseccomp.so.2")
seccomp.seccomp_init.restype = ctypes.c_void_p
context = ctypes.c_void_p(seccomp.seccomp_init(SCMP_ACT_ERRNO | errno.EPERM))
for name in sys.argv[1].split(","):
    number = seccomp.seccomp_syscall_resolve_name(name.encode())
    if number >= 0:  # below are those of other machines
        assert seccomp.seccomp_rule_add(context, SCMP_ACT_ALLOW, number, 0) == 0, name
assert seccomp.seccomp_load(context) == 0
os.execv(sys.argv[2], sys.argv[2:])
"""


def settings(unit: str) -> dict[str, list[str]]:
    """A unit's lines by their names; the sections' names do not overlap here."""
    found = defaultdict(list)
    for line in (UNITS / unit).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found[name].append(value)
    return found


def environment(unit: str, folder: Path) -> dict[str, str]:
    variables = [each for line in settings(unit)["Environment"] for each in shlex.split(line)]
    return dict(here(each, folder).split("=", 1) for each in variables)


def here(text: str, folder: Path) -> str:
    """What the unit's text is on this machine."""
    text = text.replace(INSTALLED, str(RUVD))
    return re.sub(r"/(run/ruvd|var/lib/ruvd)\b", lambda found: f"{folder}/{found[1]}", text)


def system_calls(group: str) -> set[str]:
    """What is in a group of systemd's, and in the groups in it."""
    done = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager", group],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    names = {line.strip() for line in done.stdout.splitlines()[1:]}
    names = {each for each in names if each and not each.startswith("#")}
    return {each for each in names if each[0] != "@"}.union(
        *(system_calls(each) for each in names if each[0] == "@")
    )


def allowed(unit: str) -> set[str]:
    calls: set[str] = system_calls("@default")  # which systemd always lets through
    for line in settings(unit)["SystemCallFilter"]:
        for group in line.removeprefix("~").split():
            calls = calls - system_calls(group) if line[0] == "~" else calls | system_calls(group)
    return calls | {"execve"}  # as systemd itself needs it to start the command


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ruvd-") as path:  # short: a socket's path is
        for name in ("run/ruvd", "var/lib/ruvd"):
            Path(path, name).mkdir(parents=True)
        yield Path(path)


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    """With the paths of commands replaced, which are not installed here."""
    for unit in UNITS.glob("ruvd*"):
        if unit.suffix in (".service", ".socket"):
            (tmp_path / unit.name).write_text(unit.read_text().replace(INSTALLED, str(RUVD)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *tmp_path.iterdir()],
        capture_output=True, text=True, timeout=60,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )  # fmt: skip
    complaints = [line for line in done.stderr.splitlines() if "ruvd" in line]
    assert (done.returncode, complaints) == (0, [])


@pytest.mark.parametrize(("unit", "stated"), SERVICES.items())
def test_exposure_is_what_the_readme_says(unit: str, stated: float) -> None:
    """At most: a newer systemd may weigh differently, but not by much."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager",
         f"--threshold={round(stated * 10) + 5}", UNITS / unit],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-400:]
    assert f"`{unit}` {stated}" in (UNITS / "README.md").read_text()


def test_what_is_denied_is_denied() -> None:
    """Or the next test would prove nothing: the filter bites, and lets the rest through."""
    tried = "import os; os.getpid(); os.sched_setaffinity(0, os.sched_getaffinity(0))"
    done = subprocess.run(
        [sys.executable, "-c", CONFINED, ",".join(sorted(allowed("ruvd.service"))),
         sys.executable, "-c", tried],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stderr.splitlines()[-1].startswith("PermissionError"), done.stderr


async def test_the_daemon_lives_with_its_unit_s_confinement(folder: Path) -> None:
    """Start, ExecStartPost, a turn of the embedded model, SIGTERM: all of it under the filter."""
    unit = settings("ruvd.service")
    (command,) = unit["ExecStart"]
    (waiting,) = unit["ExecStartPost"]
    variables = {"PATH": "/usr/bin:/bin", **environment("ruvd.service", folder)}
    confined = [sys.executable, "-c", CONFINED, ",".join(sorted(allowed("ruvd.service")))]
    process = await asyncio.create_subprocess_exec(
        *confined, *shlex.split(here(command, folder)),
        stderr=asyncio.subprocess.PIPE, env=variables, cwd=folder, limit=1 << 20,
    )  # fmt: skip
    daemon = RunningDaemon(process, folder)
    try:
        post = await asyncio.create_subprocess_exec(
            *shlex.split(here(waiting, folder)), env=variables
        )
        try:
            async with asyncio.timeout(float(unit["TimeoutStartSec"][0])):
                assert await post.wait() == 0
        finally:
            if post.returncode is None:
                post.kill()
        async with AsyncClient(variables["RUVD_ADDRESS"]) as client:
            assert await client.complete("Hello", session_id="a", max_tokens=5).text()
        assert "engine up" in {line["event"] for line in daemon.log}
        assert daemon.process.returncode is None
    finally:
        code = await daemon.stop()
    assert code == 0
    drain = float(variables["RUVD_DRAIN_SECONDS"])
    assert float(unit["TimeoutStopSec"][0]) >= drain + 3


async def test_calls_reach_the_daemon_through_the_proxy(folder: Path) -> None:
    """A client of the socket that systemd would hold streams from ruvd through it."""
    (command,) = settings("ruvd-on-demand.service")["ExecStart"]
    variables = environment("ruvd.service", folder)
    process = await asyncio.create_subprocess_exec(
        RUVD, "serve", "--engine", "echo",
        stderr=asyncio.subprocess.PIPE, env=variables, cwd=folder, limit=1 << 20,
    )  # fmt: skip
    daemon = RunningDaemon(process, folder)
    held = socket.socket(socket.AF_UNIX)
    held.bind(str(folder / "run" / "ruvd.sock"))
    held.listen()
    # sd_listen_fds(3): the sockets begin at 3, and the variable names the process itself.
    activate = (
        f"import os, sys; os.dup2({held.fileno()}, 3); os.set_inheritable(3, True);"
        " os.environ |= {'LISTEN_FDS': '1', 'LISTEN_PID': str(os.getpid())};"
        " os.execv(sys.argv[1], sys.argv[1:])"
    )
    try:
        await daemon.listening(1)
        proxy = await asyncio.create_subprocess_exec(
            sys.executable, "-c", activate, *shlex.split(here(command, folder)),
            pass_fds=[held.fileno()],
        )  # fmt: skip
        try:
            async with AsyncClient(f"unix:{folder}/run/ruvd.sock") as client:
                said = " ".join(["word"] * 2000)
                assert await client.complete(said, session_id="a").text() == said
        finally:
            proxy.terminate()
            await proxy.wait()
    finally:
        held.close()
        assert await daemon.stop() == 0
