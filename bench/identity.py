"""Measures what identities cost: the same daemon without them, with tokens, and with mTLS as well.

All daemons listen on a loopback port, keep sessions on disk and have the mock upstream, which never
waits. 16 streams of 32 tokens run at a time, over one connection, from a client that shares the
cores and has its own share of TLS. A round takes each daemon in turn, every second round in reverse
order, and ratios are of the same round. The aim is at most 15 % fewer streams a second with mTLS
and tokens.

plain    neither TLS nor identities
tokens   a bearer token with each call
mtls     the same token, over TLS with a client certificate

Run it with `.venv/bin/python -m bench.identity`; it takes about a minute and a half.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from bench import relay_servers as servers
from bench import runner
from bench.machine import describe
from bench.mock_upstream import MODEL
from bench.relay_servers import Server
from ruvd.rpc.identity import tokens
from ruvd.rpc.identity.caller import Role
from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc

_AIM = 0.85
_TEXT = "Tell me in a few words what a sidecar is."
_TOKENS = 32
_FILES = ("ca", "server", "client")


@dataclass
class Target:
    """A daemon, a stub with the metadata of its calls, and the figures of each round."""

    name: str
    server: Server
    stub: Any
    metadata: Sequence[tuple[str, str]]
    rates: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)

    async def stream(self, session: str) -> None:
        request = pb.CompleteRequest(
            session_id=session,
            messages=[pb.Message(role=pb.ROLE_USER, content=_TEXT)],
            options=pb.CompletionOptions(model=MODEL),
        )
        finished = False
        async for response in self.stub.Complete(request, metadata=self.metadata):
            finished = response.event.HasField("finished")
        assert finished

    async def run(self, number: int, seconds: float, parallel: int) -> tuple[int, float, float]:
        """Runs streams for so long; returns their number, the seconds, and the CPU seconds."""
        cpu, began, count = self.server.cpu_seconds(), time.perf_counter(), 0

        async def work(worker: int) -> None:
            nonlocal count
            while time.perf_counter() < began + seconds:
                await self.stream(f"{number}-{worker}")
                count += 1

        await asyncio.gather(*(work(worker) for worker in range(parallel)))
        return count, time.perf_counter() - began, self.server.cpu_seconds() - cpu

    async def measure(self, number: int, seconds: float, parallel: int) -> None:
        count, took, cpu = await self.run(number, seconds, parallel)
        self.server.check_runs()
        self.rates.append(count / took)
        self.cpu_ms.append(1000 * cpu / count)


def certificates(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Makes an authority, and certificates of a server and a client; returns their files."""
    paths = {name: (folder / f"{name}.pem", folder / f"{name}.key") for name in _FILES}

    def make(name: str, *arguments: str) -> None:
        certificate, key = paths[name]
        command = (
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "1", "-subj", f"/CN={name}", "-out", str(certificate)),
            *("-keyout", str(key), *arguments),
        )
        subprocess.run(command, check=True, capture_output=True)

    make("ca")
    signed = ("-CA", str(paths["ca"][0]), "-CAkey", str(paths["ca"][1]))
    leaf = ("-addext", "basicConstraints=critical,CA:FALSE")
    for name in ("server", "client"):
        make(name, *signed, *leaf, "-addext", "subjectAltName=IP:127.0.0.1")
    return paths


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs the benchmark and returns its figures."""
    files = certificates(folder)
    token_file = folder / "tokens"
    token, line = tokens.create("bench", Role.USER)
    token_file.write_text(line + "\n")
    bearer = (("authorization", f"Bearer {token}"),)
    identity = ("--tokens-file", str(token_file))
    tls = (
        *("--tls-cert-file", str(files["server"][0]), "--tls-key-file", str(files["server"][1])),
        *("--client-ca-file", str(files["ca"][0])),
    )
    kinds = {"plain": ((), ()), "tokens": (identity, bearer), "mtls": ((*identity, *tls), bearer)}
    async with AsyncExitStack() as stack:
        _, port = await stack.enter_async_context(
            servers.mock(folder, tokens=_TOKENS, first_ms=0, token_ms=0)
        )
        targets = []
        for name, (flags, metadata) in kinds.items():
            listen = f"127.0.0.1:{servers.free_port()}"
            # Certificates only encrypt: the environment takes an empty list.
            server, address = await stack.enter_async_context(
                servers.ruvd(
                    name, folder, port, store=f"sqlite:{folder / name}.db", listen=listen,
                    flags=("--log-level", "error", *flags),
                    environment={"RUVD_CLIENT_IDENTITIES": "[]"},
                )
            )  # fmt: skip
            channel = grpc.aio.insecure_channel(address)
            if name == "mtls":
                credentials = grpc.ssl_channel_credentials(
                    files["ca"][0].read_bytes(),
                    files["client"][1].read_bytes(),
                    files["client"][0].read_bytes(),
                )
                channel = grpc.aio.secure_channel(address, credentials)
            await stack.enter_async_context(channel)
            target = Target(name, server, pb_grpc.SessionServiceStub(channel), metadata)
            await asyncio.wait_for(channel.channel_ready(), 60)
            await target.run(-1, 0.5, options.parallel)
            targets.append(target)
        for number in range(options.rounds):
            for target in targets if number % 2 == 0 else targets[::-1]:
                await target.measure(number, options.seconds, options.parallel)
            runner.log_progress(f"round {number + 1} of {options.rounds}")
    plain = targets[0]
    return {
        "machine": describe(),
        "targets": {
            each.name: {
                "rate": each.rates,
                "cpu_ms": each.cpu_ms,
                "of_plain": [
                    own / other for own, other in zip(each.rates, plain.rates, strict=True)
                ],
            }
            for each in targets
        },
    }


def show(figures: dict[str, Any]) -> None:
    """Prints the table."""
    print(figures["machine"])
    print("\n| | streams/s | of plain | CPU a stream |\n|---|---|---|---|")
    for name, found in figures["targets"].items():
        ratios = found["of_plain"]
        print(
            f"| {name} | {statistics.median(found['rate']):.0f}"
            f" | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            f" | {statistics.median(found['cpu_ms']):.2f} ms |"
        )
    ratio = statistics.median(figures["targets"]["mtls"]["of_plain"])
    print(f"\nmTLS and tokens: {ratio:.2f} of the streams (aim: at least {_AIM}:"
          f" {'met' if ratio >= _AIM else 'missed'})")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a daemon in a round")
    parser.add_argument("--parallel", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measure(options, Path(folder)))
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
