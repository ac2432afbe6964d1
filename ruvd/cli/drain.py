"""`ruvd drain`: a daemon's callers are sent elsewhere, and none of them is cut off.

For Kubernetes' preStop and for people. It finds the process by the address, as every command finds
the daemon, and sends it SIGUSR1; an RPC would let everybody who may call turn readiness off.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

from cyclopts import Parameter, validators

from ruvd.cli import daemon_process, health_check
from ruvd.cli.quick_health import explain
from ruvd.cli.terminal import Address, default_address, fail, out

_POLL_SECONDS = 0.1
_SERVICE = "readiness"


def drain(
    *,
    address: Address = default_address,
    pid: Annotated[
        int | None,
        Parameter(help="The daemon's process, if it cannot be found by its address."),
    ] = None,
    wait: Annotated[
        float,
        Parameter(
            help="Seconds to wait, once readiness is off, until no completion runs or waits.",
            validator=validators.Number(gte=0, lte=86_400),
        ),
    ] = 0.0,
    timeout: Annotated[
        float,
        Parameter(
            help="Seconds to wait for the daemon's answers, and for readiness to be off.",
            validator=validators.Number(gt=0, lte=86_400),
        ),
    ] = 5.0,
) -> int:
    """Turn the daemon's readiness off and wait until it is. Nothing is refused and nothing ends.

    Exit code 0 if readiness is off and, with --wait, no completion ran any more; 1 if not, or if
    there is no daemon. Run it where the daemon runs: on its machine, in its container.
    """
    try:
        _check(address, timeout)
        pid = pid or _listener(address, timeout)
        daemon_process.send_drain(pid)
    except (daemon_process.NoProcess, ValueError) as error:
        fail(f"{address}: {error}")
    except health_check.ProbeFailed as failure:
        fail(explain(failure, address, _SERVICE))
    if not _until(lambda answer: answer.state != "SERVING", address, timeout, timeout):
        fail(f"process {pid} got SIGUSR1, but after {timeout:g} s it is still ready")
    out.print(f"process {pid} drains: readiness is off", markup=False)
    if not wait:
        return 0
    if not _until(lambda answer: _running(answer) == "0", address, timeout, wait):
        fail(f"after {wait:g} s completions still run")
    out.print("no completion runs", markup=False)
    return 0


def _check(address: str, timeout: float) -> health_check.Answer:
    answer = health_check.check(address, _SERVICE, timeout)
    if "ruvd-version" not in answer.metadata:
        raise daemon_process.NoProcess(
            "what listens there is no ruvd, or one that cannot be drained"
        )
    return answer


def _listener(address: str, timeout: float) -> int:
    with health_check.connect(address, timeout) as connection:
        return daemon_process.listener(connection)


def _running(answer: health_check.Answer) -> str:
    return answer.metadata.get("ruvd-running", "")


def _until(
    reached: Callable[[health_check.Answer], bool], address: str, timeout: float, seconds: float
) -> bool:
    """Ask until it is reached, or the daemon has ended; False if that takes too long."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if reached(_check(address, timeout)):
                return True
        except (health_check.ProbeFailed, daemon_process.NoProcess) as failure:
            if getattr(failure, "code", "") == "UNAVAILABLE":
                return True  # it has ended, and with it all that ran
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
