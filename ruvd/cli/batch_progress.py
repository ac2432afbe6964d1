"""How far a batch is, on stderr: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.progress import BarColumn, Progress, TextColumn
from ruvd_client import BatchSummary

from ruvd.cli.terminal import err

_LINE_SECONDS = 5.0


@dataclass(slots=True)
class Tally:
    """What became of the items: of this run, and `before` it. `refused` were never sent."""

    items: int
    before: int = 0
    failed_before: int = 0
    refused: int = 0
    sent: BatchSummary = field(default_factory=BatchSummary)
    began: float = field(default_factory=time.monotonic)

    @property
    def ran(self) -> int:
        """Items that have an outcome of this run."""
        return self.sent.succeeded + self.failed

    @property
    def failed(self) -> int:
        """Items that failed in this run."""
        return self.sent.failed + self.refused

    def status(self) -> str:
        """How far it is, in one line."""
        done = self.before + self.ran
        rate = self.ran / max(1e-9, time.monotonic() - self.began)
        parts = [f"{done:,}/{self.items:,}", f"{rate:,.1f}/s"]
        if rate and self.items > done:
            parts.append(f"{_clock((self.items - done) / rate)} left")
        parts.append(f"{self.failed:,} failed")
        usage = self.sent.usage
        parts.append(f"{usage.prompt_tokens + usage.completion_tokens:,} tokens")
        return ", ".join(parts)

    def summary(self) -> list[str]:
        """What came of it, in a few lines."""
        counts = f"{self.sent.succeeded:,} succeeded, {self.failed:,} failed"
        if self.before:
            counts += f", {self.before:,} done before"
            counts += f" (of these {self.failed_before:,} failed)" if self.failed_before else ""
        usage, wall = self.sent.usage, self.sent.wall_seconds
        cached = f" ({usage.cached_tokens:,} cached)" if usage.HasField("cached_tokens") else ""
        lines = [counts]
        if self.sent.succeeded:
            lines.append(
                f"tokens: {usage.prompt_tokens:,} prompt{cached}, "
                f"{usage.completion_tokens:,} generated"
            )
            latency = self.sent.latency_seconds
            lines.append(
                f"wall time {wall:.2f} s; single latencies, with their waiting for the engine, "
                f"sum to {latency:.2f} s, {latency / max(1e-9, wall):.1f} times that"
            )
        return lines


class Meter:
    """Shows a tally as it changes."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._shown = time.monotonic()
        self._progress = Progress(
            TextColumn("batch"),
            BarColumn(),
            TextColumn("{task.description}", markup=False),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )
        self._task = self._progress.add_task("", total=tally.items)

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Show it for as long as the block runs."""
        with self._progress:
            self.update()
            yield

    def update(self) -> None:
        """The tally has changed."""
        if self._progress.disable:
            if time.monotonic() - self._shown >= _LINE_SECONDS:
                err.print(self._tally.status(), markup=False)
                self._shown = time.monotonic()
            return
        done = self._tally.before + self._tally.ran
        self._progress.update(self._task, completed=done, description=self._tally.status())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
