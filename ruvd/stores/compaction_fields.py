"""The fields of a session's compaction as JSON text, for the stores that keep rows.

Most sessions have none of them; their text is None. Only fields that are not the default are
written, so that a text stays short.
"""

import json
from dataclasses import replace
from typing import Any

from ruvd.core.model import Compaction, ContextWindow, Session
from ruvd.core.summaries import PinnedExchange, Summary

_DEFAULT = ContextWindow()


def to_text(session: Session, *, with_summary: bool) -> str | None:
    """Returns the fields, with the text of the summary if that has no column of its own."""
    window, summary = session.context_window, session.summary
    fields: dict[str, Any] = {}
    if window.compaction is not _DEFAULT.compaction:
        fields["compaction"] = window.compaction.value
    if window.keep_first != _DEFAULT.keep_first:
        fields["keep_first"] = window.keep_first
    if window.compact_at != _DEFAULT.compact_at:
        fields["compact_at"] = window.compact_at
    if session.compactions:
        fields["compactions"] = session.compactions
    if session.compaction_instruction:
        fields["instruction"] = session.compaction_instruction
    if session.pinned:
        fields["pinned"] = [
            [each.exchange, each.position, each.message_count] for each in session.pinned
        ]
    if summary:
        fields["covers"] = summary.exchange_count
        if with_summary:
            fields["summary"] = summary.text
    return json.dumps(fields) if fields else None


def with_fields(session: Session, text: str | None, summary: str = "") -> Session:
    """Returns the session with the fields of a text, and with a summary that was kept apart.

    Raises ValueError, TypeError, LookupError or AttributeError for a text that has no meaning.
    """
    if text is None:
        return session
    fields = json.loads(text)
    summary = fields.get("summary", summary)
    window = session.context_window
    return replace(
        session,
        context_window=replace(
            window,
            compaction=Compaction(fields.get("compaction", _DEFAULT.compaction.value)),
            keep_first=fields.get("keep_first", _DEFAULT.keep_first),
            compact_at=fields.get("compact_at", _DEFAULT.compact_at),
        ),
        compactions=fields.get("compactions", 0),
        compaction_instruction=fields.get("instruction", ""),
        pinned=tuple(PinnedExchange(*each) for each in fields.get("pinned", ())),
        summary=Summary(summary, fields["covers"]) if summary else None,
    )
