"""A second, simple implementation of sessions and turns, with which tests compare the core.

It takes nothing from the core but the error classes: histories are flat lists, windows and the
sessions to evict are found by searching.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

from ruvd.core.errors import (
    InvalidRequest,
    RequestIdReused,
    RuvdError,
    SessionEvicted,
    SessionExists,
    SessionExpired,
    SessionLimit,
    SessionNotFound,
)

MAX_SESSIONS = 4
IDLE_SECONDS = 50.0
# (keep_exchanges, max_exchanges), which are small so that windows move often.
WINDOW = (1, 3)

Failure: TypeAlias = type[RuvdError]


class Spoken(NamedTuple):
    """A message. Its `calls` are (id, name, arguments); `answers` is the id of a call."""

    role: str
    text: str = ""
    calls: tuple[tuple[str, str, str], ...] = ()
    answers: str = ""
    thought: str = ""

    @property
    def letters(self) -> str:
        return "".join((self.text, self.answers, self.thought, *map("".join, self.calls)))


Messages: TypeAlias = tuple[Spoken, ...]


@dataclass(frozen=True)
class Answered:
    """The outcome of a completion that succeeds."""

    answer: Spoken
    exchange_count: int
    reason: str = "stop"


@dataclass(frozen=True)
class Ask:
    """A call of Complete."""

    session_id: str
    said: Messages
    system: str = ""
    request_id: str = ""
    require_existing: bool = False
    recreate: bool = False

    def repeats(self, before: object) -> bool:
        """Returns whether it is the same request as an earlier one with its request id."""
        if not isinstance(before, Ask):
            return False
        return (self.said, self.system) == (before.said, before.system)


@dataclass(frozen=True)
class Addition:
    """A call of AppendMessages."""

    session_id: str
    said: Messages
    request_id: str = ""


@dataclass(frozen=True)
class Creation:
    """A call of CreateSession."""

    session_id: str
    said: Messages
    system: str
    labels: tuple[tuple[str, str], ...]
    window: tuple[int, int]
    idle: float
    request_id: str = ""


@dataclass(frozen=True)
class Fork:
    """A call of ForkSession."""

    parent_id: str
    exchange_count: int | None
    session_id: str
    request_id: str = ""


@dataclass
class Row:
    """A session. `made` is its position in the order of creation, 0 while it is not stored."""

    id: str
    create_time: float
    last_used: float
    idle: float = IDLE_SECONDS
    system: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    window: tuple[int, int] = WINDOW
    parent_id: str = ""
    exchanges: list[list[Spoken]] = field(default_factory=list)
    start: int = 0
    turns: int = 0
    made: int = 0
    requests: dict[str, tuple[object, Answered | None]] = field(default_factory=dict)
    created_by: str = ""
    unwritten: float | None = None  # `last_used` after a crash during the turn

    @property
    def messages(self) -> list[Spoken]:
        return [message for exchange in self.exchanges for message in exchange]

    @property
    def expires(self) -> float:
        return self.last_used + self.idle

    def add(self, said: Messages) -> None:
        for message in said:
            if message.role == "user" or not self.exchanges:
                self.exchanges.append([])
            self.exchanges[-1].append(message)


@dataclass
class Turn:
    """A completion that has the turn. `start` is the first exchange in its prompt."""

    ask: Ask
    row: Row
    created: bool
    before: int
    start: int
    trimmed: bool

    @property
    def prompt(self) -> list[Spoken]:
        system = [Spoken("system", self.row.system)] if self.row.system else []
        sent = [m for exchange in self.row.exchanges[self.start :] for m in exchange]
        # Reasoning is sent again only with tool calls.
        return [
            message if message.calls else message._replace(thought="")
            for message in (*system, *sent, *self.ask.said)
        ]

    def shortened(self) -> Turn | None:
        """Returns the turn trimmed after an overflow, or None if nothing is left to trim."""
        sent, (keep, _) = self.before - self.start, self.row.window
        if not sent:
            return None
        remaining = keep if keep < sent else sent // 2
        return replace(self, start=self.before - remaining, trimmed=True)


class Model:
    """All sessions. `running` are the turns in progress, `gone` the announced (id, reason)."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.rows: dict[str, Row] = {}
        self.running: dict[str, Turn] = {}
        self.gone: list[tuple[str, str]] = []
        self.reasons: dict[str, Failure] = {}  # of sessions that are no longer there
        self._made = 0

    # --- reading ----------------------------------------------------------------------------

    def live(self, session_id: str) -> Row | None:
        """Returns the stored session unless it has expired, which one in use never does."""
        row, turn = self.rows.get(session_id), self.running.get(session_id)
        if row is None or (turn and turn.created):
            return None
        return row if turn or row.expires > self.now else None

    def shown(self, session_id: str) -> Row | None:
        """Returns the session as readers see it, which may be one that a running turn creates."""
        turn = self.running.get(session_id)
        return turn.row if turn else self.live(session_id)

    def absence(self, session_id: str) -> Failure:
        """Returns the error for a session that is not there."""
        if session_id in self.rows:
            return SessionExpired
        return self.reasons.get(session_id, SessionNotFound)

    def known(self, ask: Ask) -> Answered | Failure | None:
        """Returns the outcome of a request id that was committed before, or None."""
        row = self.live(ask.session_id)
        if row is None or ask.request_id not in row.requests:
            return None
        before, answered = row.requests[ask.request_id]
        return answered if answered and ask.repeats(before) else RequestIdReused

    def refusal(self, ask: Ask) -> Failure | None:
        """Returns the error with which a call may not interrupt the session's running turn."""
        turn = self.running.get(ask.session_id)
        if turn and turn.created:
            absence = self.absence(ask.session_id)
            return None if ask.recreate or absence is SessionNotFound else absence
        row = self.rows[ask.session_id]
        return None if fits(row.messages, ask.said) else InvalidRequest

    # --- turns ------------------------------------------------------------------------------

    def begin(self, ask: Ask, *, waited: bool = False) -> Turn | Failure:
        if not waited and len(self.running) >= MAX_SESSIONS:
            return SessionLimit
        found = self.live(ask.session_id)
        if found is None:
            absence = self.absence(ask.session_id)
            if ask.require_existing if absence is SessionNotFound else not ask.recreate:
                return absence
            self._remove(ask.session_id, "idle")
        row = found or Row(ask.session_id, self.now, self.now, system=ask.system)
        soon = self.now - row.last_used < row.idle / 10
        row.unwritten = row.last_used if soon else None
        row.last_used = self.now
        if ask.system and ask.system != row.system:
            return InvalidRequest
        if not fits(row.messages, ask.said):
            return InvalidRequest
        before = len(row.exchanges)
        if not ask.said and (not before or row.messages[-1].role not in ("user", "tool")):
            return InvalidRequest
        if not ask.said or ask.said[0].role == "tool":
            before -= 1
        start = moved(row.start, before, row.window)
        return Turn(ask, row, found is None, before, start, trimmed=start > row.start)

    def crash(self) -> None:
        """Ends the process: no turn is in progress any more."""
        for turn in self.running.values():
            if turn.row.unwritten is not None:
                turn.row.last_used = turn.row.unwritten
        self.running.clear()
        self.gone.clear()

    def fail(self, turn: Turn) -> None:
        if not turn.created:
            turn.row.last_used = self.now

    def finish(
        self, turn: Turn, answer: Spoken, reason: str = "", *, in_use: Collection[str] = ()
    ) -> Answered:
        """Commits the turn. `in_use` are sessions that could not be evicted, besides `running`."""
        row, ask = turn.row, turn.ask
        reason = reason or ("tool_calls" if answer.calls else "stop")
        row.add((*ask.said, answer))
        row.start = turn.start
        row.last_used = self.now
        row.turns += reason != "cancelled"  # which has no figures
        answered = Answered(answer, len(row.exchanges), reason)
        if ask.request_id:
            row.requests[ask.request_id] = (ask, answered)
        if turn.created:
            self._store(row, in_use)
        return answered

    # --- sessions ---------------------------------------------------------------------------

    def create(self, new: Creation, session_id: str) -> Row | Failure:
        """Creates a session. `session_id` is the one that the core chose if `new` has none."""
        if not fits((), new.said):
            return InvalidRequest
        found = self._made_by(new.request_id, new)
        if found:
            return found
        if refused := self._no_place(new.session_id):
            return refused
        row = Row(session_id, self.now, self.now, new.idle, new.system, dict(new.labels))
        row.window = new.window
        row.add(new.said)
        return self._store_new(row, new.request_id, new)

    def fork(self, new: Fork, session_id: str) -> Row | Failure:
        found = self._made_by(new.request_id, new)
        if found:
            return found
        parent = self.live(new.parent_id)
        if parent is None:
            return self.absence(new.parent_id)
        count = len(parent.exchanges) if new.exchange_count is None else new.exchange_count
        if count > len(parent.exchanges):
            return InvalidRequest
        if refused := self._no_place(new.session_id):
            return refused
        row = Row(session_id, self.now, self.now, parent.idle, parent.system)
        row.labels, row.window, row.parent_id = dict(parent.labels), parent.window, parent.id
        row.exchanges = [list(exchange) for exchange in parent.exchanges[:count]]
        # The window starts where the parent's does. If the fork has no exchange from there on, it
        # starts where the parent's did when that had as many exchanges, each from a turn.
        row.start = parent.start
        if parent.start >= count:
            row.start = 0
            for before in range(count):
                row.start = moved(row.start, before, row.window)
        return self._store_new(row, new.request_id, new, parent.id)

    def append(self, new: Addition) -> Row | Failure:
        row = self.live(new.session_id)
        if row is None:
            return self.absence(new.session_id)
        if new.request_id in row.requests:
            return row if row.requests[new.request_id][0] == new else RequestIdReused
        if not fits(row.messages, new.said):
            return InvalidRequest
        row.add(new.said)
        row.last_used = self.now
        if new.request_id:
            row.requests[new.request_id] = (new, None)
        return row

    def end(self, session_id: str) -> bool:
        """Removes the session, even an expired one; returns whether readers saw it."""
        there = self.shown(session_id) is not None
        self.running.pop(session_id, None)
        self._remove(session_id, "client")
        self.reasons.pop(session_id, None)
        return there

    def sweep(self) -> int:
        """Removes the expired sessions that are not in use, and returns their number."""
        free = [row for row in self.rows.values() if row.id not in self.running]
        expired = [row for row in free if row.expires <= self.now]
        for row in sorted(expired, key=lambda row: (row.expires, row.made)):
            self._remove(row.id, "idle")
        return len(expired)

    def _made_by(self, request_id: str, content: object) -> Row | Failure | None:
        for row in self.rows.values():
            if request_id and row.created_by == request_id and self.live(row.id):
                return row if row.requests[request_id][0] == content else RequestIdReused
        return None

    def _no_place(self, session_id: str) -> Failure | None:
        if session_id in self.running:
            return SessionExists
        if len(self.running) >= MAX_SESSIONS:
            return SessionLimit
        return SessionExists if self.live(session_id) else None

    def _store_new(
        self, row: Row, request_id: str, content: object, parent_id: str = ""
    ) -> Row | Failure:
        kept = {parent_id, *self.running} & {*self.rows} - {row.id}
        if len(kept) >= MAX_SESSIONS:
            return SessionLimit
        if request_id:
            row.created_by = request_id
            row.requests[request_id] = (content, None)
        self._store(row, (parent_id,))
        return row

    def _store(self, row: Row, protected: Collection[str]) -> None:
        self._remove(row.id, "idle")
        self.reasons.pop(row.id, None)
        self._made += 1
        row.made = self._made
        self.rows[row.id] = row
        kept = {row.id, *protected, *self.running}
        while len(self.rows) > MAX_SESSIONS:
            free = [each for each in self.rows.values() if each.id not in kept]
            if not free:
                return
            if expired := [each for each in free if each.expires <= self.now]:
                self._remove(min(expired, key=lambda each: (each.expires, each.made)).id, "idle")
            else:
                first = min(free, key=lambda each: (each.last_used, each.made))
                self._remove(first.id, "capacity")

    def _remove(self, session_id: str, reason: str) -> None:
        if self.rows.pop(session_id, None):
            self.gone.append((session_id, reason))
            self.reasons[session_id] = SessionEvicted if reason == "capacity" else SessionExpired


def open_calls(history: Sequence[Spoken]) -> list[str]:
    """Returns the ids of the calls at the end of a history that have no results yet."""
    answered = set()
    for message in reversed(history):
        if message.role != "tool":
            return [call[0] for call in message.calls if call[0] not in answered]
        answered.add(message.answers)
    return []


def fits(history: Sequence[Spoken], said: Messages) -> bool:
    """Returns whether each tool result answers a call that has no result yet."""
    return all(
        message.answers in open_calls([*history, *said[:place]])
        for place, message in enumerate(said)
        if message.role == "tool"
    )


def moved(start: int, before: int, window: tuple[int, int]) -> int:
    """Returns the new start of a window, for a turn after `before` exchanges."""
    keep, maximum = window
    return before - keep if maximum and before - start > maximum else start
