"""The budget of summaries that a server elsewhere writes: tokens of a session, and of a day."""

from collections import Counter

from ruvd.core.errors import QuotaExceeded
from ruvd.core.ports.clock import Clock

_DAY_SECONDS = 86_400.0
_MAX_SESSIONS = 10_000


class CompactionBudget:
    """Counts tokens of summaries; None is no limit. A day begins with the first tokens in it.

    A restart of the daemon forgets what was used.
    """

    def __init__(
        self, clock: Clock, session_tokens: int | None = None, day_tokens: int | None = None
    ) -> None:
        self._clock = clock
        self._session_tokens = session_tokens
        self._day_tokens = day_tokens
        self._sessions: Counter[str] = Counter()
        self._day = 0
        self._day_began = clock.monotonic()

    def check(self, session_id: str) -> None:
        """Raises QuotaExceeded if the budget of the session or of the day is used up."""
        now = self._clock.monotonic()
        if now - self._day_began >= _DAY_SECONDS:
            self._day, self._day_began = 0, now
            self._sessions.clear()
        if self._day_tokens is not None and self._day >= self._day_tokens:
            raise QuotaExceeded(
                f"the summaries of today have used their {self._day_tokens} tokens"
                " (compaction_day_tokens)",
                quota="compaction_day_tokens",
            )
        used = self._sessions[session_id]
        if self._session_tokens is not None and used >= self._session_tokens:
            raise QuotaExceeded(
                f"the session's summaries have used their {self._session_tokens} tokens"
                " (compaction_session_tokens)",
                quota="compaction_session_tokens",
            )

    def spend(self, session_id: str, tokens: int) -> None:
        """Counts the tokens of a summary."""
        if self._session_tokens is None and self._day_tokens is None:
            return
        self._day += tokens
        self._sessions[session_id] += tokens
        if len(self._sessions) > _MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
