"""Records of calls for the audit log: who called what, and how it ended. Never its content.

An id that does not look like one of ours may be any text, so its hash is recorded instead. A
completion may outlive its call, and a batch has many: such a completion has a record of its own
when it ends.
"""

import asyncio
import hashlib
import re
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Protocol
from urllib.parse import unquote

from ruvd.core import tenants
from ruvd.core.errors import (
    IdentityUnavailable,
    Overloaded,
    PermissionDenied,
    QuotaExceeded,
    RuvdError,
    Unauthenticated,
)
from ruvd.core.ports.events import (
    CallForwarded,
    CompletionBegan,
    CompletionEnded,
    CompletionJoined,
    Event,
    SessionCreated,
)
from ruvd.rpc import status
from ruvd.rpc.identity import caller

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ID_FIELDS = ("session_id", "completion_id", "request_id")
_WITHOUT_IDENTITY = (Unauthenticated, IdentityUnavailable)
# Calls that are refused without a look at their request. Any number of them costs a caller little.
_CHEAP_REFUSALS = (*_WITHOUT_IDENTITY, Overloaded, QuotaExceeded)
_MAX_DETAIL = 300

_current: "ContextVar[AuditedCall | None]" = ContextVar("ruvd_audited_call", default=None)


class Records(Protocol):
    """Takes records, without waiting."""

    def add(self, fields: Mapping[str, str | int]) -> None:
        """Adds a record."""

    def add_refusal(self, fields: Mapping[str, str | int]) -> None:
        """Adds a record of a call that was refused at once, or only counts it."""


class AuditedCall:
    """A call while it lasts."""

    __slots__ = ("_fields", "_records", "_started", "_was_left")

    def __init__(self, records: Records, method: str, address: str) -> None:
        self._records = records
        self._started = time.perf_counter()
        self._fields: dict[str, str | int] = {"method": method[1:], "address": unquote(address)}
        self._was_left = False  # the caller has gone, and the completion may go on

    def note_request(self, request: Any) -> None:
        """Notes the ids in a request."""
        for name in _ID_FIELDS:
            if value := getattr(request, name, ""):
                self._fields[name] = _recordable(value)
        if (items := getattr(request, "items", None)) is not None:
            self._fields["items"] = len(items)

    def note_response(self, response: Any) -> None:
        """Notes the id of the session that a call has made."""
        session_id = getattr(getattr(response, "session", None), "id", "")
        if session_id and self._fields.setdefault("session_id", session_id) != session_id:
            self._fields["new_session_id"] = session_id

    def note_event(self, event: Event) -> None:
        """Notes what the core tells of the call's completion."""
        match event:
            case CompletionBegan(completion_id) | CompletionJoined(completion_id):
                if "items" not in self._fields:
                    self._fields["completion_id"] = tenants.own(completion_id)
            case CallForwarded(outcome=outcome) if "items" not in self._fields:
                if str(self._fields["method"]).endswith("/Complete"):
                    self._fields.pop("completion_id", None)  # the owner's record has its own
                self._fields["forwarded"] = outcome
            case SessionCreated():
                if "items" not in self._fields:
                    self._fields["session_created"] = True
            case CompletionEnded():
                if self._was_left or "items" in self._fields:
                    self._add_completion(event)

    def end(self, code: str, error: Exception | None = None) -> None:
        """Records the call with the name of its gRPC code."""
        self._was_left = error is None and code != "OK"
        ended: dict[str, str | int] = {
            "event": "call",
            "code": code,
            "duration_us": int((time.perf_counter() - self._started) * 1e6),
            **_who(),
            **self._fields,
        }
        if error is not None:
            known = (RuvdError, status.ForwardedStatus)
            ended["reason"] = error.reason() if isinstance(error, known) else "INTERNAL"
        if isinstance(error, (*_WITHOUT_IDENTITY, PermissionDenied)):
            ended["detail"] = str(error)[:_MAX_DETAIL]  # fixed texts of ours, and names
        if isinstance(error, _CHEAP_REFUSALS):
            self._records.add_refusal(ended)
        else:
            self._records.add(ended)

    def _add_completion(self, event: CompletionEnded) -> None:
        ids = {"completion_id": event.completion_id, "session_id": event.session_id}
        own = {name: tenants.own(value) for name, value in ids.items() if value}
        self._records.add(
            {
                "event": "completion",
                "failed": event.failed,
                "reason": event.reason,
                "duration_us": int(event.timings.total_seconds * 1e6),
                "method": self._fields["method"],
                "address": self._fields["address"],
                **_who(),
                **own,
            }
        )


class CallAudit:
    """Wraps the handlers of RPCs so that each call has a record."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def outcome(self, method: str, handle: Any) -> Any:
        """Wraps a handler whose errors are still exceptions of ours."""
        records = self._records

        async def wrapped(request: Any, call: Any) -> Any:
            audited = AuditedCall(records, method, call.peer())
            _current.set(audited)  # each call has a context of its own
            handling = handle(request, call)
            del request  # see the interceptor's _guarded
            try:
                response = await handling
            except asyncio.CancelledError:
                audited.end("DEADLINE_EXCEEDED" if status.is_too_late(call) else "CANCELLED")
                raise
            except Exception as error:
                if status.is_of_lost_call(error):
                    audited.end("CANCELLED")
                else:
                    audited.end(status.to_status(error)[0].name, error)
                raise
            audited.end("OK")
            return response

        return wrapped

    def messages(self, handle: Any) -> Any:
        """Wraps a handler of parsed requests, to note the ids in them."""

        async def wrapped(request: Any, call: Any) -> Any:
            audited = _current.get()
            assert audited is not None  # noqa: S101  # `outcome` is around this
            audited.note_request(request)
            handling = handle(request, call)
            del request
            response = await handling
            audited.note_response(response)
            return response

        return wrapped


def note_request(request: Any) -> None:
    """Notes the ids in a request of the call that is being handled."""
    audited = _current.get()
    if audited is not None:
        audited.note_request(request)


def observe(event: Event) -> None:
    """Tells the audited call within which an event happens. An Observer."""
    audited = _current.get()
    if audited is not None:
        audited.note_event(event)


def _who() -> dict[str, str]:
    identity = caller.current.get()
    if identity is None:
        return {"credential": "none"}
    return {
        "identity": identity.name,
        "credential": identity.credential,
        "tenant": identity.tenant,
        "role": identity.role.value,
    }


def _recordable(text: str) -> str:
    """Returns an id as it is, and the hash of a text that may be anything."""
    if _ID.fullmatch(text):
        return text
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:32]}"
