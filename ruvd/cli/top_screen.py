"""The screen of `ruvd top`: a few lines about the daemon, then what runs, then the sessions."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from ruvd_client import Session
from ruvd_client.protocol import to_seconds
from ruvd_client.v1 import session_service_pb2 as pb

from ruvd.admin.v1 import admin_service_pb2 as admin_pb
from ruvd.cli.console import printable, seconds
from ruvd.cli.top_readings import Reading

UNKNOWN = "-"
_TIGHT_SHARE = 0.9
_PHASES = {
    admin_pb.RunningCompletion.PHASE_WAITING: "waiting",
    admin_pb.RunningCompletion.PHASE_PROMPT: "prompt",
    admin_pb.RunningCompletion.PHASE_ANSWER: "answer",
    admin_pb.RunningCompletion.PHASE_COMMIT: "commit",
}


def render(reading: Reading, before: Reading | None = None) -> RenderableType:
    """Returns the screen. While the daemon is away, it shows the reading `before` dimmed."""
    if reading.is_away:
        away = Text("; ".join(reading.problems) or f"no daemon at {reading.address}", style="red")
        if before is None:
            return away
        last = Text("The last reading before it went:", style="dim")
        return Group(away, Text(""), last, *_parts(before, style="dim"))
    return Group(*_parts(reading))


def _parts(reading: Reading, style: str = "") -> Iterator[RenderableType]:
    facts = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False, style=style)
    facts.add_column(style="bold")
    facts.add_column()
    for name, value in _facts(reading):
        facts.add_row(name, Text(printable(value)))
    yield facts
    for problem in reading.problems:
        yield Text(printable(problem), style="yellow")
    if reading.total_completions is not None:
        yield Text("")
        yield _completions(reading, reading.total_completions, style)
    yield Text("")
    yield _sessions(reading.sessions, style)


def _facts(reading: Reading) -> Iterator[tuple[str, str]]:
    info, metrics, status = reading.info, reading.metrics, reading.status
    version = f"ruvd {info.version} at " if info else ""
    yield "daemon", f"{version}{reading.address}, {_state(reading)}"
    if info:
        yield "engine", "; ".join(_engine(each) for each in info.engines)
    if status:
        yield "store", "up" if status.store_up else "down"
        yield "memory", _memory(status)
        waiting = (
            f"{status.waiting_for_session} for a turn in their session,"
            f" {status.waiting_for_engine} for the engine,"
            f" {status.waiting_batch_items} items of batches for it"
        )
        yield "waiting", waiting
    if metrics:
        yield "sessions", f"{metrics.active_sessions} active, {metrics.total_sessions} stored"
        hits = f"{metrics.cache_hit_rate:.1f} %" if metrics.HasField("cache_hit_rate") else UNKNOWN
        yield "cache", f"{hits} of the prompt tokens of sessions, since the start"
        mean = None
        if metrics.HasField("avg_session_latency"):
            mean = to_seconds(metrics.avg_session_latency)
        yield "turns", f"{metrics.session_completions} since the start, {seconds(mean)} on average"


def _state(reading: Reading) -> str:
    status = reading.status
    if status:
        flags = {"draining": status.draining, "stopping": status.stopping}
        if named := [name for name, holds in flags.items() if holds]:
            return ", ".join(named)
    return "ready" if reading.is_ready else "not ready"


def _engine(engine: pb.EngineInfo) -> str:
    state = "up" if engine.ready else "down"
    name = f"{engine.engine_name} ({engine.name})" if engine.engine_name else engine.name
    return ", ".join(each for each in (name, state, engine.default_model) if each)


def _memory(status: admin_pb.Status) -> str:
    if not status.memory_limit_bytes:
        return UNKNOWN
    share = status.memory_bytes / status.memory_limit_bytes
    tight = "; new calls are refused" if share > _TIGHT_SHARE else ""
    used, limit = _mebibytes(status.memory_bytes), _mebibytes(status.memory_limit_bytes)
    return f"{used} of {limit} MiB, {share:.0%}{tight}"


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):,.0f}"


def _completions(reading: Reading, total: int, style: str) -> Table:
    table = _table(
        ("running", "session", "tenant", "model", "phase"),
        ("for", "to first", "sent", "tokens", "tokens/s"),
        style,
    )
    for each in reading.completions:
        first = to_seconds(each.time_to_first_token) if _has_first(each) else None
        model = f"{each.model} (batch)" if each.batch_item else each.model
        _add_row(
            table,
            each.completion_id,
            each.session_id or UNKNOWN,
            each.tenant,
            model or UNKNOWN,
            _PHASES.get(each.phase, UNKNOWN),
            seconds(to_seconds(each.elapsed)),
            seconds(first),
            str(each.sent_messages or UNKNOWN),
            f"{each.output_pieces:,}",
            _rate(each),
        )
    hidden = total - len(reading.completions)
    if hidden > 0:
        table.add_row(f"and {hidden} more")
    elif not reading.completions:
        table.add_row("nothing")
    return table


def _has_first(each: admin_pb.RunningCompletion) -> bool:
    return each.HasField("time_to_first_token")


def _rate(each: admin_pb.RunningCompletion) -> str:
    """Returns the mean rate of the pieces after the first one."""
    if not _has_first(each):
        return UNKNOWN
    span = to_seconds(each.elapsed) - to_seconds(each.time_to_first_token)
    return f"{(each.output_pieces - 1) / span:.1f}" if span > 0 else UNKNOWN


def _sessions(listed: Sequence[Session], style: str) -> Table:
    table = _table(
        ("session", "last used"),
        ("exchanges", "messages", "prompt", "cached", "cached %", "generated"),
        style,
    )
    for each in listed:
        usage = each.usage
        cached = usage.cached_tokens if usage.HasField("cached_tokens") else None
        share = None if cached is None or not usage.prompt_tokens else cached / usage.prompt_tokens
        _add_row(
            table,
            each.id + (" *" if each.running_completion_id else ""),
            each.last_used_time.ToDatetime().strftime("%m-%d %H:%M:%SZ"),
            f"{each.exchange_count:,}",
            f"{each.message_count:,}",
            f"{usage.prompt_tokens:,}",
            UNKNOWN if cached is None else f"{cached:,}",
            UNKNOWN if share is None else f"{share:.0%}",
            f"{usage.completion_tokens:,}",
        )
    if not listed:
        table.add_row("none")
    return table


def _add_row(table: Table, *cells: str) -> None:
    """Adds cells as they are: names of models may look like markup."""
    table.add_row(*(Text(printable(each)) for each in cells))


def _table(texts: Sequence[str], figures: Sequence[str], style: str) -> Table:
    table = Table(*texts, box=None, pad_edge=False, padding=(0, 2, 0, 0), style=style)
    for name in figures:
        table.add_column(name, justify="right")
    return table
