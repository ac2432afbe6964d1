"""The benchmarks that `python -m bench` runs one after the other, each in one of three lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A module of `bench` that prints its figures and writes them with `--json FILE`.

    `quick`, `standard` and `full` are its arguments in the three lengths. With `only_if_named` it
    runs only if `--only` names it. With `markdown` its output is inserted into the page of results
    as Markdown. `plots` are the file names of its pictures, without their suffix.
    """

    name: str
    title: str
    question: str
    quick: Sequence[str]
    standard: Sequence[str]
    full: Sequence[str] = ()
    only_if_named: bool = False
    markdown: bool = False
    plots: Sequence[str] = ()

    def arguments(self, length: str) -> Sequence[str]:
        """Returns the arguments for a length: quick, standard or full."""
        return {"quick": self.quick, "standard": self.standard, "full": self.full}[length]


BENCHMARKS = (
    Benchmark(
        "relay",
        "Overhead",
        "How much overhead does ruvd add between a client and an OpenAI-compatible server?",
        quick=("--quick",),
        standard=(),
        full=("--rounds", "5", "--seconds", "3"),
        markdown=True,
        plots=("relay_rate", "relay_first_token", "relay_pod"),
    ),
    Benchmark(
        "multi_turn",
        "Conversations",
        "How much does a session save over many turns, and in which cases does it save nothing?",
        quick=("--quick", "--only", "warm"),
        standard=("--quick",),
        markdown=True,
        plots=("multi_turn",),
    ),
    Benchmark(
        "answers",
        "Answers",
        "Do cached prompts change an answer? Real conversations are repeated without a cache.",
        quick=("--conversations", "1"),
        standard=("--quick",),
        markdown=True,
    ),
    Benchmark(
        "batch",
        "Batches",
        "How much faster is BatchComplete, and how much does it slow down interactive calls?",
        quick=("--quick", "--rounds", "1", "--only", "remote"),
        standard=("--quick", "--rounds", "1", "--only", "remote", "document", "chat"),
        plots=("batch",),
    ),
    Benchmark(
        "telemetry",
        "Telemetry",
        "How much CPU and throughput does telemetry cost?",
        quick=("--quick",),
        standard=("--rounds", "3", "--seconds", "2"),
        markdown=True,
        plots=("telemetry",),
    ),
    Benchmark(
        "store",
        "Store",
        "Does a large store make a turn slower?",
        quick=("--quick",),
        standard=("--repeats", "3"),
    ),
    Benchmark(
        "sealed",
        "Encryption",
        "What does the encryption of stored conversations cost a turn?",
        quick=("--quick",),
        standard=("--repeats", "3"),
    ),
    Benchmark(
        "replicas",
        "Several daemons",
        "What do sessions in PostgreSQL cost a turn, and what does a move to another daemon cost?",
        quick=("--quick",),
        standard=(),
        only_if_named=True,
        markdown=True,
    ),
    Benchmark(
        "compaction",
        "Compaction",
        "What do summaries cost callers, and how much prefill do they save?",
        quick=("--quick",),
        standard=(),
        only_if_named=True,
    ),
    Benchmark(
        "recall",
        "Recall",
        "What does a prompt still hold of facts that were told long before?",
        quick=("--quick",),
        standard=(),
        only_if_named=True,
    ),
    Benchmark(
        "streams",
        "Cancelled streams",
        "Do cancelled streams leak memory?",
        quick=("--quick",),
        standard=(),
        plots=("streams",),
    ),
    Benchmark(
        "footprint",
        "Footprint",
        "How much memory does the daemon with the embedded engine use?",
        quick=("--quick",),
        standard=("--quick",),
    ),
    Benchmark(
        "soak",
        "Soak",
        "Do memory, files and tasks stay constant under mixed load, with no unexpected errors?",
        quick=("--seconds", "60"),
        standard=(),
        only_if_named=True,
        plots=("soak",),
    ),
)
NAMES = tuple(benchmark.name for benchmark in BENCHMARKS)
