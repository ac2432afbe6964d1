"""Proto to model and back. Every wrong field of a request is named, not only the first.

A field that this daemon has no rule for yet is refused, and so is one that its proto does not
know: what a caller asks for is done or refused, never ignored.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from google.protobuf import unknown_fields
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message as ProtoMessage
from google.protobuf.timestamp_pb2 import Timestamp

from ruvd import model
from ruvd.completions import CompletionRef, CompletionRequest
from ruvd.errors import FieldViolation, InvalidRequest
from ruvd.model import ContextWindow, Message, Role, Session
from ruvd.ports import StoreCounts
from ruvd.sessions import NewFork, NewSession, SessionChanges, SessionPolicy, SessionState
from ruvd.telemetry import Statistics
from ruvd.v1 import session_service_pb2 as pb

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ID_RULE = "must be 1 to 128 characters of A-Z a-z 0-9 . _ : -"
_NOT_BUILT = "is not supported by this version of ruvd"
_MAX_ID_BYTES = 128
_MAX_STOPS = 16
_MAX_LABELS = 64
_MAX_KEY_BYTES = 63
_MAX_VALUE_BYTES = 255
_MAX_PAGE = 1000
_DEFAULT_PAGE = 100
_MAX_TEMPERATURE = 2.0


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What a request may hold."""

    max_request_bytes: int = 4 << 20
    max_message_bytes: int = 1 << 20
    max_messages: int = 1000
    max_grace_seconds: float = 600.0


class Checker:
    """Collects what is wrong with a request; `raise_if_wrong` ends the check."""

    def __init__(self, request: ProtoMessage, limits: RequestLimits) -> None:
        self._violations: list[FieldViolation] = []
        self.limits = limits
        if (size := request.ByteSize()) > limits.max_request_bytes:
            self.refuse(
                "request",
                f"has {size} bytes, the limit is {limits.max_request_bytes} (max_request_bytes)",
            )
            self.raise_if_wrong()
        for path in _unknown(request, ""):
            self.refuse(path, _NOT_BUILT)

    def refuse(self, field: str, description: str) -> None:
        """Note that a field is wrong."""
        self._violations.append(FieldViolation(field, description))

    def check(self, ok: bool, field: str, description: str) -> None:  # noqa: FBT001  # a predicate
        """Note that a field is wrong unless it is `ok`."""
        if not ok:
            self.refuse(field, description)

    def raise_if_wrong(self) -> None:
        """Raises InvalidRequest with everything that was noted."""
        if self._violations:
            raise InvalidRequest(self._violations)


# --- requests ------------------------------------------------------------------------------


def create_session(
    request: pb.CreateSessionRequest, limits: RequestLimits, policy: SessionPolicy
) -> NewSession:
    """What CreateSession asks for; the policy fills what its context window leaves out."""
    check = Checker(request, limits)
    if request.session_id:
        check.check(_is_id(request.session_id), "session_id", _ID_RULE)
    messages = _messages(check, request.messages, history=True)
    _text(check, "system_prompt", request.system_prompt)
    if messages and messages[0].role is Role.SYSTEM:
        check.check(not request.system_prompt, "system_prompt", "messages[0] is one already")
    _labels(check, "labels", request.labels)
    window = None
    if request.HasField("context_window"):
        window = _window(check, request.context_window, policy.context_window)
    idle = _idle_timeout(check, request)
    _request_id(check, request.request_id)
    check.raise_if_wrong()
    system_prompt = request.system_prompt
    if messages and messages[0].role is Role.SYSTEM:
        system_prompt, messages = messages[0].content, messages[1:]
    return NewSession(
        session_id=request.session_id,
        system_prompt=system_prompt,
        messages=messages,
        labels=dict(request.labels),
        context_window=window,
        idle_timeout_seconds=idle,
        model=request.model,
        request_id=request.request_id,
    )


def complete(request: pb.CompleteRequest, limits: RequestLimits) -> CompletionRequest:
    """What Complete asks for."""
    check = Checker(request, limits)
    session_id = request.session_id
    if session_id:
        check.check(_is_id(session_id), "session_id", _ID_RULE)
    messages = _messages(check, request.messages, history=False)
    # A session's history may end with what is to be answered; the turn will see.
    check.check(bool(messages or session_id), "messages", "must not be empty")
    _text(check, "system_prompt", request.system_prompt)
    if messages and messages[0].role is Role.SYSTEM:
        check.check(not request.system_prompt, "system_prompt", "messages[0] is one already")
    if request.require_existing:
        check.check(bool(session_id), "require_existing", "needs a session_id")
    options = _options(check, request.options)
    _request_id(check, request.request_id)
    if_busy = _IF_BUSY.get(request.if_busy)
    check.check(if_busy is not None, "if_busy", "is no known choice")
    on_disconnect = _ON_DISCONNECT.get(request.on_disconnect)
    check.check(on_disconnect is not None, "on_disconnect", "is no known choice")
    grace = request.disconnect_grace.ToNanoseconds() / 1e9
    most = limits.max_grace_seconds
    check.check(0 <= grace <= most, "disconnect_grace", f"must be 0 to {most:g} s")
    check.raise_if_wrong()
    return CompletionRequest(
        messages=messages,
        session_id=session_id,
        options=options,
        request_id=request.request_id,
        system_prompt=request.system_prompt,
        require_existing=request.require_existing,
        if_busy=if_busy or model.IfBusy.QUEUE,
        on_disconnect=on_disconnect or model.OnDisconnect.CANCEL,
        grace_seconds=grace,
    )


def update_session(
    request: pb.UpdateSessionRequest, limits: RequestLimits, policy: SessionPolicy
) -> tuple[str, SessionChanges]:
    """What UpdateSession asks for; the policy fills what is in the mask and unset."""
    check = Checker(request, limits)
    check.check(_is_id(request.session_id), "session_id", _ID_RULE)
    mask = set(request.update_mask.paths)
    for path in sorted(mask - _UPDATABLE):
        check.refuse(
            "update_mask", f"{path!r} cannot be updated; {', '.join(sorted(_UPDATABLE))} can"
        )
    if not mask:
        mask = {field.name for field, _ in request.ListFields()} & _UPDATABLE
        check.check(bool(mask), "update_mask", "names nothing to update")
    _labels(check, "labels", request.labels)
    idle = _idle_timeout(check, request)
    window = _window(check, request.context_window, policy.context_window)
    check.raise_if_wrong()
    return request.session_id, SessionChanges(
        labels=dict(request.labels) if "labels" in mask else None,
        idle_timeout_seconds=(idle or policy.idle_timeout_seconds)
        if "idle_timeout" in mask
        else None,
        context_window=window if "context_window" in mask else None,
    )


def append_messages(request: pb.AppendMessagesRequest, limits: RequestLimits) -> Sequence[Message]:
    """What AppendMessages appends."""
    check = Checker(request, limits)
    check.check(_is_id(request.session_id), "session_id", _ID_RULE)
    messages = _messages(check, request.messages, history=True)
    check.check(bool(messages), "messages", "must not be empty")
    if messages and messages[0].role is Role.SYSTEM:
        check.refuse("messages[0].role", "a session's system prompt is set when it is created")
    _request_id(check, request.request_id)
    check.raise_if_wrong()
    return messages


def fork_session(request: pb.ForkSessionRequest, limits: RequestLimits) -> NewFork:
    """What ForkSession asks for."""
    check = Checker(request, limits)
    check.check(_is_id(request.session_id), "session_id", _ID_RULE)
    if request.new_session_id:
        check.check(_is_id(request.new_session_id), "new_session_id", _ID_RULE)
    count = request.exchange_count if request.HasField("exchange_count") else None
    check.check(count is None or count >= 0, "exchange_count", "must not be negative")
    _request_id(check, request.request_id)
    check.raise_if_wrong()
    return NewFork(request.session_id, count, request.new_session_id, request.request_id)


def completion_ref(
    request: pb.ResumeCompletionRequest | pb.CancelCompletionRequest, limits: RequestLimits
) -> CompletionRef:
    """The completion that a request names."""
    check = Checker(request, limits)
    if request.completion_id:
        for field in ("session_id", "request_id"):
            check.check(not getattr(request, field), field, "is not used with a completion_id")
    elif not request.request_id:
        check.refuse("completion_id", "name the completion, or its session_id and request_id")
    if isinstance(request, pb.ResumeCompletionRequest):
        check.check(request.after_sequence >= 0, "after_sequence", "must not be negative")
    check.raise_if_wrong()
    return CompletionRef(request.completion_id, request.session_id, request.request_id)


def session_id(request: pb.GetSessionRequest | pb.EndSessionRequest, limits: RequestLimits) -> str:
    """The session that a request names."""
    check = Checker(request, limits)
    check.check(_is_id(request.session_id), "session_id", _ID_RULE)
    if isinstance(request, pb.GetSessionRequest):
        check.check(request.view in pb.SessionView.values(), "view", "is no known view")
    check.raise_if_wrong()
    return request.session_id


@dataclass(frozen=True, slots=True)
class Page:
    """Which page of a list is asked for."""

    after: int
    limit: int
    labels: Mapping[str, str]


def list_sessions(request: pb.ListSessionsRequest, limits: RequestLimits) -> Page:
    """Which page ListSessions asks for."""
    check = Checker(request, limits)
    size = request.page_size
    check.check(0 <= size <= _MAX_PAGE, "page_size", f"must be 0 to {_MAX_PAGE}")
    after = _cursor(request.page_token)
    check.check(after is not None, "page_token", "is not a next_page_token of this daemon")
    _labels(check, "label_filter", request.label_filter)
    check.raise_if_wrong()
    return Page(after or 0, size or _DEFAULT_PAGE, dict(request.label_filter))


def _request_id(check: Checker, request_id: str) -> None:
    size = len(request_id.encode())
    check.check(size <= _MAX_ID_BYTES, "request_id", f"may have {_MAX_ID_BYTES} bytes")


def _idle_timeout(
    check: Checker, request: pb.CreateSessionRequest | pb.UpdateSessionRequest
) -> float | None:
    if not request.HasField("idle_timeout"):
        return None
    seconds = request.idle_timeout.ToNanoseconds() / 1e9
    check.check(seconds > 0, "idle_timeout", "must be more than 0")
    return seconds


def _messages(check: Checker, protos: Sequence[pb.Message], *, history: bool) -> Sequence[Message]:
    """The messages of a request: a whole history, or a turn, which ends with what to answer."""
    limits = check.limits
    check.check(
        len(protos) <= limits.max_messages,
        "messages",
        f"more than {limits.max_messages} (max_messages)",
    )
    messages = []
    for index, proto in enumerate(protos):
        field = f"messages[{index}]"
        role = _ROLES.get(proto.role)
        if role is None:
            check.refuse(f"{field}.role", "must be set to a known role")
        elif role is Role.TOOL:
            check.refuse(f"{field}.role", "a tool message must follow a tool call")
        elif role is Role.SYSTEM:
            check.check(
                index == 0, f"{field}.role", "only the first message may be a system message"
            )
        check.check(bool(proto.content), f"{field}.content", "must not be empty")
        _text(check, f"{field}.content", proto.content)
        messages.append(Message(role or Role.USER, proto.content))
    if not history and messages:
        check.check(
            messages[-1].role is Role.USER,
            f"messages[{len(messages) - 1}].role",
            "the last message must be the user's",
        )
    return messages


def _options(check: Checker, options: pb.CompletionOptions) -> model.CompletionOptions:
    if options.HasField("temperature"):
        check.check(
            0 <= options.temperature <= _MAX_TEMPERATURE, "options.temperature", "must be 0 to 2"
        )
    if options.HasField("top_p"):
        check.check(0 < options.top_p <= 1, "options.top_p", "must be above 0 and at most 1")
    if options.HasField("max_tokens"):
        check.check(options.max_tokens > 0, "options.max_tokens", "must be more than 0")
    check.check(len(options.stop) <= _MAX_STOPS, "options.stop", f"more than {_MAX_STOPS}")
    for index, stop in enumerate(options.stop):
        check.check(bool(stop), f"options.stop[{index}]", "must not be empty")
    return model.CompletionOptions(
        model=options.model,
        temperature=options.temperature if options.HasField("temperature") else None,
        top_p=options.top_p if options.HasField("top_p") else None,
        max_tokens=options.max_tokens if options.HasField("max_tokens") else None,
        stop=tuple(options.stop),
        seed=options.seed if options.HasField("seed") else None,
        bypass_cache=options.bypass_cache,
    )


def _window(check: Checker, window: pb.ContextWindow, default: ContextWindow) -> ContextWindow:
    keep, most = default.keep_exchanges, default.max_exchanges
    if window.HasField("max_exchanges"):
        most = window.max_exchanges
        check.check(most >= 0, "context_window.max_exchanges", "must not be negative")
        keep = min(keep, most) if most else keep
    if window.HasField("keep_exchanges"):
        keep = window.keep_exchanges
        check.check(keep >= 0, "context_window.keep_exchanges", "must not be negative")
        check.check(
            keep <= most or not most,
            "context_window.keep_exchanges",
            f"must be at most max_exchanges ({most})",
        )
    if window.HasField("max_tokens"):
        check.check(window.max_tokens > 0, "context_window.max_tokens", "must be more than 0")
    check.check(
        window.rendering in pb.Rendering.values(),
        "context_window.rendering",
        "is no known rendering",
    )
    return replace(
        default,
        keep_exchanges=keep,
        max_exchanges=most,
        max_tokens=window.max_tokens if window.HasField("max_tokens") else default.max_tokens,
        rendering=_RENDERINGS.get(window.rendering, default.rendering),
    )


def _text(check: Checker, field: str, text: str) -> None:
    size = len(text.encode())
    limit = check.limits.max_message_bytes
    check.check(size <= limit, field, f"has {size} bytes, the limit is {limit} (max_message_bytes)")


def _labels(check: Checker, field: str, labels: Mapping[str, str]) -> None:
    check.check(len(labels) <= _MAX_LABELS, field, f"more than {_MAX_LABELS}")
    for key, value in labels.items():
        path = f"{field}[{key!r}]"
        key_fits = 0 < len(key.encode()) <= _MAX_KEY_BYTES
        check.check(key_fits, path, f"the key must have 1 to {_MAX_KEY_BYTES} bytes")
        value_fits = len(value.encode()) <= _MAX_VALUE_BYTES
        check.check(value_fits, path, f"the value may have {_MAX_VALUE_BYTES} bytes")


def _is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def _unknown(message: ProtoMessage, path: str) -> list[str]:
    """The fields in `message` that our proto does not have, by number."""
    strangers = unknown_fields.UnknownFieldSet(message)
    paths = [f"{path}#{strangers[index].field_number}" for index in range(len(strangers))]
    for descriptor, value in message.ListFields():
        kind = descriptor.message_type
        if kind is None or kind.GetOptions().map_entry:
            continue
        if isinstance(value, ProtoMessage):
            paths += _unknown(value, f"{path}{descriptor.name}.")
        else:
            for index, item in enumerate(value):
                paths += _unknown(item, f"{path}{descriptor.name}[{index}].")
    return paths


def _cursor(token: str) -> int | None:
    """The number in a page token; 0 for the first page, None for what is none of ours."""
    if not token:
        return 0
    try:
        return int(base64.urlsafe_b64decode(token.encode()).decode())
    except (ValueError, binascii.Error):
        return None


# --- responses -----------------------------------------------------------------------------


def page_token(cursor: int) -> str:
    """The opaque token for a cursor; empty for none."""
    return base64.urlsafe_b64encode(str(cursor).encode()).decode() if cursor else ""


def session(state: SessionState) -> pb.Session:
    """A session for the wire."""
    of: Session = state.session
    window = of.context_window
    return pb.Session(
        id=of.id,
        create_time=_timestamp(of.create_time),
        last_used_time=_timestamp(of.last_used_time),
        expire_time=None if state.in_use else _timestamp(of.expire_time),
        message_count=of.message_count,
        exchange_count=of.exchange_count,
        system_prompt=of.system_prompt,
        messages=[message(each) for each in state.messages or ()],
        labels=of.labels,
        context_window=pb.ContextWindow(
            keep_exchanges=window.keep_exchanges,
            max_exchanges=window.max_exchanges,
            max_tokens=window.max_tokens,
            rendering=_RENDERING_PROTOS[window.rendering],
        ),
        parent_id=of.parent_id,
        running_completion_id=state.running_completion_id,
        usage=usage(of.usage),
        model=of.model,
        idle_timeout=duration(of.idle_timeout_seconds),
    )


def event(of: model.CompletionEvent) -> pb.CompletionEvent:
    """A completion's event for the wire."""
    match of.event:
        case model.Delta(text):
            body = pb.CompletionEvent(sequence=of.sequence, delta=pb.Delta(text=text))
        case model.Started() as started:
            body = pb.CompletionEvent(
                sequence=of.sequence,
                started=pb.Started(
                    completion_id=started.completion_id,
                    session_id=started.session_id,
                    session_created=started.session_created,
                    model=started.model,
                    context_messages=started.context_messages,
                    context_trimmed=started.context_trimmed,
                ),
            )
        case model.Finished() as finished:
            body = pb.CompletionEvent(sequence=of.sequence, finished=_finished(finished))
    return body


def _finished(of: model.Finished) -> pb.Finished:
    timings = of.timings
    return pb.Finished(
        finish_reason=_FINISH_REASONS[of.finish_reason],
        message=message(of.message),
        usage=None if of.usage is None else usage(of.usage),
        timings=pb.Timings(
            queue=duration(timings.queue_seconds),
            time_to_first_token=duration(timings.time_to_first_token_seconds),
            total=duration(timings.total_seconds),
            prefill=duration(timings.prefill_seconds),
        ),
        exchange_count=of.exchange_count,
    )


def message(of: Message) -> pb.Message:
    """A message for the wire."""
    return pb.Message(role=_ROLE_PROTOS[of.role], content=of.content)


def usage(of: model.Usage) -> pb.Usage:
    """Token counts for the wire."""
    return pb.Usage(
        prompt_tokens=of.prompt_tokens,
        cached_tokens=of.cached_tokens,
        completion_tokens=of.completion_tokens,
    )


def duration(seconds: float | None) -> Duration | None:
    """A duration for the wire; None stays unset."""
    if seconds is None:
        return None
    proto = Duration()
    proto.FromNanoseconds(round(seconds * 1e9))
    return proto


def metrics(counts: StoreCounts, statistics: Statistics) -> pb.SessionMetrics:
    """The daemon's figures for the wire; what is unknown stays unset."""
    session, stateless = statistics.session, statistics.stateless
    return pb.SessionMetrics(
        total_sessions=counts.sessions,
        active_sessions=counts.active,
        avg_messages_per_session=counts.messages / counts.sessions if counts.sessions else 0.0,
        cache_hit_rate=statistics.cache_hit_rate,
        avg_session_latency=duration(session.mean),
        avg_stateless_latency=duration(stateless.mean),
        session_completions=session.count,
        stateless_completions=stateless.count,
        avg_latency_reduction=statistics.latency_reduction,
        avg_prefill_reduction=statistics.prefill_reduction,
    )


def _timestamp(seconds: float) -> Timestamp:
    proto = Timestamp()
    proto.FromNanoseconds(round(seconds * 1e9))
    return proto


_UPDATABLE = {"labels", "idle_timeout", "context_window"}
_IF_BUSY = {
    pb.IF_BUSY_UNSPECIFIED: model.IfBusy.QUEUE,
    pb.IF_BUSY_QUEUE: model.IfBusy.QUEUE,
    pb.IF_BUSY_REJECT: model.IfBusy.REJECT,
    pb.IF_BUSY_INTERRUPT: model.IfBusy.INTERRUPT,
}
_ON_DISCONNECT = {
    pb.ON_DISCONNECT_UNSPECIFIED: model.OnDisconnect.CANCEL,
    pb.ON_DISCONNECT_CANCEL: model.OnDisconnect.CANCEL,
    pb.ON_DISCONNECT_CONTINUE: model.OnDisconnect.CONTINUE,
}
_ROLES = {
    pb.ROLE_SYSTEM: Role.SYSTEM,
    pb.ROLE_USER: Role.USER,
    pb.ROLE_ASSISTANT: Role.ASSISTANT,
    pb.ROLE_TOOL: Role.TOOL,
}
_ROLE_PROTOS = {role: proto for proto, role in _ROLES.items()}
_RENDERINGS = {
    pb.RENDERING_MESSAGES: model.Rendering.MESSAGES,
    pb.RENDERING_TRANSCRIPT: model.Rendering.TRANSCRIPT,
}
_RENDERING_PROTOS = {rendering: proto for proto, rendering in _RENDERINGS.items()}
_FINISH_REASONS = {
    model.FinishReason.STOP: pb.FINISH_REASON_STOP,
    model.FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    model.FinishReason.TOOL_CALLS: pb.FINISH_REASON_TOOL_CALLS,
    model.FinishReason.CANCELLED: pb.FINISH_REASON_CANCELLED,
}
