"""Progress of a batch on stderr: a bar on a terminal, otherwise a line every few seconds."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.progress import BarColumn, Progress, TextColumn
from ruvd_client import BatchSummary

from ruvd.cli.console import err

_LINE_SECONDS = 5.0


@dataclass(slots=True)
class Tally:
    """Counts of items, in this run and before it; `refused` ones were never sent."""

    items: int
    done_before: int = 0
    failed_before: int = 0
    refused: int = 0
    sent: BatchSummary = field(default_factory=BatchSummary)
    began: float = field(default_factory=time.monotonic)

    @property
    def ran(self) -> int:
        """Items that got an outcome in this run."""
        return self.sent.succeeded + self.failed

    @property
    def failed(self) -> int:
        """Items that failed in this run."""
        return self.sent.failed + self.refused

    def status(self) -> str:
        """Returns the progress as one line."""
        done = self.done_before + self.ran
        rate = self.ran / max(1e-9, time.monotonic() - self.began)
        parts = [f"{done:,}/{self.items:,}", f"{rate:,.1f}/s"]
        if rate and self.items > done:
            parts.append(f"{_clock((self.items - done) / rate)} left")
        parts.append(f"{self.failed:,} failed")
        usage = self.sent.usage
        parts.append(f"{usage.prompt_tokens + usage.completion_tokens:,} tokens")
        return ", ".join(parts)

    def summary(self) -> list[str]:
        """Returns the results as a few lines."""
        counts = f"{self.sent.succeeded:,} succeeded, {self.failed:,} failed"
        if self.done_before:
            counts += f", {self.done_before:,} done before"
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
                f"wall time {wall:.2f} s; sum of latencies, including waits for the engine, "
                f"{latency:.2f} s, {latency / max(1e-9, wall):.1f} times the wall time"
            )
        return lines


class ProgressDisplay:
    """Displays a tally as it changes."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._printed = time.monotonic()
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
    def shown(self) -> Iterator[None]:
        """Displays the tally during the block."""
        with self._progress:
            self.update()
            yield

    def update(self) -> None:
        """Displays a changed tally."""
        if self._progress.disable:
            if time.monotonic() - self._printed >= _LINE_SECONDS:
                err.print(self._tally.status(), markup=False)
                self._printed = time.monotonic()
            return
        done = self._tally.done_before + self._tally.ran
        self._progress.update(self._task, completed=done, description=self._tally.status())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
