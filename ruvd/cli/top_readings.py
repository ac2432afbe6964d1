"""The readings of `ruvd top`: what a daemon says of itself at one instant.

Each part is read by itself. A part that cannot be read leaves its reason in `problems`, and the
others are shown.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import grpc
from ruvd_client import Client, RuvdError, Session, SessionMetrics
from ruvd_client.v1 import session_service_pb2 as pb

from ruvd.admin.v1 import admin_service_pb2 as admin_pb
from ruvd.cli.address import Address
from ruvd.cli.administration import Administrator, channel_to, explain_refusal
from ruvd.cli.terminal import CALL_TIMEOUT_SECONDS, explain

_T = TypeVar("_T")

MAX_SESSIONS = 10_000
_PAGE = 1000
# The sessions are read again no sooner than after this many times what the last reading took, as
# they are read to the last one.
_LIST_PAUSES = 10
# The engine may have to be asked for its models.
_INFO_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading. `is_away` says that there is no daemon; None is what could not be read.

    `sessions` are the most recently used ones of the first `MAX_SESSIONS`, the last used first.
    """

    address: str
    is_away: bool = False
    is_ready: bool = False
    info: pb.GetServerInfoResponse | None = None
    metrics: SessionMetrics | None = None
    sessions: Sequence[Session] = ()
    status: admin_pb.Status | None = None
    completions: Sequence[admin_pb.RunningCompletion] = ()
    total_completions: int | None = None
    problems: Sequence[str] = ()


@dataclass(slots=True)
class _Sessions:
    listed: Sequence[Session] = ()
    next_time: float = 0.0


class TopReader:
    """Reads one daemon again and again. It is closed with its `stack`.

    Raises OSError if a file with credentials cannot be read, and ValueError if it cannot be used.
    """

    def __init__(
        self,
        stack: ExitStack,
        address: Address,
        admin_address: Address | None,
        session_count: int,
        completion_count: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._admin_address = admin_address
        self._session_count = session_count
        self._completion_count = completion_count
        self._monotonic = monotonic
        self._client = stack.enter_context(
            Client(str(address), timeout=CALL_TIMEOUT_SECONDS, token=address.token, tls=address.tls)
        )
        self._administrator: Administrator | None = None
        if admin_address is not None:
            channel = stack.enter_context(channel_to(admin_address))
            token = None if str(admin_address).startswith("unix:") else admin_address.token
            self._administrator = Administrator(channel, token)
        self._sessions = _Sessions()
        self._info: pb.GetServerInfoResponse | None = None
        self._info_time = 0.0
        self._was_ready = False

    def read(self) -> Reading:
        """Returns a reading. Never raises RuvdError."""
        problems = _Problems(self._address)
        metrics = problems.unless(self._client.get_session_metrics)
        if problems.is_away:
            self._info, self._sessions = None, _Sessions()
            return Reading(str(self._address), is_away=True, problems=problems.found)
        is_ready = self._client.health()
        if is_ready != self._was_ready:
            self._info = None  # perhaps an engine has come or gone
        self._was_ready = is_ready
        info, sessions = self._read_info(problems), self._read_sessions(problems)
        status, listed = None, None
        if self._administrator is not None and self._admin_address is not None:
            status, listed = self._read_administration(
                self._administrator, self._admin_address, problems
            )
        return Reading(
            str(self._address),
            is_ready=is_ready,
            info=info,
            metrics=metrics,
            sessions=sessions[: self._session_count],
            status=status,
            completions=listed.completions if listed else (),
            total_completions=listed.total_count if listed else None,
            problems=problems.found,
        )

    def _read_info(self, problems: "_Problems") -> pb.GetServerInfoResponse | None:
        now = self._monotonic()
        if self._info is None or now >= self._info_time + _INFO_SECONDS:
            self._info = problems.unless(self._client.get_server_info)
            self._info_time = now
        return self._info

    def _read_sessions(self, problems: "_Problems") -> Sequence[Session]:
        began = self._monotonic()
        if began < self._sessions.next_time or not self._session_count:
            return self._sessions.listed
        found = problems.unless(self._list_sessions)
        ended = self._monotonic()
        listed = () if found is None else found
        self._sessions = _Sessions(listed, ended + _LIST_PAUSES * (ended - began))
        return listed

    def _list_sessions(self) -> Sequence[Session]:
        listed = islice(self._client.list_sessions(page_size=_PAGE), MAX_SESSIONS)
        newest = sorted(listed, key=lambda each: each.last_used_time.ToNanoseconds(), reverse=True)
        return newest[: self._session_count]

    def _read_administration(
        self, administrator: Administrator, address: Address, problems: "_Problems"
    ) -> tuple[admin_pb.Status | None, admin_pb.ListCompletionsResponse | None]:
        request = admin_pb.ListCompletionsRequest(page_size=self._completion_count)
        status = None
        try:
            status = administrator.call("GetStatus", admin_pb.GetStatusRequest()).status
            return status, administrator.call("ListCompletions", request)
        except RuvdError as error:  # an older daemon has no ListCompletions
            problems.found.append(f"administration: {explain_refusal(error, address)}")
            return status, None


@dataclass(slots=True)
class _Problems:
    """The reasons why parts of a reading are missing."""

    address: Address
    found: list[str] = field(default_factory=list)
    is_away: bool = False

    def unless(self, call: Callable[[], _T]) -> _T | None:
        """Returns what the call returns, or None after an error."""
        try:
            return call()
        except RuvdError as error:
            if not error.reason and error.code is grpc.StatusCode.UNAVAILABLE:
                self.is_away = True
            text = explain(error, self.address)
            if text not in self.found:
                self.found.append(text)
            return None
