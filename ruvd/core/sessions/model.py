"""The values in which sessions are asked for, read and shown, and the policy for all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ruvd.core.ids import unguessable
from ruvd.core.model import ContextWindow, Message, Session
from ruvd.core.tenant_limits import LimitsOf, unlimited
from ruvd.core.tenants import DEFAULT, scoped


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """The settings of a deployment that concern sessions.

    At a tenant's own limit of sessions, its least recently used one is evicted for a new one; if
    not `evicts_at_tenant_limit`, the new one is refused.
    """

    enabled: bool = True
    idle_timeout_seconds: float = 1800.0
    max_sessions: int = 100
    max_queue: int = 100
    max_session_bytes: int = 16 << 20
    context_window: ContextWindow = ContextWindow()
    limits_of: LimitsOf = unlimited
    evicts_at_tenant_limit: bool = True


@dataclass(frozen=True, slots=True)
class NewSession:
    """A client's request for a new session; None stands for the daemon's default."""

    session_id: str = ""
    system_prompt: str = ""
    messages: Sequence[Message] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    context_window: ContextWindow | None = None
    idle_timeout_seconds: float | None = None
    model: str = ""
    request_id: str = ""
    tenant: str = DEFAULT
    compaction_instruction: str = ""
    summary: str = ""
    summary_exchange_count: int | None = None


@dataclass(frozen=True, slots=True)
class NewMessages:
    """A client's messages for a history, and its summary of that, empty for none.

    The summary stands for the first `summary_exchange_count` exchanges, by default for all but the
    last `keep_exchanges`.
    """

    messages: Sequence[Message] = ()
    request_id: str = ""
    summary: str = ""
    summary_exchange_count: int | None = None


@dataclass(frozen=True, slots=True)
class SessionState:
    """A session as clients see it; `messages` is None unless they were asked for.

    The session's times are those of the wall clock, unlike stored ones. `created` is the stored
    time of its creation, which never changes and tells it from a later session with its id.
    """

    session: Session
    running_completion_id: str = ""
    in_use: bool = False
    messages: Sequence[Message] | None = None
    created: float = 0.0


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """The part of a history to read: the messages from position `first` on, within the limits.

    `created` is that of the session whose history is continued, or None for the first page. The
    caller has read `offset` bytes of the first message before.
    """

    first: int = 0
    created: float | None = None
    max_messages: int = 10_000
    max_bytes: int = 4 << 20
    offset: int = 0


def new_session(new: NewSession, policy: SessionPolicy, now: float) -> Session:
    """Returns the session that `new` asks for. An id made here is random."""
    idle = new.idle_timeout_seconds
    return Session(
        id=new.session_id or scoped(new.tenant, unguessable()),
        create_time=now,
        last_used_time=now,
        idle_timeout_seconds=policy.idle_timeout_seconds if idle is None else idle,
        system_prompt=new.system_prompt,
        model=new.model,
        labels=new.labels,
        context_window=new.context_window or policy.context_window,
        compaction_instruction=new.compaction_instruction,
    )


def with_messages(
    session: Session, numbered: Sequence[tuple[int, Message]], **changes: Any
) -> Session:
    """Returns the session with these messages appended to its counts, and with other changes."""
    return replace(
        session,
        message_count=session.message_count + len(numbered),
        exchange_count=numbered[-1][0] + 1 if numbered else session.exchange_count,
        size_bytes=session.size_bytes + sum(message.size_bytes for _, message in numbered),
        **changes,
    )
