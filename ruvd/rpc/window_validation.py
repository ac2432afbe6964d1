"""Validation of context windows, and of what goes with their summaries."""

from dataclasses import replace

from ruvd.core.model import ContextWindow
from ruvd.core.sessions.compaction import MAX_INSTRUCTION_BYTES, MAX_SUMMARY_BYTES
from ruvd.core.sessions.pins import MAX_FIRST_EXCHANGES
from ruvd.rpc import convert
from ruvd.rpc.validation import Checker
from ruvd.v1 import session_service_pb2 as pb


def window(check: Checker, asked: pb.ContextWindow, default: ContextWindow) -> ContextWindow:
    """Converts a context window; unset fields have the default's values."""
    keep, most = default.keep_exchanges, default.max_exchanges
    if asked.HasField("max_exchanges"):
        most = asked.max_exchanges
        check.check(most >= 0, "context_window.max_exchanges", "must not be negative")
        keep = min(keep, most) if most else keep
    if asked.HasField("keep_exchanges"):
        keep = asked.keep_exchanges
        check.check(keep >= 0, "context_window.keep_exchanges", "must not be negative")
        check.check(
            keep <= most or not most,
            "context_window.keep_exchanges",
            f"must be at most max_exchanges ({most})",
        )
    if asked.HasField("max_tokens"):
        check.check(asked.max_tokens > 0, "context_window.max_tokens", "must be more than 0")
    check.check(
        asked.rendering in pb.Rendering.values(),
        "context_window.rendering",
        "is not a known rendering",
    )
    check.check(
        asked.compaction in pb.Compaction.values(),
        "context_window.compaction",
        "is not a known compaction",
    )
    first = asked.keep_first if asked.HasField("keep_first") else default.keep_first
    check.check(
        0 <= first <= MAX_FIRST_EXCHANGES,
        "context_window.keep_first",
        f"must be 0 to {MAX_FIRST_EXCHANGES}",
    )
    share = asked.compact_at if asked.HasField("compact_at") else default.compact_at
    check.check(0 < share <= 1, "context_window.compact_at", "must be above 0 and at most 1")
    return replace(
        default,
        keep_exchanges=keep,
        max_exchanges=most,
        max_tokens=asked.max_tokens if asked.HasField("max_tokens") else default.max_tokens,
        rendering=convert.RENDERINGS.get(asked.rendering, default.rendering),
        compaction=convert.COMPACTIONS.get(asked.compaction, default.compaction),
        keep_first=first,
        compact_at=share,
    )


def summary(
    check: Checker, request: pb.CreateSessionRequest | pb.AppendMessagesRequest
) -> tuple[str, int | None]:
    """Returns a client's summary, empty for none, and the number of exchanges it stands for."""
    size, field = len(request.summary.encode()), "summary_exchange_count"
    text = f"has {size} bytes, the limit is {MAX_SUMMARY_BYTES}"
    check.check(size <= MAX_SUMMARY_BYTES, "summary", text)
    if not request.HasField("summary_exchange_count"):
        return request.summary, None
    check.check(bool(request.summary), field, "is allowed only with a summary")
    count = request.summary_exchange_count
    check.check(count >= 0, field, "must not be negative")
    return request.summary, count


def instruction(check: Checker, request: pb.CreateSessionRequest | pb.UpdateSessionRequest) -> str:
    """Returns a compaction instruction of a bounded size."""
    size = len(request.compaction_instruction.encode())
    text = f"has {size} bytes, the limit is {MAX_INSTRUCTION_BYTES}"
    check.check(size <= MAX_INSTRUCTION_BYTES, "compaction_instruction", text)
    return request.compaction_instruction
