"""A daemon whose threads are measured, for `bench.stream_profile`."""

from __future__ import annotations

import re
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench import relay_servers as servers
from bench.mock_upstream import MODEL, POD_MODEL, POD_TOKENS
from bench.relay_clients import GrpcClient, closing
from bench.relay_targets import Case, Target

_FLAGS = ("--max-sessions", "100000")


@dataclass(frozen=True, slots=True)
class Usage:
    """The usage of a thread: CPU nanoseconds, and times it waited and was displaced."""

    cpu_ns: int = 0
    voluntary: int = 0
    involuntary: int = 0

    def plus(self, other: Usage) -> Usage:
        return Usage(
            self.cpu_ns + other.cpu_ns,
            self.voluntary + other.voluntary,
            self.involuntary + other.involuntary,
        )

    def since(self, before: Usage) -> Usage:
        return Usage(
            self.cpu_ns - before.cpu_ns,
            self.voluntary - before.voluntary,
            self.involuntary - before.involuntary,
        )


def usage_of(process_id: int) -> dict[int, Usage]:
    """Returns the usage of every thread of a process by its id."""
    found = {}
    for task in Path(f"/proc/{process_id}/task").iterdir():
        try:
            cpu_ns = int((task / "schedstat").read_text().split()[0])
            status = (task / "status").read_text()
        except OSError:  # the thread has ended
            continue
        voluntary, involuntary = re.findall(r"voluntary_ctxt_switches:\s*(\d+)", status)
        found[int(task.name)] = Usage(cpu_ns, int(voluntary), int(involuntary))
    return found


@dataclass
class ProfiledTarget(Target):
    """A daemon, and what its threads have used in each round."""

    rounds: list[tuple[int, dict[int, Usage]]] = field(default_factory=list)

    async def measure(self, case: Case, number: int, seconds: float) -> None:
        """Measures a round, see `Target.measure`."""
        process_id = self.server.process.pid
        before = usage_of(process_id)
        await super().measure(case, number, seconds)
        after = usage_of(process_id)
        used = {each: now.since(before.get(each, Usage())) for each, now in after.items()}
        self.rounds.append((self.runs[case.name][number].streams, used))

    def cpu_us(self) -> list[float]:
        """Returns the CPU microseconds a stream of each round."""
        return [
            sum(each.cpu_ns for each in used.values()) / 1000 / streams
            for streams, used in self.rounds
        ]

    def switches(self) -> list[float]:
        """Returns the voluntary context switches a stream of each round."""
        return [
            sum(each.voluntary for each in used.values()) / streams for streams, used in self.rounds
        ]

    def by_thread(self) -> dict[int, Usage]:
        """Returns what each thread has used in all rounds."""
        totals: dict[int, Usage] = {}
        for _, used in self.rounds:
            for thread, usage in used.items():
                totals[thread] = totals.get(thread, Usage()).plus(usage)
        return totals

    @property
    def streams(self) -> int:
        """The number of streams of all rounds."""
        return sum(streams for streams, _ in self.rounds)


async def start(
    folder: Path, name: str, tree: Path, mock_port: int, stack: AsyncExitStack, *command: str
) -> ProfiledTarget:
    """Starts the daemon of a checkout, and makes the first calls.

    `command` runs ruvd's command line, if that is not `python -m ruvd`.
    """
    slug = re.sub(r"\W", "-", name)
    address = f"unix:{folder / slug}.sock"
    server = await stack.enter_async_context(
        servers.running(
            slug,
            folder,
            *(command or (sys.executable, "-m", "ruvd")),
            "serve", "--listen", address, "--engine", "openai",
            "--base-url", f"http://127.0.0.1:{mock_port}/v1", "--model", MODEL,
            "--store", f"sqlite:{folder / slug}.db", *_FLAGS,
            env={**servers.own_environment(), "PYTHONPATH": f"{tree}:{tree / 'clients/python'}"},
        )
    )  # fmt: skip
    await servers.until_serving(server, address, service="readiness")
    client = await stack.enter_async_context(closing(GrpcClient(address, 32, sessions=True)))
    made = GrpcClient(address, POD_TOKENS, sessions=True, paced_model=POD_MODEL)
    pod_client = await stack.enter_async_context(closing(made))
    target = ProfiledTarget(name, server, client, pod_client)
    await target.warm()
    return target


def thread_names(target: ProfiledTarget) -> dict[int, str]:
    """Returns names of a daemon's threads.

    Python 3.11 gives its threads no names in the system. Those that work under this load are told
    apart by the order in which the daemon starts them.
    """
    process_id = target.server.process.pid
    names = {process_id: "event loop"}
    kinds = iter(("store's writer", "gRPC's poller"))
    least = 1000 * target.streams  # a microsecond a stream
    busy = {thread for thread, used in target.by_thread().items() if used.cpu_ns >= least}
    for thread in sorted(usage_of(process_id)):
        comm = Path(f"/proc/{process_id}/task/{thread}/comm").read_text().strip()
        if thread == process_id:
            continue
        names[thread] = f"gRPC ({comm})" if not comm.startswith(("python", "ruvd")) else ""
        if not names[thread] and thread in busy:
            names[thread] = next(kinds, "other")
    return names
