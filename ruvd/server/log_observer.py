"""Log lines for the events of the core. They hold no message content."""

import logging

from ruvd.core.ports.events import (
    CompletionEnded,
    EngineStateChanged,
    Event,
    ReplicaJoined,
    SessionCreated,
    SessionGone,
    SessionTakenOver,
    StoredDataDamaged,
    StoreStateChanged,
    UncertainWriteEnded,
    WriteFenced,
)

_log = logging.getLogger("ruvd")


def observe(event: Event) -> None:
    """Logs an event. An Observer."""
    match event:
        case CompletionEnded():
            usage, timings = event.usage, event.timings
            first = timings.time_to_first_token_seconds
            fields = {
                "completion_id": event.completion_id,
                "session_id": event.session_id,
                "model": event.model,
                **_name(event.engine),
                "reason": event.reason,
                "prompt_tokens": usage and usage.prompt_tokens,
                "cached_tokens": usage and usage.cached_tokens,
                "completion_tokens": usage and usage.completion_tokens,
                "queue_ms": _milliseconds(timings.queue_seconds),
                "first_token_ms": None if first is None else _milliseconds(first),
                "total_ms": _milliseconds(timings.total_seconds),
                "context_trimmed": event.context_trimmed,
            }
            _log.info("completion failed" if event.failed else "completion", extra=fields)
        case EngineStateChanged(up, detail, engine) if up is not None:
            level, text = (logging.INFO, "engine up") if up else (logging.WARNING, "engine down")
            _log.log(level, text, extra={"detail": detail, **_name(engine)})
        case StoreStateChanged(up, detail):
            level, text = (logging.INFO, "store up") if up else (logging.ERROR, "store down")
            _log.log(level, text, extra={"detail": detail})
        case StoredDataDamaged(session_id, detail):
            _log.error("stored data damaged", extra={"session_id": session_id, "detail": detail})
        case ReplicaJoined() | SessionTakenOver() | WriteFenced() | UncertainWriteEnded():
            _log_replica(event)
        case SessionCreated(session_id):
            _log.debug("session created", extra={"session_id": session_id})
        case SessionGone(session_id, reason):
            _log.debug("session gone", extra={"session_id": session_id, "reason": reason})


def _name(engine: str) -> dict[str, str]:
    """Returns the field with the name of an engine, if it has one."""
    return {"engine": engine} if engine else {}


def _log_replica(
    event: ReplicaJoined | SessionTakenOver | WriteFenced | UncertainWriteEnded,
) -> None:
    match event:
        case ReplicaJoined(replica):
            _log.info("replica joined", extra={"replica": replica})
        case SessionTakenOver(session_id, replica):
            fields = {"session_id": session_id, "former_replica": replica}
            _log.warning("session taken over", extra=fields)
        case WriteFenced(session_id, reason):
            # A session that is in use or changed elsewhere is no fault: the write is tried again.
            level = logging.DEBUG if reason in ("in_use", "changed") else logging.WARNING
            _log.log(level, "write fenced", extra={"session_id": session_id, "reason": reason})
        case UncertainWriteEnded(session_id, outcome):
            level = logging.WARNING if outcome == "unknown" else logging.INFO
            fields = {"session_id": session_id, "outcome": outcome}
            _log.log(level, "uncertain write", extra=fields)


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
