"""The units of deploy/systemd: well-formed, hardened, and consistent with the daemon.

No systemd is booted, as it would affect the machine's own units. Instead the daemon is started
with the command and the variables of its unit, under the same system call filter (by libseccomp,
which systemd itself uses) and the same prctl(2) settings, and the proxy by the activation protocol
of sd_listen_fds(3). The tests are skipped if Debian's package systemd is missing.
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

# Executes a command as systemd would start it. Arguments: the allowed system calls, separated by
# commas, then the command. Numbers are from linux/prctl.h and seccomp.h.
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
    if number >= 0:  # negative for a system call of another architecture
        assert seccomp.seccomp_rule_add(context, SCMP_ACT_ALLOW, number, 0) == 0, name
assert seccomp.seccomp_load(context) == 0
os.execv(sys.argv[2], sys.argv[2:])
"""


def settings(unit: str) -> dict[str, list[str]]:
    """Returns a unit's values by name; no name occurs in two sections here."""
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
    """Replaces the unit's paths by those of this machine."""
    text = text.replace(INSTALLED, str(RUVD))
    return re.sub(r"/(run/ruvd|var/lib/ruvd)\b", lambda found: f"{folder}/{found[1]}", text)


def system_calls(group: str) -> set[str]:
    """Returns the system calls of a systemd group, and of the groups in it."""
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
    calls: set[str] = system_calls("@default")  # which systemd always allows
    for line in settings(unit)["SystemCallFilter"]:
        for group in line.removeprefix("~").split():
            calls = calls - system_calls(group) if line[0] == "~" else calls | system_calls(group)
    return calls | {"execve"}  # which systemd itself needs to start the command


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ruvd-") as path:  # short, as a socket's path must be
        for name in ("run/ruvd", "var/lib/ruvd"):
            Path(path, name).mkdir(parents=True)
        yield Path(path)


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    """The paths of commands that are not installed here are replaced."""
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
    """At most the stated value: a newer systemd may weigh somewhat differently."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager",
         f"--threshold={round(stated * 10) + 5}", UNITS / unit],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-400:]
    assert f"`{unit}` {stated}" in (UNITS / "README.md").read_text()


def test_denied_system_calls_fail() -> None:
    """Proves that the filter of the next test denies some calls and allows the rest."""
    program = "import os; os.getpid(); os.sched_setaffinity(0, os.sched_getaffinity(0))"
    done = subprocess.run(
        [sys.executable, "-c", CONFINED, ",".join(sorted(allowed("ruvd.service"))),
         sys.executable, "-c", program],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stderr.splitlines()[-1].startswith("PermissionError"), done.stderr


async def test_the_daemon_works_under_the_confinement_of_its_unit(folder: Path) -> None:
    """Start, ExecStartPost, a turn of the embedded model, ExecReload and SIGTERM, all filtered."""
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
        (reloading,) = unit["ExecReload"]
        reload = await asyncio.create_subprocess_exec(
            *confined, *shlex.split(here(reloading, folder)), env=variables
        )
        assert await reload.wait() == 0
        await daemon.logged("the settings were read again")
        assert daemon.process.returncode is None
    finally:
        code = await daemon.stop()
    assert code == 0
    drain = float(variables["RUVD_DRAIN_SECONDS"])
    assert float(unit["TimeoutStopSec"][0]) >= drain + 3


async def test_calls_reach_the_daemon_through_the_proxy(folder: Path) -> None:
    """A client of the socket that systemd would hold streams from ruvd through the proxy."""
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
                text = " ".join(["word"] * 2000)
                assert await client.complete(text, session_id="a").text() == text
        finally:
            proxy.terminate()
            await proxy.wait()
    finally:
        held.close()
        assert await daemon.stop() == 0
