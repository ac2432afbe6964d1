"""The values in which sessions are asked for, read and shown, and the policy for all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ruvd.core.model import ContextWindow, Message, Session
from ruvd.core.tenants import DEFAULT


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """The settings of a deployment that concern sessions."""

    enabled: bool = True
    idle_timeout_seconds: float = 1800.0
    max_sessions: int = 100
    max_queue: int = 100
    max_session_bytes: int = 16 << 20
    context_window: ContextWindow = ContextWindow()


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

    `created` is that of the session whose history is continued, or None for the first page.
    """

    first: int = 0
    created: float | None = None
    max_messages: int = 10_000
    max_bytes: int = 4 << 20
